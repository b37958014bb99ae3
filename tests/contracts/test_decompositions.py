"""What every decomposition must do at every kind of site, against dense oracles that know nothing of spectra."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Moments, describe
from ranksearch.decompositions.decomposition import Errors
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site, canonical_weight, find_sites

IMAGE = (2, 6, 9, 10)


def _conv1d_of_transformers() -> nn.Module:
    module = pytest.importorskip("transformers.pytorch_utils").Conv1D(7, 5)
    nn.init.normal_(module.bias)
    return module


# name -> (layer, example input)
SITES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "conv3x3": (lambda: nn.Conv2d(6, 8, 3), lambda: torch.randn(IMAGE)),
    "stride2_pad1": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), lambda: torch.randn(IMAGE)),
    "stride2x1_pad1x2": (lambda: nn.Conv2d(6, 4, 3, stride=(2, 1), padding=(1, 2)), lambda: torch.randn(IMAGE)),
    "same": (lambda: nn.Conv2d(6, 8, 3, padding="same"), lambda: torch.randn(IMAGE)),
    "same_even": (lambda: nn.Conv2d(6, 4, (4, 2), padding="same"), lambda: torch.randn(IMAGE)),
    "dilated": (lambda: nn.Conv2d(6, 4, 3, dilation=(2, 1), padding=2), lambda: torch.randn(IMAGE)),
    "groups2": (lambda: nn.Conv2d(6, 8, 3, groups=2, padding=1), lambda: torch.randn(IMAGE)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1), lambda: torch.randn(IMAGE)),
    "depthwise_x2_strided": (lambda: nn.Conv2d(6, 12, 3, groups=6, stride=(1, 2)), lambda: torch.randn(IMAGE)),
    "conv1x1": (lambda: nn.Conv2d(6, 8, 1), lambda: torch.randn(IMAGE)),
    "conv1x1_stride2": (lambda: nn.Conv2d(6, 8, 1, stride=2), lambda: torch.randn(IMAGE)),
    "conv1x5": (lambda: nn.Conv2d(6, 8, (1, 5), padding=(0, 2)), lambda: torch.randn(IMAGE)),
    "conv5x1": (lambda: nn.Conv2d(6, 8, (5, 1)), lambda: torch.randn(IMAGE)),
    "conv5x3_reflect": (lambda: nn.Conv2d(6, 4, (5, 3), padding=(2, 1), padding_mode="reflect"), lambda: torch.randn(IMAGE)),
    "circular_stride2": (lambda: nn.Conv2d(6, 4, 3, padding=1, stride=2, padding_mode="circular"), lambda: torch.randn(IMAGE)),
    "one_channel": (lambda: nn.Conv2d(1, 8, 3, padding=1), lambda: torch.randn(2, 1, 7, 8)),
    "one_filter": (lambda: nn.Conv2d(6, 1, 3, padding=1), lambda: torch.randn(IMAGE)),
    "conv1d": (lambda: nn.Conv1d(6, 8, 3, stride=2, padding=1), lambda: torch.randn(2, 6, 11)),
    "conv1d_same": (lambda: nn.Conv1d(4, 4, 4, padding="same", groups=2), lambda: torch.randn(2, 4, 11)),
    "linear": (lambda: nn.Linear(12, 8), lambda: torch.randn(3, 12)),
    "linear_tokens": (lambda: nn.Linear(6, 9, bias=False), lambda: torch.randn(2, 5, 6)),
    "embedding": (lambda: nn.Embedding(11, 6), lambda: torch.randint(0, 11, (2, 5))),
    "transformers_conv1d": (_conv1d_of_transformers, lambda: torch.randn(2, 3, 5)),
}
CASES = [(kind, d) for kind in SITES for d in DECOMPOSITIONS]
every = pytest.mark.parametrize(("kind", "decomposition"), CASES, ids=[f"{k}-{d.name}" for k, d in CASES])


def make(kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Site, Tensor]:
    layer, example = SITES[kind][0]().to(dtype), SITES[kind][1]()
    example = example.to(dtype) if example.is_floating_point() else example
    sites = find_sites(nn.Sequential(layer), example)
    assert len(sites) == 1, sites.skipped
    return layer, sites.sites[0], example


def defined(decomposition: AnyDecomposition, site: Site) -> None:
    reason = decomposition.undefined(site)
    if reason is not None:
        assert reason and len(decomposition.options(site)) == 0
        pytest.skip(reason)


def some(errors: Errors, count: int = 5) -> list[int]:
    """Positions of a few ranks, the first and the last among them."""
    return sorted(set(np.linspace(0, len(errors.ranks) - 1, count).round().astype(int).tolist()))


def classes(decomposition: AnyDecomposition, errors: Errors) -> list[int]:
    """Positions of a few ranks, among them the first and the last of every structure: of every group or tile count, or of every set of
    bonds of a network that are wider than 1."""
    if decomposition.storage_only:
        keys = [tuple(r > 1 for r in row) for row in errors.ranks.tolist()]
    else:
        keys = [tuple(row[: decomposition.labels]) for row in errors.ranks.tolist()]
    ends = {key: k for k, key in reversed(list(enumerate(keys)))}.values(), {key: k for k, key in enumerate(keys)}.values()
    return sorted({*some(errors, 4), *(k for end in ends for k in end)})


def lowered(site: Site, weight: Tensor) -> list[Tensor]:
    return list(weight.reshape(site.groups, -1, weight[0].numel()))


def folding(name: str, site: Site, weight: Tensor) -> list[Tensor]:
    """The matrices, one per group, whose truncation a type is: what its operator norm is of."""
    if name in ("spatial", "spatial_t", "svd_in"):
        order = {"spatial": "goihw->gohiw", "spatial_t": "goihw->gowih", "svd_in": "goihw->gohwi"}[name]
        split = weight.reshape(site.groups, -1, *weight.shape[1:])
        split = torch.einsum(order, split)
        rows = 3 if name != "svd_in" else 4
        return [m.flatten(rows - 1).flatten(0, rows - 2) for m in split]
    if name == "decoupled":
        return [filter.flatten(1) for filter in weight]
    return lowered(site, weight)


def operator(matrices: list[Tensor]) -> float:
    return max(float(torch.linalg.matrix_norm(m, 2)) for m in matrices)


def dense_layer(layer: nn.Module, site: Site, weight: Tensor) -> nn.Module:
    dense = copy.deepcopy(layer)
    stored = dense.get_parameter("weight")
    plain = weight.reshape(site.shape).flatten(1) if site.kind in ("embedding", "transformers_conv1d", "linear") else weight
    plain = plain.T if site.kind in ("embedding", "transformers_conv1d") else plain
    with torch.no_grad():
        stored.copy_(plain.reshape(stored.shape))
    return dense


@every
def test_full_rank_reconstructs(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, _ = make(kind)
    defined(decomposition, site)
    if not decomposition.exact:
        pytest.skip("not exact at its largest rank")
    weight = canonical_weight(layer, site)
    state = decomposition.prepare(site, weight)
    errors = decomposition.errors(state)
    rank = tuple(errors.ranks[-1].tolist())
    assert (decomposition.reconstruct(site, state, rank) - weight).norm() <= 1e-10 * weight.norm()
    assert errors.frobenius[-1] <= 1e-7  # the square root of a sum of eigenvalues of rounding size


@every
def test_errors_are_those_of_the_reconstruction(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, _ = make(kind)
    defined(decomposition, site)
    weight = canonical_weight(layer, site)
    state = decomposition.prepare(site, weight)
    errors = decomposition.errors(state)
    n = len(errors.ranks)
    assert errors.ranks.dtype == np.int64 and errors.ranks.ndim == 2
    assert errors.frobenius.shape == errors.operator.shape == (n,)
    if decomposition.exact:  # types that fit, not truncate, may refuse ranks (cp) or learn which there are (adaptive)
        assert np.array_equal(errors.ranks, decomposition.ranks(site))
    assert errors.norm == pytest.approx(float(weight.norm()))
    scale = operator(folding(decomposition.name, site, weight))
    for k in some(errors, n if n < 12 else 8):
        dense = decomposition.reconstruct(site, state, tuple(errors.ranks[k].tolist()))
        assert dense.shape == site.shape and dense.dtype == torch.float64
        residual = weight - dense
        frobenius = float(residual.norm() / weight.norm())
        if errors.frobenius_is == "bound":
            assert frobenius <= errors.frobenius[k] + 1e-7
        else:
            assert frobenius == pytest.approx(errors.frobenius[k], abs=1e-7)
        if np.isnan(errors.operator[k]):
            continue
        norm = operator(folding(decomposition.name, site, residual)) / scale
        if errors.operator_is == "bound":
            assert norm <= errors.operator[k] + 1e-7
        else:
            assert norm == pytest.approx(errors.operator[k], abs=1e-7)


@every
def test_errors_fall_with_rank(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, _ = make(kind)
    defined(decomposition, site)
    if not decomposition.nested:
        pytest.skip("not nested")
    errors = decomposition.errors(decomposition.prepare(site, canonical_weight(layer, site)))
    ranks = errors.ranks
    same = (ranks[:, None, : decomposition.labels] == ranks[None, :, : decomposition.labels]).all(axis=2)
    below = same & (ranks[:, None] <= ranks[None]).all(axis=2)  # [a, b]: a is nowhere larger than b
    a, b = np.nonzero(below)
    assert (errors.frobenius[b] <= errors.frobenius[a] + 1e-9).all()
    assert (errors.frobenius >= 0).all() and (errors.frobenius <= 1 + 1e-9).all()
    if errors.operator_is == "exact" and decomposition.labels == 0:
        assert (errors.operator[b] <= errors.operator[a] + 1e-9).all()


@every
def test_module_is_the_dense_layer_with_the_reconstructed_weight(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, example = make(kind)
    defined(decomposition, site)
    state = decomposition.prepare(site, canonical_weight(layer, site))
    errors = decomposition.errors(state)
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


def _bias_gradient(module: nn.Module) -> Tensor:
    biases = [p.grad for name, p in module.named_parameters() if name.endswith("bias")]
    assert len(biases) == 1 and biases[0] is not None
    return biases[0]


@every
def test_costs_are_those_counted_on_the_module(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, example = make(kind)
    defined(decomposition, site)
    state = decomposition.prepare(site, canonical_weight(layer, site))
    errors = decomposition.errors(state)
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
        for batch in (1, len(example)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                built(example[:batch])
            # what puts a weight together is done once per call; all else once per example
            once = macs[k] - site.cost.macs if decomposition.storage_only else 0
            assert once >= 0 and counter.get_total_flops() == 2 * (once + (macs[k] - once) * batch)


@every
def test_options_are_the_ranks_cheaper_than_dense(kind: str, decomposition: AnyDecomposition) -> None:
    _, site, _ = make(kind)
    options = decomposition.options(site)
    if decomposition.undefined(site) is not None or decomposition.name == "dense":
        assert len(options) == 0
        return
    params, macs = decomposition.costs(site, options)
    assert ((params < site.cost.params) | (macs < site.cost.macs)).all()
    assert (np.diff(params) >= 0).all()
    assert len(np.unique(options, axis=0)) == len(options)


@every
def test_inputs_are_untouched(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, _ = make(kind)
    defined(decomposition, site)
    weight = canonical_weight(layer, site).clone()
    kept = weight.clone()
    bias = torch.randn(site.c_out, dtype=weight.dtype) if site.bias else None
    kept_bias = None if bias is None else bias.clone()
    moments = _moments(site)
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


def _moments(site: Site, rank: int | None = None) -> Moments:
    """Random second moments; ``rank`` below the dimension makes them singular."""
    generator = torch.Generator().manual_seed(1)
    d, m = int(np.prod(site.shape[1:])), site.c_out // site.groups
    x = torch.randn(site.groups, rank or 3 * d, d, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(0.2, 3.0, d, dtype=torch.float64)  # far from the identity
    x = x + 0.7 * x.roll(1, dims=2)
    y = torch.randn(site.groups, rank or 3 * m, m, generator=generator, dtype=torch.float64)
    return Moments(x.mT @ x / x.shape[1], y.mT @ y / y.shape[1])


def _metric_norm(site: Site, weight: Tensor, moments: Moments) -> float:
    w = weight.reshape(site.groups, -1, int(np.prod(site.shape[1:])))
    a = w if moments.input is None else w @ moments.input.to(w.dtype)
    g = a if moments.output is None else moments.output.to(w.dtype) @ a
    return float((g * w).sum().clamp_min(0)) ** 0.5


@every
@pytest.mark.parametrize("metric", ["activation", "fisher", "singular"])
def test_errors_hold_in_the_metric(kind: str, decomposition: AnyDecomposition, metric: str) -> None:
    layer, site, _ = make(kind)
    defined(decomposition, site)
    weight = canonical_weight(layer, site)
    moments = _moments(site, rank=2 if metric == "singular" else None)
    if metric == "activation":
        moments = Moments(moments.input)
    state = decomposition.prepare(site, weight, moments)
    errors = decomposition.errors(state)
    norm = _metric_norm(site, weight, moments)
    assert errors.norm == pytest.approx(norm, rel=1e-3)  # what little a floor on the moments changes
    for k in some(errors, 4):
        rank = tuple(errors.ranks[k].tolist())
        factors = decomposition.factors(state, rank)
        assert all(bool(f.isfinite().all()) for f in factors)
        residual = weight - decomposition.compose(site, factors)
        relative = _metric_norm(site, residual, moments) / norm
        if errors.frobenius_is == "bound" or metric == "singular":
            assert relative <= errors.frobenius[k] + 1e-3
        else:
            assert relative == pytest.approx(errors.frobenius[k], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS, ids=lambda d: d.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["conv3x3", "linear", "embedding"])
def test_low_precision_and_strided_weights(decomposition: AnyDecomposition, dtype: torch.dtype, kind: str) -> None:
    layer, site, _ = make(kind)
    defined(decomposition, site)
    weight = canonical_weight(layer, site).to(dtype)
    scattered = torch.empty(*weight.shape, 2, dtype=dtype)[..., 0].copy_(weight)
    scattered = scattered.transpose(0, 1).contiguous().transpose(0, 1) if kind == "conv3x3" else scattered
    assert not scattered.is_contiguous()
    state = decomposition.prepare(site, scattered)
    errors = decomposition.errors(state)
    rank = tuple(errors.ranks[-1].tolist())
    factors = decomposition.factors(state, rank)
    assert all(f.dtype == torch.float64 for f in factors)
    if decomposition.exact:
        assert (decomposition.compose(site, factors) - weight.double()).norm() <= 1e-10 * weight.double().norm()
    module = decomposition.module(site, tuple(f.to(dtype) for f in factors), None)
    assert all(p.dtype == dtype for p in module.parameters())


@every
def test_zero_weight_has_no_error_and_finite_factors(kind: str, decomposition: AnyDecomposition) -> None:
    _, site, _ = make(kind)
    defined(decomposition, site)
    for moments in (None, _moments(site)):
        state = decomposition.prepare(site, torch.zeros(site.shape, dtype=torch.float64), moments)
        errors = decomposition.errors(state)
        assert (errors.frobenius == 0).all() and errors.norm == 0
        assert (np.nan_to_num(errors.operator) == 0).all()
        factors = decomposition.factors(state, tuple(errors.ranks[0].tolist()))
        assert all(bool(f.isfinite().all()) for f in factors)
        assert float(decomposition.compose(site, factors).abs().max()) == 0


@every
def test_ranks_are_described(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, _ = make(kind)
    defined(decomposition, site)
    ranks = decomposition.errors(decomposition.prepare(site, canonical_weight(layer, site))).ranks.tolist()
    texts = [describe(site, decomposition.name, rank) for rank in ranks]
    assert len(set(texts)) == len(ranks)  # no two ranks read alike
    for rank, text in zip(ranks, texts, strict=True):
        assert text and "\n" not in text and text == decomposition.describe(site, tuple(rank))
        shown = [r for r in rank if r > 1] if decomposition.name == "adaptive" else rank
        assert [int(n) for n in re.findall(r"(?<![a-z])\d+", text)] == shown


def test_descriptions_read_well() -> None:
    _, site, _ = make("conv3x3")
    _, matrix, _ = make("linear")
    assert describe(site, "dense", ()) == "full" and describe(site, "svd", [12]) == "r=12"
    assert describe(site, "tucker2", (8, 12)) == "in 8, out 12" and describe(site, "grouped_svd", (4, 6)) == "4 groups, r=6"
    assert describe(site, "tiled_svd", (2, 4, 6)) == "2 x 4 tiles, r=6" and describe(site, "decoupled", (2,)) == "2 per filter"
    assert describe(site, "tensor_train", (4, 8, 6)) == "bonds 4-8-6" and describe(site, "tensor_ring", (4, 2, 2)) == "ring 4-2-2"
    assert describe(site, "adaptive", (2, 1, 1, 1, 3, 1, 1, 1, 1, 5)) == "o-2-i, i-3-h, w-5-hub"
    assert describe(matrix, "adaptive", (1, 4, 1, 1, 1, 1, 1, 1, 1, 1)) == "o1-4-i1"
    assert describe(site, "adaptive", (1,) * 10) == "rank one"
    with pytest.raises(InvalidArgument, match="svdd"):
        describe(site, "svdd", (1,))


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


@pytest.mark.parametrize("kind", list(SITES))
def test_no_network_has_two_names(kind: str) -> None:
    """Options of equal cost and equal weight are the same network under two names."""
    layer, site, _ = make(kind)
    weight = canonical_weight(layer, site)
    seen: dict[tuple[int, int], list[tuple[str, tuple[int, ...], Tensor]]] = {}
    for decomposition in DECOMPOSITIONS:
        if decomposition.undefined(site) is not None or not decomposition.exact:
            continue
        state = decomposition.prepare(site, weight)
        for row in decomposition.options(site):
            rank = tuple(row.tolist())
            cost = decomposition.cost(site, rank)
            dense = decomposition.reconstruct(site, state, rank)
            for name, other, value in seen.setdefault((cost.params, cost.macs), []):
                assert (dense - value).norm() > 1e-8 * weight.norm(), f"{name}{other} is {decomposition.name}{rank}"
            seen[cost.params, cost.macs].append((decomposition.name, rank, dense))
