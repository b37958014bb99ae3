"""Statistics in several passes, from files and with shared inputs: the same numbers as all at once."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ranksearch.decompositions import Moments
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Sites, find_sites
from ranksearch.statistics import GivenLabels, SampledLabels, Statistics, accumulator_bytes, collect, collection
from ranksearch.statistics import metric as space_metric
from ranksearch.statistics.inputs import InputSums
from ranksearch.statistics.lazy import Chosen, MadeMoments
from ranksearch.statistics.memory import check_room, passes

CPU = torch.device("cpu")


class Block(nn.Module):
    """An attention of one head with three projections of one tensor, then a layer that has that tensor too, changed in place."""

    def __init__(self, change: Callable[[int, Tensor], Tensor] = lambda _, x: x) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 4)
        self.after, self.conv, self.head = nn.Linear(6, 4), nn.Conv1d(4, 5, 3, padding=1), nn.Linear(5, 3)
        self.change, self.forwards = change, 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        self.forwards += 1
        seen = (self.q(x) @ self.k(self.change(self.forwards, x)).mT).softmax(2) @ self.v(x)
        with torch.no_grad():
            x.add_(1)
        return self.head(self.conv((seen + self.after(x)).mT).mean(2))


def setting(change: Callable[[int, Tensor], Tensor] = lambda _, x: x) -> tuple[Block, Sites, list[Tensor]]:
    torch.manual_seed(0)
    model = Block()
    batches = list(torch.randn(3, 4, 7, 6))
    sites = find_sites(model, batches[0][:1])
    model.change, model.forwards = change, 0
    return model, sites, batches


def assert_same(one: Statistics, other: Statistics) -> None:
    assert [*one.of] == [*other.of] and one.uncovered == other.uncovered
    for name in one.of:
        a, b = one.of[name], other.of[name]
        for field in fields(a):
            left, right = getattr(a, field.name), getattr(b, field.name)
            assert (torch.equal(left, right) if isinstance(left, Tensor) else left == right), (name, field.name)


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sites that got sums of inputs of their own, in order."""
    made: list[str] = []
    original = InputSums.__init__

    def noting(self: InputSums, site, limit) -> None:
        made.append(site.name)
        original(self, site, limit)

    monkeypatch.setattr(InputSums, "__init__", noting)
    return made


@pytest.mark.parametrize("labels", [None, SampledLabels(samples=2), GivenLabels()])
def test_passes_give_the_same_numbers_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels) -> None:
    model, sites, inputs = setting()
    batches = [(x, torch.arange(4) % 3) for x in inputs] if isinstance(labels, GivenLabels) else inputs
    whole = collect(model, sites, batches, labels=labels, diagonal=labels is not None)
    monkeypatch.setattr("ranksearch.statistics.files.HELD", 0)
    for number, limit in enumerate((0, 700, 10**9)):
        found = collect(model, sites, batches, labels=labels, diagonal=labels is not None, moment_bytes=limit, cache=tmp_path / str(number))
        assert_same(found, whole)
    assert len(list((tmp_path / "0").iterdir())) == len(sites) + 1 and len(list((tmp_path / "2").iterdir())) == 1
    for name, moments in whole.moments("activation").items():
        assert torch.equal(found.moments("activation")[name].input, moments.input)


def test_projections_of_one_tensor_have_one_sum_and_a_tensor_that_changed_in_place_another(sums: list[str]) -> None:
    model, sites, batches = setting()
    found = collect(model, sites, batches)
    assert sums == ["q", "after", "conv", "head"]
    assert found.of["q"].input is found.of["k"].input is found.of["v"].input is not found.of["after"].input
    rows = torch.tanh(torch.cat(batches)).flatten(0, 1).double()
    for name, seen in (("v", rows), ("after", rows + 1)):
        moment = found.input_moment(name, shrink=False)
        assert moment is not None
        torch.testing.assert_close(moment[0], seen.T @ seen / len(seen), rtol=1e-5, atol=1e-6)
    sums.clear()
    assert_same(collect(model, sites, iter(batches)), found)  # one-shot batches: nothing is shared
    assert sums == ["q", "k", "v", "after", "conv", "head"]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_inputs_that_part_in_a_later_batch_are_collected_again_by_themselves(at: int, sums: list[str], tmp_path: Path) -> None:
    change = lambda forward, x: x * 2 if forward % 3 == at % 3 else x  # noqa: E731
    model, sites, batches = setting(change)
    assert_same(collect(model, sites, batches), collect(model, sites, iter(batches)))
    again = sums[: len(sums) - len(sites)]
    assert again == (["q", "k", "after", "conv", "head"] if at == 1 else ["q", "after", "conv", "head", "k"])
    assert_same(collect(model, sites, batches, moment_bytes=0, cache=tmp_path), collect(model, sites, iter(batches)))


class Twice(nn.Module):
    """Two layers of one input; one of them is called once more where the batch is larger than 2."""

    def __init__(self, again: str) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x) + self.two(x)
        return self.head(self.get_submodule(self.again)(x) + y if len(x) > 2 else y)


@pytest.mark.parametrize("again", ["one", "two"])
def test_sites_that_are_not_called_equally_often_are_apart(again: str) -> None:
    model = Twice(again)
    batches = [torch.randn(2, 3), torch.randn(3, 3)]
    found = collect(model, find_sites(model, batches[0]), batches)
    assert {name: found.of[name].rows for name in ("one", "two")} == {"one": 5, "two": 5} | {again: 8}
    assert_same(found, collect(model, find_sites(model, batches[0]), iter(batches)))


def test_files_are_read_one_by_one_and_collected_again_when_one_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranksearch.statistics.files.HELD", 0)
    model, sites, batches = setting()
    found = collect(model, sites, batches, moment_bytes=0, cache=tmp_path)
    moments = pickle.loads(pickle.dumps(found.moments("fisher")))
    assert all(torch.equal(moments[name].input, whole.input) for name, whole in found.moments("fisher").items())
    piece = max(tmp_path.glob("*-*-*.safetensors"))
    piece.rename(tmp_path / "away")
    with pytest.raises(InvalidArgument, match=r"is not here.*RANKSEARCH_HOME"):
        [*found.of.values()]
    assert_same(collect(model, sites, batches, moment_bytes=0, cache=tmp_path), collect(model, sites, batches))
    assert piece.read_bytes() == (tmp_path / "away").read_bytes()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3000), st.booleans(), st.booleans())
def test_a_pass_has_neighbours_within_the_limit_and_as_many_as_fit(limit: int, gradients: bool, diagonal: bool) -> None:
    _, sites, _ = setting()
    groups = passes(sites, limit, gradients=gradients, diagonal=diagonal and gradients, device=CPU)
    needed = lambda group: accumulator_bytes(group, gradients=gradients, diagonal=diagonal and gradients)  # noqa: E731
    assert [site for group in groups for site in group] == list(sites)
    assert all(len(group) == 1 or needed(group) <= limit for group in groups)
    assert all(needed([*one, other[0]]) > limit for one, other in itertools.pairwise(groups))


def test_a_large_linear_layer_has_no_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranksearch.statistics.inputs.LARGEST", 4)
    model, sites, batches = setting()
    found = collect(model, sites, batches)
    assert found.of["q"].channel is None and "q" not in found.uncovered and found.of["conv"].channel is not None


def test_what_does_not_fit_at_once_is_announced_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, _ = setting()
    assert space_metric.announced(model, sites, "fisher", 4).endswith(f"of moments of {len(sites)} layers")
    monkeypatch.setattr("ranksearch.statistics.memory.machine_memory", lambda: 8.0 * 700)
    count = len(passes(sites, 700, gradients=True, device=CPU))
    assert space_metric.announced(model, sites, "fisher", 4).endswith(f"of them in memory at a time, in {count} passes over the data")


def test_what_a_gpu_has_no_room_for_is_collected_in_passes_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums lie where the network is, and are taken from there by the machine: the smaller memory counts."""
    _, sites, _ = setting()
    size = accumulator_bytes(sites)
    for gpu, machine, count in ((8 * size, 1e12, 1), (8 * size - 8, 1e12, 2), (1e12, 8 * size - 8, 2)):
        monkeypatch.setattr("ranksearch.statistics.memory.device_memory", lambda device, gpu=gpu: {"meta": gpu}[device.type])
        monkeypatch.setattr("ranksearch.statistics.memory.machine_memory", lambda machine=machine: machine)
        assert len(passes(sites, None, gradients=True, device=torch.device("meta"))) == count
    monkeypatch.setattr("ranksearch.statistics.memory.device_memory", lambda device: 2.0 * size - 1)
    with pytest.raises(InvalidArgument, match=r"there are 0\.0 for them \(meta\); leave out"):
        check_room(list(sites), gradients=True, diagonal=False, device=torch.device("meta"))


def test_moments_are_made_when_asked_for_and_again_when_they_had_to_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def maker(name: str) -> Callable[[], Moments]:
        return lambda: made.append(name) or Moments(torch.eye(4, dtype=torch.float64)[None])

    monkeypatch.setattr("ranksearch.statistics.lazy.machine_memory", lambda: 16.0 * 2 * 2 * 8 * 16)  # room for two
    moments = MadeMoments({name: maker(name) for name in "abc"})
    chosen = Chosen(moments, ["a", "b"])
    assert not made and "c" in moments and [*chosen] == ["a", "b"] and len(chosen) == 2
    with pytest.raises(KeyError):
        chosen["c"]
    assert chosen["a"] is moments["a"] and moments["b"] is moments["b"] and made == ["a", "b"]
    assert moments["a"] and moments["c"] and moments["a"] and made == ["a", "b", "c"]  # b was used least recently
    assert moments["b"] and made == ["a", "b", "c", "b"]


def test_layers_that_store_their_weight_transposed_have_the_statistics_of_linear_ones() -> None:
    transposed = pytest.importorskip("transformers.pytorch_utils").Conv1D

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.turned = nn.Linear(6, 5), transposed(5, 6)
            with torch.no_grad():
                self.turned.weight.copy_(self.plain.weight.T)

        def forward(self, x: Tensor) -> Tensor:
            return (self.plain(x) + self.turned(x)).mean(1)

    torch.manual_seed(0)
    model, x = Twins(), torch.randn(4, 300, 6).cumsum(dim=1) / 10  # neighbours are alike
    found = collect(model, find_sites(model, x[:1]), [x])
    plain, turned = found.of["plain"], found.of["turned"]
    assert torch.equal(plain.input_shrinkage, turned.input_shrinkage) and float(plain.input_shrinkage) > 0.05
    assert torch.equal(plain.input, turned.input) and torch.equal(plain.output_shrinkage, turned.output_shrinkage)


def test_no_token_has_a_weight_gradient_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held at a time is a matrix per example: with one per token, a sentence encoder's collection took gigabytes."""
    model = nn.Sequential(nn.Linear(32, 48), nn.AdaptiveAvgPool2d((1, 48)), nn.Flatten(), nn.Linear(48, 3))
    x, y = torch.randn(4, 20, 32), torch.randint(0, 3, (4,))
    held: list[int] = []

    def product(one: Tensor, other: Tensor) -> Tensor:
        found = torch.matmul(one, other)
        held.append(found.numel())
        return found

    monkeypatch.setattr(Tensor, "__matmul__", product)
    collect(model, find_sites(model, x[:1]), [(x, y)], labels=GivenLabels(), diagonal=True)
    assert held and max(held) == 4 * 32 * 48


def test_targets_go_where_the_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, for which ``meta`` stands here: batches come from the processor, and the loss is taken beside the outputs."""
    seen = []

    def loss(outputs: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(targets["labels"].device.type)
        return outputs.sum()

    monkeypatch.setattr(collection, "device_of", lambda model: torch.device("meta"))
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(5, 4)
    collect(model, find_sites(model, x[:1]), [(x, {"labels": torch.zeros(5)})], labels=GivenLabels(loss=loss))
    assert seen == ["meta"]
