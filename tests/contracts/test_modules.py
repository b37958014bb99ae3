"""What every decomposition builds is the dense layer with the reconstructed weight, at the cost that it tells."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from contract_cases import CASES, PAIRS, classes, dense_layer, every, make, over, prepared, second_moments, some
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition
from ranksearch.sites import canonical_weight, find_sites


@every
def test_module_is_the_dense_layer_with_the_reconstructed_weight(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, example = make(kind)
    _, state, errors = prepared(kind, decomposition)
    bias = getattr(layer, "bias", None)
    for k in some(errors, 4):
        factors = decomposition.factors(state, tuple(errors.ranks[k].tolist()))
        dense = dense_layer(layer, site, decomposition.compose(site, factors))
        built = decomposition.module(site, factors, None if bias is None else bias.detach())
        seen = []
        for module in (dense, built):
            inputs = example.clone()
            if example.is_floating_point():
                inputs.requires_grad_()
            output = module(inputs)
            (output * torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)).sum().backward()
            seen.append((output, inputs.grad, bias is not None and _bias_gradient(module)))
        (y, dx, db), (y_built, dx_built, db_built) = seen
        torch.testing.assert_close(y_built, y, rtol=1e-9, atol=1e-9)
        if dx is not None:
            torch.testing.assert_close(dx_built, dx, rtol=1e-9, atol=1e-9)
        if bias is not None:
            torch.testing.assert_close(db_built, db, rtol=1e-9, atol=1e-9)
        if decomposition.storage_only:
            continue
        # every factor enters linearly, so <factor, its gradient> is <W_r, dL/dW_r>, whatever the factor's layout
        weight = dense.get_parameter("weight")
        wanted = float((weight.detach() * weight.grad).sum())
        for name, parameter in built.named_parameters():
            if not name.endswith("bias"):
                assert parameter.grad is not None
                assert float((parameter.detach() * parameter.grad).sum()) == pytest.approx(wanted, rel=1e-8, abs=1e-8)


@every
def test_empty_factors_have_the_shapes_of_factors(kind: str, decomposition: AnyDecomposition) -> None:
    _, site, _ = make(kind)
    _, state, errors = prepared(kind, decomposition)
    for k in classes(decomposition, errors):
        rank = tuple(errors.ranks[k].tolist())
        empty = decomposition.empty_factors(site, rank)
        assert empty is not None
        assert [f.shape for f in empty] == [f.shape for f in decomposition.factors(state, rank)]
        assert all(f.dtype == torch.float64 and f.isfinite().all() and (f != 0).all() for f in empty if f.is_floating_point())


def _bias_gradient(module: nn.Module) -> Tensor:
    biases = [p.grad for name, p in module.named_parameters() if name.endswith("bias")]
    assert len(biases) == 1 and biases[0] is not None
    return biases[0]


@every
def test_costs_are_those_counted_on_the_module(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, example = make(kind)
    _, state, errors = prepared(kind, decomposition)
    params, macs = decomposition.costs(site, errors.ranks)
    assert params.dtype == macs.dtype == np.int64 and params.shape == macs.shape == (len(errors.ranks),)
    bias = getattr(layer, "bias", None)
    for k in classes(decomposition, errors):
        rank = tuple(errors.ranks[k].tolist())
        built = decomposition.module(site, decomposition.factors(state, rank), None if bias is None else bias.detach())
        assert sum(p.numel() for p in built.parameters()) == params[k]
        cost = decomposition.cost(site, rank)
        assert (cost.params, cost.macs) == (params[k], macs[k])
        assert any(parametrize.is_parametrized(m) for m in built.modules()) == decomposition.storage_only
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(example)
        # what puts a weight together is done once per call; all else once per example
        once = macs[k] - site.cost.macs if decomposition.storage_only else 0
        assert once >= 0 and counter.get_total_flops() == 2 * (once + (macs[k] - once) * len(example))


@every
def test_options_are_the_ranks_cheaper_than_dense(kind: str, decomposition: AnyDecomposition) -> None:
    _, site, _ = make(kind)
    options = decomposition.options(site)
    if decomposition.name == "dense":
        assert len(options) == 0
        return
    params, macs = decomposition.costs(site, options)
    assert ((params < site.cost.params) | (macs < site.cost.macs)).all()
    assert (np.diff(params) >= 0).all()
    assert len(np.unique(options, axis=0)) == len(options)


def test_where_a_type_is_not_defined_it_says_why_and_has_no_options() -> None:
    undefined = [case for case in PAIRS if case not in CASES]
    assert undefined
    for kind, decomposition in undefined:
        _, site, _ = make(kind)
        assert decomposition.undefined(site) and len(decomposition.options(site)) == 0


@over([case for case in CASES if case[0] in ("conv3x3", "groups2", "conv1d", "linear", "embedding", "transformers_conv1d")])
def test_inputs_are_untouched(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, _ = make(kind)
    weight = canonical_weight(layer, site).clone()
    kept = weight.clone()
    bias = torch.randn(site.c_out, dtype=weight.dtype) if site.bias else None
    kept_bias = None if bias is None else bias.clone()
    moments = second_moments(site)
    kept_moments = copy.deepcopy(moments)
    random = torch.random.get_rng_state()
    state = decomposition.prepare(site, weight, moments)
    rank = tuple(decomposition.errors(state).ranks[0].tolist())
    factors = decomposition.factors(state, rank)
    kept_factors = [f.clone() for f in factors]
    module = decomposition.module(site, factors, bias)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert torch.equal(weight, kept) and (bias is None or torch.equal(bias, kept_bias))
    assert all(torch.equal(a, b) for a, b in zip(factors, kept_factors, strict=True))
    again = decomposition.factors(state, rank)
    assert all(torch.equal(a, b) for a, b in zip(again, kept_factors, strict=True))
    assert moments.input is not None and torch.equal(moments.input, kept_moments.input)
    assert moments.output is not None and torch.equal(moments.output, kept_moments.output)
    assert torch.equal(random, torch.random.get_rng_state())


@over([case for case in CASES if case[0] in ("conv3x3", "linear", "embedding")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_and_strided_weights(decomposition: AnyDecomposition, dtype: torch.dtype, kind: str) -> None:
    layer, site, _ = make(kind)
    weight = canonical_weight(layer, site).to(dtype)
    scattered = torch.empty(*weight.shape, 2, dtype=dtype)[..., 0].copy_(weight)
    scattered = scattered.transpose(0, 1).contiguous().transpose(0, 1) if kind == "conv3x3" else scattered
    assert not scattered.is_contiguous()
    state = decomposition.prepare(site, scattered)
    errors = decomposition.errors(state)
    rank = tuple(errors.ranks[-1].tolist())
    factors = decomposition.factors(state, rank)
    assert all(f.dtype == torch.float64 for f in factors if f.is_floating_point())
    if decomposition.exact:
        assert (decomposition.compose(site, factors) - weight.double()).norm() <= 1e-10 * weight.double().norm()
    module = decomposition.module(site, tuple(f.to(dtype) for f in factors), None)
    assert all(p.dtype == dtype for p in module.parameters())


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_convolution(data: st.DataObject) -> None:
    """Shapes at large: value and costs of a random type at a random rank."""
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c_in, c_out = (groups * draw(st.integers(1, 4)) for _ in range(2))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    same = draw(st.booleans())
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    layer = nn.Conv2d(
        c_in, c_out, kernel, groups=groups, dilation=dilation, bias=draw(st.booleans()),
        stride=1 if same else draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding="same" if same else draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        padding_mode=draw(st.sampled_from(["zeros", "replicate", "circular"])),
    ).double()  # fmt: skip
    decomposition = draw(st.sampled_from(DECOMPOSITIONS))
    example = torch.randn(2, c_in, 8, 9, dtype=torch.float64)
    site = find_sites(nn.Sequential(layer), example).sites[0]
    if decomposition.undefined(site) is not None:
        return
    state = decomposition.prepare(site, canonical_weight(layer, site))
    errors = decomposition.errors(state)
    k = draw(st.integers(0, len(errors.ranks) - 1))
    rank = tuple(errors.ranks[k].tolist())
    factors = decomposition.factors(state, rank)
    built = decomposition.module(site, factors, None if layer.bias is None else layer.bias.detach())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = built(example)
    torch.testing.assert_close(output, dense_layer(layer, site, decomposition.compose(site, factors))(example))
    cost = decomposition.cost(site, rank)
    assert sum(p.numel() for p in built.parameters()) == cost.params
    once = cost.macs - site.cost.macs if decomposition.storage_only else 0
    assert counter.get_total_flops() == 2 * (once + 2 * (cost.macs - once))
