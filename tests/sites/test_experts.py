"""Fused experts, one by one: the same outputs, gradients and costs, and every matrix a site."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidModel
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import UnpackedExperts, find_sites, unpack_experts
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import collect

TOKENS = torch.tensor([[1, 5, 2, 6, 4, 3, 7]])
E, D, H = 4, 6, 5


class Fused(nn.Module):
    """Experts as transformers holds them, with its attributes."""

    has_post_expert_norm = False

    def __init__(self, *, transposed: bool = False, bias: bool = False, gate: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.is_transposed, self.has_bias, self.has_gate, self.has_post_expert_norm = transposed, bias, gate, norm
        wide = 2 * H if gate else H
        sizes = {"gate_up_proj" if gate else "up_proj": (wide, D), "down_proj": (D, H)}
        for name, (rows, columns) in sizes.items():
            shape = (E, columns, rows) if transposed else (E, rows, columns)
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / 2))
            if bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(E, rows)))
        self.act_fn = nn.SiLU()
        if norm:
            self.post_expert_norm = nn.LayerNorm(D)

    def _apply_gate(self, value: Tensor) -> Tensor:
        gate, up = value[..., ::2], value[..., 1::2]  # interleaved, as in GPT-OSS
        return self.act_fn(gate) * (up + 1)

    def forward(self, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """All experts on all tokens, masked: the plain sum that the layer stands for."""
        first: Any = self.gate_up_proj if self.has_gate else self.up_proj
        first_bias: Any = self._parameters.get("gate_up_proj_bias" if self.has_gate else "up_proj_bias")
        total = torch.zeros_like(hidden)
        for k in range(E):
            a, b = (w[k].T if self.is_transposed else w[k] for w in (first, self.down_proj))
            inner = F.linear(hidden, a, None if first_bias is None else first_bias[k])
            inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
            value = F.linear(inner, b, self.down_proj_bias[k] if self.has_bias else None)
            value = self.post_expert_norm(value) if self.has_post_expert_norm else value
            total = total + value * (weights * (indices == k)).sum(dim=1)[:, None]
        return total


class Mixture(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed, self.router, self.experts = nn.Embedding(8, D), nn.Linear(D, E), Fused(**options)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens).flatten(0, 1)
        weights, indices = self.router(hidden).softmax(dim=1)[:, : E - 1].topk(2)  # the last expert gets nothing
        return self.experts(hidden, indices, weights).reshape(*tokens.shape, D)


def mixture(**options: Any) -> Any:
    torch.manual_seed(0)
    return Mixture(**options).double().eval()


OPTIONS = [{}, {"transposed": True, "bias": True}, {"gate": False}, {"norm": True, "bias": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_outputs_and_gradients_are_those_of_the_fused_form(options: dict[str, bool]) -> None:
    model = mixture(**options)
    before = copy.deepcopy(model.state_dict())
    unpacked: Any = unpack_experts(model)
    torch.testing.assert_close(unpacked(TOKENS), model(TOKENS), rtol=1e-12, atol=1e-12)
    for network in (model, unpacked):
        network(TOKENS).square().sum().backward()
    fused = model.experts
    first = "gate_up_proj" if fused.has_gate else "up_proj"
    for layers, name in ((unpacked.experts.up, first), (unpacked.experts.down, "down_proj")):
        wanted = getattr(fused, name).grad
        wanted = wanted.mT if fused.is_transposed else wanted
        got = torch.stack([layer.weight.grad for layer in layers])
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        if fused.has_bias:
            got = torch.stack([layer.bias.grad for layer in layers])
            torch.testing.assert_close(got, getattr(fused, f"{name}_bias").grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(unpacked.router.weight.grad, model.router.weight.grad, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in unpacked.parameters():
            parameter.zero_()
    assert bool((model.experts.down_proj != 0).any())
    assert sum(p.numel() for p in unpacked.parameters()) == sum(p.numel() for p in model.parameters())


def test_costs_are_those_of_the_tokens_that_are_routed() -> None:
    fused = find_sites(mixture(), TOKENS)
    assert {s.name: "unpack_experts" in s.reason for s in fused.skipped} == {"experts": True}
    unpacked = unpack_experts(mixture())
    sites = find_sites(unpacked, TOKENS)
    assert sites.total.params == fused.total.params
    assert {site.name for site in sites} == {"embed", "router", *(f"experts.{half}.{k}" for half in ("up", "down") for k in range(E))}
    routed = [sites[f"experts.up.{k}"].positions for k in range(E)]
    assert sum(routed) == 2 * TOKENS.numel() and routed[-1] == 0
    assert routed == [sites[f"experts.down.{k}"].positions for k in range(E)]
    assert sites.total.macs == TOKENS.numel() * (D * E + 2 * (2 * H * D + D * H))


def test_experts_are_factorized_one_by_one() -> None:
    unpacked: Any = unpack_experts(mixture(bias=True))
    svd = next(d for d in DECOMPOSITIONS if d.name == "svd")
    spectra = Spectra(unpacked, find_sites(unpacked, TOKENS), [svd])
    configuration = Configuration({"experts.up.0": ("svd", (2,)), "experts.down.0": ("svd", (1,)), "experts.up.3": ("svd", (3,))})
    built, oracle = build(spectra, configuration), copy.deepcopy(unpacked)
    total = spectra.sites.total
    for name, _, rank in configuration.choices:
        site = spectra.sites[name]
        total = total - site.cost + svd.cost(site, rank)
        oracle.get_submodule(name).weight.data.copy_(svd.compose(site, spectra.factors(site, "svd", rank)).reshape(site.shape[:2]))
    torch.testing.assert_close(built(TOKENS), oracle(TOKENS), rtol=1e-11, atol=1e-11)
    assert find_sites(built, TOKENS, check=False).total == total


def test_statistics_are_of_the_tokens_that_an_expert_gets() -> None:
    unpacked: Any = unpack_experts(mixture())
    sites = find_sites(unpacked, TOKENS)
    statistics = collect(unpacked, sites, [TOKENS], labels=None)
    seen: list[Tensor] = []
    handle = unpacked.experts.up[1].register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    unpacked(TOKENS)
    handle.remove()
    (rows,) = seen
    wanted = rows.T @ rows / len(rows)
    got = statistics.input_moment("experts.up.1", shrink=False)
    assert len(rows) and got is not None
    torch.testing.assert_close(got[0], wanted, rtol=1e-5, atol=1e-7)
    assert "not called" not in statistics.uncovered.get("experts.up.1", "")
    assert "no statistics" in statistics.uncovered["experts.up.3"]


def test_reconstruction_fits_experts_to_dense_answers_at_the_tokens_that_they_get_now() -> None:
    """What an expert is given depends on what came before it, so that two networks need not route alike: the answers are those of the
    dense expert to the tokens of the compressed network, here by NumPy."""
    unpacked: Any = unpack_experts(mixture())
    spectra = Spectra(unpacked, find_sites(unpacked, TOKENS))
    configuration = Configuration({"experts.up.0": ("svd", (2,)), "router": ("svd", (1,))})
    built: Any = build(spectra, configuration)
    done = reconstruct(built, spectra, configuration, [TOKENS], ridge=1e-6, held_out=0)
    assert [each.site for each in done] == ["router", "experts.up.0"]
    seen: list[Tensor] = []
    handle = built.experts.up[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        built(TOKENS)
        handle.remove()
        wanted = unpacked.experts.up[0](seen[0]).double()
        left = float((built.experts.up[0](seen[0]) - wanted).square().sum())
    if unpacked.experts.up[0].bias is not None:
        wanted = wanted - wanted.mean(0)
    best = float(torch.linalg.svdvals(wanted)[2:].square().sum())
    assert len(seen[0]) > 2 and left == pytest.approx(best, rel=1e-3, abs=1e-6 * float(wanted.square().sum()))


class Sharpened(Fused):
    def forward(self, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        return super().forward(hidden, indices, weights.square())


class Keyed(Fused):
    def forward(self, hidden: Tensor, *, routing: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(hidden, *routing)


@pytest.mark.parametrize(
    ("kind", "reason"), [(Sharpened, "its forward pass computes something else"), (Keyed, "its forward pass is another")]
)
def test_other_forward_passes_are_refused(kind: type[Fused], reason: str) -> None:
    model = mixture()
    model.experts = kind().double()
    with pytest.raises(InvalidModel, match=rf"'experts' cannot be unpacked: {reason}"):
        unpack_experts(model)
    assert isinstance(unpack_experts(model, exclude="experts").get_submodule("experts"), kind)


def test_weights_that_something_else_uses_are_refused() -> None:
    model = mixture()
    model.second = nn.Module()
    model.second.down = model.experts.down_proj
    with pytest.raises(InvalidModel, match="also used by 'second'"):
        unpack_experts(model)


def test_mixtures_of_transformers_keep_outputs_and_costs() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    unpacked = unpack_experts(model)
    assert isinstance(unpacked.get_submodule("model.layers.0.mlp.experts"), UnpackedExperts)
    example = {"input_ids": TOKENS}
    with torch.no_grad():
        torch.testing.assert_close(unpacked(**example).logits, model(**example).logits, rtol=1e-4, atol=1e-4)
    assert find_sites(unpacked, example).total == find_sites(model, example).total
