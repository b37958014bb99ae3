"""Layers that the model asks something besides calling them: what is built in their place answers, and the answers cost nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition
from ranksearch.networks import export
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.supernet.network import RankSupernet

X = torch.linspace(-1, 1, 2 * 8 * 6 * 6, dtype=torch.float64).reshape(2, 8, 6, 6).sin()


class Asks(nn.Module):
    """Reads of its layers what networks of transformers read: types (ViT, CLIP, T5), devices, strides and kernels (Whisper, MobileNetV2),
    numbers of features (Mamba), biases."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.up = nn.Linear(12, 16)
        self.down = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.patch.weight
        x = self.patch(x.to(weight.dtype).to(device=weight.device)) * self.patch.kernel_size[0] / self.patch.stride[0]
        x = x.flatten(2).mT * (self.patch.weight.shape[1] / self.up.in_features)
        x = self.up(x.to(self.up.weight.dtype)).relu() - (0 if self.up.bias is None else self.up.bias)
        return self.down(x.type_as(self.down.weight))


def asks() -> nn.Module:
    torch.manual_seed(0)
    return Asks().double().eval()


def half(decomposition: AnyDecomposition, model: nn.Module) -> tuple[Spectra, Configuration]:
    """Every site that a type is defined for, at a rank in the middle."""
    spectra = Spectra(model, find_sites(model, X), [decomposition])
    defined = [site for site in spectra.sites if decomposition.undefined(site) is None]
    ranks = {site.name: decomposition.ranks(site) for site in defined}
    return spectra, Configuration({name: (decomposition.name, tuple(map(int, r[len(r) // 2]))) for name, r in ranks.items()})


LOW_RANK = [d for d in DECOMPOSITIONS if d.name != "dense"]


@pytest.mark.parametrize("decomposition", LOW_RANK, ids=lambda d: d.name)
def test_every_type_answers_and_computes_what_its_weights_say(decomposition: AnyDecomposition) -> None:
    model = asks()
    spectra, configuration = half(decomposition, model)
    assert {site.reads for site in spectra.sites} == {("weight",), ("bias", "weight")} and configuration.choices
    built, oracle = build(spectra, configuration), copy.deepcopy(model)
    for name, _, rank in configuration.choices:
        site, layer = spectra.sites[name], built.get_submodule(name)
        stored = oracle.get_submodule(name).get_parameter("weight")
        weight = decomposition.compose(site, spectra.factors(site, decomposition.name, rank))
        stored.data.copy_(weight.reshape(stored.shape))
        answer = layer.weight
        assert (answer.dtype, answer.device, answer.shape) == (stored.dtype, stored.device, stored.shape)
        assert bool(answer.isnan().all()) and answer.untyped_storage().nbytes() == answer.element_size()
        assert torch.equal(layer.bias, model.get_submodule(name).bias) and any(layer.bias is p for p in layer.parameters())
    torch.testing.assert_close(built(X), oracle(X), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decomposition", LOW_RANK, ids=lambda d: d.name)
def test_what_was_built_costs_what_its_options_say(decomposition: AnyDecomposition) -> None:
    """Types that put their weight together do so in a call, not when they are asked for its type."""
    model = asks()
    spectra, configuration = half(decomposition, model)
    total = spectra.sites.total
    for name, _, rank in configuration.choices:
        # what is done once for the whole batch is an example's own with a batch of one
        total = total - spectra.sites[name].cost + decomposition.cost(spectra.sites[name], rank)
    one = find_sites(build(spectra, configuration), X[:1], check=False).total
    assert one == total


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("name", ["svd", "tensor_train", "tensor_ring"])
def test_programs_copies_and_files_answer_too(name: str, tmp_path: Path) -> None:
    model = asks()
    decomposition = next(d for d in DECOMPOSITIONS if d.name == name)
    spectra, configuration = half(decomposition, model)
    built = build(spectra, configuration)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(1.1)
        wanted = built(X)
        copied = copy.deepcopy(built)
        copied.load_state_dict(built.state_dict())
        torch.testing.assert_close(copied(X), wanted, rtol=0, atol=0)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(built, backend="eager", fullgraph=True)(X), wanted)
    manifest = {"configuration": {s: [d, list(r)] for s, d, r in configuration.choices}}
    # the program is run and compared where it is written
    folder = export.save(built, tmp_path / "net", manifest=manifest, example=X, torch_export=True)
    other = Asks().double()
    torch.testing.assert_close(export.load(folder, other, X)(X), wanted, rtol=1e-12, atol=1e-12)


def test_what_a_supernet_extracts_answers() -> None:
    model = asks()
    spectra = Spectra(model, find_sites(model, X), [d for d in DECOMPOSITIONS if d.name in ("dense", "svd")])
    space = build_space(spectra)
    net = RankSupernet(model, space, spectra=spectra)
    configuration = Configuration({"patch": ("svd", (4,)), "up": ("svd", (3,))})
    net.activate(configuration)
    with torch.no_grad():
        torch.testing.assert_close(net.extract()(X), net(X), rtol=1e-9, atol=1e-9)


class AsksMemory(nn.Module):
    """Asks for what only the dense weight knows."""

    def __init__(self, question: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.question = question

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + float(self.question(self.b.weight))


@pytest.mark.parametrize(
    "question",
    [
        lambda w: w.stride()[0], lambda w: w.is_contiguous(), lambda w: w.requires_grad, lambda w: w.is_leaf, lambda w: w.sum(),
        lambda w: w[0, 0],
    ],
    ids=["stride", "contiguous", "gradient", "leaf", "sum", "entry"],
)  # fmt: skip
def test_questions_without_a_true_answer_are_refused(question: Any) -> None:
    sites = find_sites(AsksMemory(question).eval(), torch.ones(1, 6))
    assert [site.name for site in sites] == ["a"]
    assert [(s.name, "uses its weight" in s.reason) for s in sites.skipped] == [("b", True)]
