"""Inputs in every container: found, costed per example, brought to the model's type and device, hashed, exported and collected by one
mechanism."""

from __future__ import annotations

import types
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.networks import export
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import batch_size, find_sites, fitted, map_tensors, run, tensors_of
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import GivenLabels, collect
from ranksearch.supernet.methods.sandwich import detached


class Batch(NamedTuple):
    x: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    mask: Tensor


@dataclass
class Made:
    """One that cannot be made anew from its fields."""

    x: Tensor
    mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mask = torch.ones_like(self.x)


class Encoding(UserDict):
    """As transformers' BatchEncoding: a mapping with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, batch: Any) -> Tensor:
        return self.layer(batch.x * batch.mask)


class Keys(Attributes):
    def forward(self, batch: Any) -> Tensor:
        return self.layer(batch["x"] * batch["mask"])


class Keywords(Attributes):
    def forward(self, *, mask: Tensor, x: Tensor) -> Tensor:
        return self.layer(x * mask)


class Packed(Attributes):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.recurrent = nn.GRU(8, 8, batch_first=True)

    def forward(self, packed: PackedSequence) -> Tensor:
        packed = packed._replace(data=self.inner(packed.data))
        return self.layer(self.recurrent(packed)[1][-1])


class Images(Attributes):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.layer(torch.stack([self.conv(image[None]).mean((0, 2, 3)) for image in images]))


def _pair(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 8, generator=generator), torch.ones(n, 8)


def _packed(n: int) -> PackedSequence:
    x = torch.randn(n, 5, 8, generator=torch.Generator().manual_seed(n))
    return pack_padded_sequence(x, [5 - i % 2 * 2 for i in range(n)], batch_first=True, enforce_sorted=False)


def _images(n: int) -> tuple[list[Tensor]]:
    generator = torch.Generator().manual_seed(n)
    return ([torch.randn(3, 6 + i, 6, generator=generator) for i in range(n)],)


def _made(n: int) -> Made:
    return Made(_pair(n)[0])


LAYER = 8 * 6  # multiply-adds of `layer` for one example
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], Callable[[int], float]]] = {
    "named tuple": (Attributes, lambda n: Batch(*_pair(n)), lambda n: LAYER),
    "frozen dataclass": (Attributes, lambda n: Frozen(*_pair(n)), lambda n: LAYER),
    "dataclass that makes a field": (Attributes, _made, lambda n: LAYER),
    "encoding": (Attributes, lambda n: (Encoding(x=_pair(n)[0], mask=_pair(n)[1]),), lambda n: LAYER),
    "dict as one argument": (Keys, lambda n: ({"x": _pair(n)[0], "mask": _pair(n)[1]},), lambda n: LAYER),
    "read-only mapping": (Keys, lambda n: (types.MappingProxyType({"x": _pair(n)[0], "mask": _pair(n)[1]}),), lambda n: LAYER),
    "keywords": (Keywords, lambda n: {"mask": torch.ones(8), "x": _pair(n)[0]}, lambda n: LAYER),
    # sequences of 5 and 3 steps in turn: `inner`, and three gates of 8 x (8 + 8), per step
    "packed sequence": (Packed, _packed, lambda n: sum(5 - i % 2 * 2 for i in range(n)) * (64 + 3 * 128) / n + LAYER),
    "list of images": (Images, _images, lambda n: sum((4 + i) * 4 * 27 * 8 for i in range(n)) / n + LAYER),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Callable[[int], Any], Callable[[int], float]]:
    model, example, macs = CASES[request.param]
    torch.manual_seed(0)
    return model().eval(), example, macs


@pytest.mark.parametrize("n", [1, 2, 4])
def test_sites_are_found_and_costs_are_per_example(case: Any, n: int) -> None:
    model, example, macs = case
    sites = find_sites(model, example(n))
    assert batch_size(example(n)) == n
    assert "layer" in {site.name for site in sites} and sites.total.macs == macs(n)
    assert sites["layer"].cost.macs == LAYER


def test_inputs_get_the_type_of_the_model_in_a_container_of_the_same_kind(case: Any) -> None:
    model, example, _ = case
    model.double()
    given = example(2)
    inputs = fitted(given, model)
    assert type(inputs) is type(given)
    assert {t.dtype for _, t in tensors_of(inputs) if t.is_floating_point()} == {torch.float64}
    assert run(model, given).dtype == torch.float64
    assert all(t.dtype != torch.float64 for _, t in tensors_of(given))


def test_all_that_runs_on_batches_takes_them(case: Any) -> None:
    model, example, _ = case
    sites = find_sites(model, example(1))
    spectra = Spectra(model, sites)
    configuration = Configuration({"layer": ("svd", (2,))})
    network = build(spectra, configuration)
    (report,) = reconstruct(network, spectra, configuration, [example(2), example(4)])
    assert report.site == "layer" and report.after <= report.before + 1e-12
    assert recalibrate(network, [example(2)]) == 0
    labels = GivenLabels(lambda outputs, targets: nn.functional.cross_entropy(outputs, targets))
    batches = [(example(n), torch.arange(n) % 6) for n in (2, 3)]
    found = collect(model, sites, batches, labels=labels)
    layer = found.of["layer"]
    assert layer.examples == layer.rows == 5  # of unequal batches, whatever stands first in them


def test_statistics_are_found_again_by_the_content_of_the_batches(case: Any, tmp_path: Path) -> None:
    model, example, _ = case
    sites = find_sites(model, example(1))

    def kept(batches: list[Any]) -> int:
        collect(model, sites, batches, labels=None, cache=tmp_path)
        return len(list(tmp_path.iterdir()))

    assert [kept([example(2)]), kept([example(2)]), kept([example(3)])] == [1, 1, 2]


def test_manifests_describe_what_can_be_made_up_and_ask_for_the_rest(case: Any, tmp_path: Path) -> None:
    model, example, _ = case
    given = example(2)
    target = export.save(model, tmp_path / "out", manifest={"configuration": {}}, example=given)
    if isinstance(given, dict):
        assert (target / "manifest.json").is_file()
        export.load(target, model)
        return
    with pytest.raises(InvalidArgument, match="example"):
        export.load(target, model)
    export.load(target, model, example=given)


def test_outputs_are_detached_in_any_container() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    for outputs in (x * 2, (x * 2, [x * 3]), {"logits": x * 2}, Batch(x * 2, x * 3), Frozen(x * 2, x * 3), Encoding(logits=x * 2)):
        found = detached(outputs)
        assert type(found) is type(outputs) and all(not t.requires_grad for _, t in tensors_of(found))
    assert detached(Encoding(logits=x * 2)).logits.shape == (2, 3)


def test_batch_sizes_of_a_packed_sequence_stay_and_so_does_what_does_not_change() -> None:
    packed = _packed(3)
    moved = map_tensors(lambda t: t.double() if t.is_floating_point() else t, packed)
    assert moved.batch_sizes is packed.batch_sizes and moved.data.dtype == torch.float64 and moved.sorted_indices is packed.sorted_indices
    for value in (packed.data, [1, "a", None], {"a": (1, 2)}, Frozen(*_pair(2))):
        assert map_tensors(lambda t: t, value) is value


@pytest.mark.parametrize(
    ("example", "size"),
    [
        ((pack_sequence([torch.zeros(4, 2), torch.zeros(3, 2), torch.zeros(1, 2)]),), 3),
        ({"images": [torch.zeros(3, 8, 8)] * 5}, 5), (([torch.zeros(1, 8, 8)],), 1), (([torch.zeros(7), torch.zeros(4)],), 2),
        (([torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 4, 4)],), 4),  # levels of a pyramid: no single images
        ({"levels": [torch.zeros(5, 7, 8)] * 2, "mask": torch.zeros(5, 7)}, 5),  # another input says what the list is
        (Batch(torch.zeros(3, 2), torch.zeros(3)), 3), ({"table": torch.zeros(50, 4), "a": torch.zeros(2, 3), "b": torch.zeros(2)}, 2),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(2), "table": torch.zeros(50, 4)}, 2),  # in any order
    ],
    ids=range(9),
)  # fmt: skip
def test_the_batch_does_not_hang_on_what_comes_first(example: Any, size: int) -> None:
    assert batch_size(example) == size


def test_other_containers_are_named_with_those_that_are_taken() -> None:
    strange = types.SimpleNamespace(x=torch.zeros(2, 8), mask=torch.ones(2, 8))
    with pytest.raises(InvalidArgument, match=r"SimpleNamespace.*named tuples.*packed sequences.*batch_dim=None"):
        find_sites(Attributes(), strange)
    assert len(find_sites(Attributes(), strange, batch_dim=None)) == 1
    with pytest.raises(InvalidModel):
        find_sites(Attributes(), Batch(torch.zeros(2, 7), torch.ones(2, 7)))


def test_containers_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    x, mask = _pair(3)
    outputs = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=x, hidden_states=(x, mask))
    doubled = map_tensors(Tensor.double, outputs)
    assert type(doubled) is type(outputs) and doubled.last_hidden_state.dtype == doubled["hidden_states"][1].dtype == torch.float64
    assert outputs.last_hidden_state.dtype == torch.float32 and batch_size((outputs,)) == 3
    encoding = transformers.BatchEncoding({"x": x, "mask": mask})
    model = Attributes().double().eval()
    assert run(model, (encoding,)).dtype == torch.float64 and encoding.x.dtype == torch.float32
    assert find_sites(Attributes(), (encoding,)).total.macs == LAYER
    assert find_sites(Keywords(), encoding).total.macs == LAYER


class View(MutableMapping[str, Any]):
    """A mapping on a dict, which a shallow copy shares."""

    def __init__(self, of: dict[str, Any]) -> None:
        self.of = of

    def __getitem__(self, key: str) -> Any:
        return self.of[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.of[key] = value

    def __delitem__(self, key: str) -> None:
        del self.of[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


class OnDemand(Mapping[int, Tensor]):
    """Tensors that are made when they are asked for."""

    def __getitem__(self, key: int) -> Tensor:
        return torch.full((1,), float(key))

    def __iter__(self) -> Iterator[int]:
        return iter(range(6))

    def __len__(self) -> int:
        return 6


class Named(list[Tensor]):
    """A list with an attribute, made in a way of its own."""

    def __init__(self, items: list[Tensor], name: str) -> None:
        super().__init__(items)
        self.name = name


class Several(tuple[Tensor, ...]):
    """A tuple that is made of its parts."""

    def __new__(cls, *parts: Tensor) -> Several:
        return super().__new__(cls, parts)


def test_inputs_are_copied_whatever_holds_them_and_the_users_stay() -> None:
    model, x = nn.Linear(2, 2), torch.randn(2, 2, requires_grad=True)
    view, named, several = View({"x": x}), Named([x], "images"), Several(x, x)
    found = fitted(view, model)
    assert view["x"] is x and found["x"] is not x and not found["x"].requires_grad
    assert {key: float(value) for key, value in fitted(OnDemand(), model).items()} == {key: key for key in range(6)}
    found = fitted(named, model)
    assert isinstance(found, Named) and found.name == "images" and found[0] is not x and named[0] is x
    found = fitted(several, model)
    assert len(found) == 2 and found[0] is found[1] is not x, "a tensor that is there twice is so in the copy"
    assert torch.equal(found[0], x)
