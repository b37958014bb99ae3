"""Subclasses with a forward pass of their own: sites where it computes what torch's does, times a number, and only there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.networks import export
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.sites.subclasses import scale_of
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import GivenLabels, collect

TOKENS = torch.tensor([[1, 4, 2, 7, 0], [3, 3, 5, 1, 6]])


class Written(nn.Linear):
    """As Falcon writes it."""

    def forward(self, input: Tensor) -> Tensor:
        hidden = input @ self.weight.T
        return hidden if self.bias is None else hidden + self.bias


class Clipped(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).clamp(-50, 50)  # no input of usual size reaches that


class Noisy(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, 0.5, self.training))


class Halved(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


class Remembers(nn.Linear):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[int] = []

    def forward(self, input: Tensor) -> Tensor:
        self.seen.append(len(input))
        return super().forward(input)


class Routes(nn.Linear):
    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(input), input


class Scaled(nn.Embedding):
    """As BART and M2M-100 write it."""

    def __init__(self, *args: Any, scale: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self.embed_scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale


class Buffered(nn.Embedding):
    """As Gemma writes it."""

    def __init__(self, *args: Any, scale: float, persistent: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("embed_scale", torch.tensor(scale), persistent=persistent)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embed_scale.to(self.weight.dtype)


class Normed(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return F.normalize(super().forward(input), dim=-1)


class PerChannel(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * torch.arange(1, self.embedding_dim + 1)


class Offset(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input + 1)


class Positions(nn.Embedding):
    def forward(self, input: Tensor, past: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(torch.arange(past, input.shape[1]))


@pytest.mark.parametrize(
    ("make", "plain", "scale"),
    [
        (lambda: Written(6, 4), nn.Linear, 1.0),
        (lambda: Written(6, 4, bias=False), nn.Linear, 1.0),
        (lambda: Written(6, 4, dtype=torch.bfloat16), nn.Linear, 1.0),
        (lambda: Remembers(6, 4), nn.Linear, 1.0),
        (lambda: Clipped(6, 4), nn.Linear, None),
        (lambda: Noisy(6, 4), nn.Linear, None),
        (lambda: Halved(6, 4), nn.Linear, None),
        (lambda: Routes(6, 4), nn.Linear, None),
        (lambda: Scaled(9, 4, scale=-3.5), nn.Embedding, -3.5),
        (lambda: Buffered(9, 4, scale=1.5), nn.Embedding, 1.5),
        (lambda: Buffered(2, 1, scale=1.5, padding_idx=0), nn.Embedding, 1.5),
        (lambda: Buffered(9, 4, scale=1.5, persistent=True), nn.Embedding, None),
        (lambda: Scaled(9, 4, scale=0.0), nn.Embedding, None),
        (lambda: Normed(9, 4), nn.Embedding, None),
        (lambda: PerChannel(9, 4), nn.Embedding, None),
        (lambda: Offset(9, 4), nn.Embedding, None),
        (lambda: Positions(9, 4), nn.Embedding, None),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_what_a_forward_pass_computes_is_found_out(make: Callable[[], nn.Module], plain: Any, scale: float | None, training: bool) -> None:
    torch.manual_seed(0)
    module = make().train(training)
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    assert scale_of(module, plain) == scale
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training == training and torch.equal(torch.get_rng_state(), state)
    assert getattr(module, "seen", []) == []


def test_the_scale_is_that_of_the_type() -> None:
    """Gemma rounds sqrt(3072) to bfloat16."""
    wide = Buffered(9, 4, scale=3072**0.5).bfloat16()
    assert scale_of(wide, nn.Embedding) == 55.5


class Language(nn.Module):
    def __init__(self, table: nn.Embedding, *, tied: bool) -> None:
        super().__init__()
        self.embed, self.body = table, Written(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)).tanh())


def language(kind: Any, tied: bool) -> Language:
    torch.manual_seed(0)
    return Language(kind(9, 6, scale=2.5, padding_idx=3), tied=tied).double().eval()


def built_and_oracle(model: Language, rank: int) -> tuple[nn.Module, Language, Configuration]:
    """The factorized network, and the dense one with the product of its factors as weights."""
    spectra = Spectra(model, find_sites(model, TOKENS), [d for d in DECOMPOSITIONS if d.name == "svd"])
    assert (spectra.sites["embed"].scale, spectra.sites["body"].scale) == (2.5, 1.0)
    configuration = Configuration({"embed": ("svd", (rank,)), "body": ("svd", (2,))})
    built, oracle = build(spectra, configuration), copy.deepcopy(model)
    embed, body = built.get_submodule("embed"), built.get_submodule("body")
    with torch.no_grad():
        oracle.embed.weight.copy_(embed[0].weight @ embed[1].weight.T)
        oracle.body.weight.copy_(body[1].weight @ body[0].weight)
    return built, oracle, configuration


@pytest.mark.parametrize("kind", [Scaled, Buffered])
@pytest.mark.parametrize("tied", [False, True])
def test_a_scaled_table_is_factorized_and_its_head_is_not_scaled(kind: Any, tied: bool, tmp_path: Path) -> None:
    model = language(kind, tied)
    built, oracle, configuration = built_and_oracle(model, 3)
    torch.testing.assert_close(built(TOKENS), oracle(TOKENS), rtol=1e-12, atol=1e-12)
    total = find_sites(built, TOKENS, check=False).total
    assert total.params == sum(p.numel() for p in built.parameters()) == 9 * 3 + 6 * 3 + (0 if tied else 54) + 2 * 12 + 6
    assert total.macs == 5 * (3 * 6 + 2 * 12 + (27 + 18 if tied else 54))

    built(TOKENS).square().sum().backward()
    oracle(TOKENS).square().sum().backward()
    table, (low, up) = oracle.embed.weight.grad, (built.get_submodule("embed")[k].weight for k in (0, 1))
    if not tied:  # the chain rule on the table; the padding has no gradient in either use
        torch.testing.assert_close(low.grad, table @ up.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(up.grad, table.T @ low.detach(), rtol=1e-9, atol=1e-9)
    manifest = {"configuration": {s: [d, list(r)] for s, d, r in configuration.choices}}
    folder = export.save(built, tmp_path / "net", manifest=manifest, example=TOKENS, torch_export=True)
    again = export.load(folder, language(kind, tied), TOKENS)
    torch.testing.assert_close(again(TOKENS), built(TOKENS), rtol=1e-12, atol=1e-12)


class Sum(nn.Module):
    """A loss of the embedded tokens alone, the same whether the scale is the table's or the layer's."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.embed = table

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens).mean(dim=1)


@pytest.mark.parametrize("metric", ["activation", "output", "fisher"])
def test_errors_count_what_the_scale_makes_of_them(metric: Any) -> None:
    """In a metric, the squared error of a scaled table is that of a plain one that holds the scale."""
    torch.manual_seed(0)
    scaled = Sum(Scaled(9, 4, scale=2.5)).eval()
    plain = Sum(nn.Embedding(9, 4)).eval()
    with torch.no_grad():
        plain.embed.weight.copy_(scaled.embed.weight * 2.5)
    found = []
    for model in (scaled, plain):
        sites = find_sites(model, TOKENS)
        statistics = collect(model, sites, [(TOKENS, torch.tensor([1, 3]))], labels=GivenLabels())
        spectra = Spectra(model, sites, [d for d in DECOMPOSITIONS if d.name == "svd"], moments=statistics.moments(metric, shrink=False))
        errors = spectra.decomposition("svd").errors(spectra.state(sites["embed"], "svd"))
        found.append(torch.as_tensor((errors.frobenius * errors.norm) ** 2))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-9)


def test_two_scales_of_one_table_are_not_one_site() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Scaled(9, 6, scale=2.0), Scaled(9, 6, scale=3.0)
            self.b.weight = self.a.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.a(tokens) + self.b(tokens)

    sites = find_sites(Two().eval(), TOKENS)
    assert not len(sites) and "used in another way" in sites.skipped[1].reason


class Translates(nn.Module):
    """As T5 and BART keep their table: under a name that is never called, too."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.encode, self.decode = (Scaled(9, 6, scale=2.0) for _ in range(3))
        self.head = nn.Linear(6, 9, bias=False)
        self.encode.weight = self.decode.weight = self.head.weight = self.shared.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encode(tokens) + self.decode(tokens.flip(1)))


def test_a_table_that_is_kept_under_a_name_that_is_not_called_is_a_site() -> None:
    torch.manual_seed(0)
    model = Translates().double().eval()
    sites = find_sites(model, TOKENS)
    (site,) = sites
    assert not sites.skipped and site.name == "encode" and set(site.paths) == {"encode", "decode", "shared", "head"}
    assert site.positions == 2 * 5 and sites["shared"] is site
    built = build(Spectra(model, sites), Configuration({"shared": ("svd", (2,))}))
    assert built.get_submodule("shared") is built.get_submodule("encode") is built.get_submodule("decode")
    oracle = copy.deepcopy(model)
    oracle.head.weight.data.copy_(built.encode[0].weight @ built.encode[1].weight.T)
    torch.testing.assert_close(built(TOKENS), oracle(TOKENS), rtol=1e-12, atol=1e-12)
    assert find_sites(built, TOKENS, check=False).total.params == sum(p.numel() for p in built.parameters()) == 2 * 9 + 2 * 6


def test_a_name_that_is_not_called_but_used_is_not() -> None:
    class Multiplies(Translates):
        def forward(self, tokens: Tensor) -> Tensor:
            return self.encode(tokens) @ self.shared.weight.T

    model = Multiplies().eval()
    del model.head
    sites = find_sites(model, TOKENS)
    assert not len(sites) and "uses its weight" in {s.name: s.reason for s in sites.skipped}["encode"]
    assert [site.name for site in find_sites(Translates().eval(), TOKENS, exclude="shared")] == []
