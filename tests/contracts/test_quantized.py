"""Weights of few bits, over all types: the layer that is built is the dense one with the rounded factors' weight, stores what is
counted, and loses what is told. The oracle is the layer's own answers to unit inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contract_cases import make, metric_norm, prepared, second_moments
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.decompositions import BITS, DECOMPOSITIONS, KNOWN, Quantized, Rank
from ranksearch.decompositions.metric import conditioned
from ranksearch.decompositions.quantized_layer import QuantizedLayer
from ranksearch.decompositions.rounding import balanced, layout, rounded, weights_of
from ranksearch.networks.merge import weight_of
from ranksearch.sites import Call, Site, canonical_weight, find_sites

KINDS = ["conv3x3", "groups2", "circular_stride2", "same_even", "conv1d", "conv3d_circular", "linear", "embedding", "depthwise_x2_strided"]
CASES = [(k, d) for k in KINDS for d in KNOWN if isinstance(d, Quantized) and d.undefined(make(k)[1]) is None]
each = pytest.mark.parametrize(("kind", "decomposition"), CASES, ids=[f"{k}-{d.name}" for k, d in CASES])


def rounded_factors(kind: str, decomposition: Quantized) -> tuple[Rank, tuple[Tensor, ...]]:
    """A middle rank, and its factors in the weight metric."""
    _, site, _ = make(kind)
    weight, inner, errors = prepared(kind, decomposition.inner)
    rank = tuple(errors.ranks[len(errors.ranks) // 2].tolist())
    return rank, decomposition.factors(decomposition.on(site, weight, None, inner), rank)


@each
def test_a_layer_of_few_bits_is_what_its_factors_costs_and_bytes_say(kind: str, decomposition: Quantized) -> None:
    layer, site, example = make(kind)
    rank, factors = rounded_factors(kind, decomposition)
    bias = getattr(layer, "bias", None)
    built = decomposition.module(site, factors, None if bias is None else bias.detach())
    weights = [module for module in built.modules() if isinstance(module, QuantizedLayer)]
    assert weights and not [name for name, _ in built.named_parameters() if not name.endswith("bias")]
    own = weight_of(built, layer, site)  # what the built layer computes
    torch.testing.assert_close(own, decomposition.compose(site, factors).reshape(own.shape), rtol=1e-9, atol=1e-9)

    costs, held = decomposition.cost(site, rank), decomposition.held(site, np.array([rank], dtype=np.int64).reshape(1, -1))
    assert costs.params == sum(math.prod(m.shape) for m in weights) + (0 if bias is None else bias.numel())
    assert int(held[0][0]) + 8 * int(held[1][0]) == sum(t.numel() * t.itemsize for t in built.state_dict().values())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built(example)
    assert counter.get_total_flops() == 2 * costs.macs * len(example)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("kind", "name"), [("groups2", "svd"), ("conv3x3", "tucker2"), ("embedding", "svd"), ("linear", "dense"), ("conv3x3", "cp")]
)
def test_errors_are_those_of_the_rounded_factors_in_the_metric(kind: str, name: str, bits: int) -> None:
    layer, site, _ = make(kind)
    decomposition = next(d for d in KNOWN if d.name == f"{name}@int{bits}")
    weight, moments = canonical_weight(layer, site).detach().clone(), second_moments(site)
    state = decomposition.prepare(site, weight, moments)
    errors, used = decomposition.errors(state), conditioned(moments, weight)
    norm = metric_norm(site, weight, used)
    assert errors.norm == pytest.approx(norm)
    for k in {0, len(errors.ranks) // 2, len(errors.ranks) - 1}:
        built = decomposition.module(site, decomposition.factors(state, tuple(errors.ranks[k].tolist())), None)
        off = metric_norm(site, weight - weight_of(built, layer, site).reshape(weight.shape), used)
        assert errors.frobenius[k] == pytest.approx(off / norm, rel=1e-6)


@each
def test_weights_are_few_levels_of_one_scale_per_output_channel(kind: str, decomposition: Quantized) -> None:
    layer, site, _ = make(kind)
    _, factors = rounded_factors(kind, decomposition)
    flat = torch.cat([f.flatten() for f in weights_of(factors)])
    top = 2 ** (decomposition.bits - 1) - 1
    seen = 0
    for held in layout(decomposition.inner, site, factors):
        rows = flat[held.places].flatten(1)
        levels = rows / (rows.abs().amax(dim=1, keepdim=True) / top).clamp_min(1e-300)
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-6)
        seen += held.places.numel()
    assert seen == len(flat)
    again = decomposition.module(site, factors, None)  # rounding what is rounded changes nothing
    wanted = decomposition.compose(site, factors).reshape(site.shape)
    torch.testing.assert_close(weight_of(again, layer, site), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["svd", "svd_in", "spatial", "tucker2", "grouped_svd", "tiled_svd", "cp", "decoupled"])
def test_balancing_keeps_the_weight_and_evens_what_a_layer_reads(name: str) -> None:
    layer, site, _ = make("conv3x3")
    decomposition = next(d for d in DECOMPOSITIONS if d.name == name)
    rank = (2, 2, 2) if name == "tiled_svd" else tuple(decomposition.ranks(site)[len(decomposition.ranks(site)) // 2].tolist())
    factors = decomposition.factors(decomposition.prepare(site, canonical_weight(layer, site)), rank)
    factors = tuple(f * torch.linspace(0.1, 5.0, f.numel(), dtype=f.dtype).reshape(f.shape) for f in factors)  # far from even
    held = layout(decomposition, site, factors)
    even = balanced(held, factors)
    torch.testing.assert_close(decomposition.compose(site, even), decomposition.compose(site, factors))
    weight = torch.cat([f.flatten() for f in even])[held[-1].places]
    norms = weight.reshape(held[-1].groups, -1, *weight.shape[1:]).square().sum(dim=(1, *range(3, weight.ndim + 1)))
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("bits", BITS)
def test_rounding_is_to_the_nearest_level_and_four_bits_cut_where_that_is_nearer(bits: int) -> None:
    rows = torch.randn(12, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    rows[3] = 0.0
    found, top = rounded(rows, bits), 2 ** (bits - 1) - 1
    plain = torch.stack([_nearest(row, float(row.abs().max()) / top, top) for row in rows])
    error = (found - rows).square().sum(dim=1)
    assert bool((error <= (plain - rows).square().sum(dim=1) + 1e-15).all()) and not found[3].any()
    if bits == 8:
        torch.testing.assert_close(found, plain)
    else:
        assert bool((error < 0.97 * (plain - rows).square().sum(dim=1)).any())  # some row has values worth cutting


def _nearest(row: Tensor, scale: float, top: int) -> Tensor:
    """Level by level, without a rounding function."""
    levels = torch.arange(-top, top + 1, dtype=torch.float64) * scale
    return levels[(row[:, None] - levels).abs().argmin(dim=1)]


def test_few_bits_lose_more_than_many_and_dense_ones_alone_nothing_else() -> None:
    layer, site, _ = make("linear")
    weight = canonical_weight(layer, site)
    found = {}
    for bits in BITS:
        dense = next(d for d in KNOWN if d.name == f"dense@int{bits}")
        errors = dense.errors(dense.prepare(site, weight))
        found[bits] = float(errors.frobenius[0])
        assert errors.ranks.shape == (1, 0) and len(dense.options(site)) == 1 and dense.describe(site, ()) == f"full, int{bits}"
    assert 0 < found[8] < 0.01 < found[4] < 0.2


def test_where_no_row_is_an_output_channel_bits_say_why() -> None:
    for decomposition in KNOWN:
        if isinstance(decomposition, Quantized):
            for kind in ("transposed2d", "transposed1d"):
                assert decomposition.undefined(make(kind)[1])
    svd = next(d for d in KNOWN if d.name == "svd@int8")
    tied = Site("e", "embedding", 11, 6, calls=(Call(1, (2, 5), (2, 5)),), head=Site("h", "linear", 6, 11))
    assert "tied" in (svd.undefined(tied) or "")


def test_a_network_of_few_bits_is_not_factorized_again() -> None:
    layer, site, example = make("conv3x3")
    decomposition = next(d for d in KNOWN if d.name == "svd@int8")
    built = decomposition.module(site, decomposition.factors(decomposition.prepare(site, canonical_weight(layer, site)), (2,)), None)
    sites = find_sites(nn.Sequential(built), example)
    assert not sites.sites and any("quantized" in skipped.reason for skipped in sites.skipped)
