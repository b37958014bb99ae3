"""Second moments of any rank and scale, in every type, against an independent dense float64 oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import conv
from torch import Tensor

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Moments, tensor_train
from ranksearch.decompositions.metric import FLOOR, FlooredMoments, conditioned, floored, half, halved, residual_energy, whitener
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Call, Site


def matrix(count: int, size: int, seed: int) -> Tensor:
    """A second moment of so many samples, shape (size, size)."""
    x = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.T @ x / count


def few(groups: int, size: int, seed: int) -> Tensor:
    """Two samples: singular."""
    return torch.stack([matrix(2, size, seed + g) for g in range(groups)])


def one(groups: int, size: int, seed: int) -> Tensor:
    return torch.stack([matrix(1, size, seed + g) for g in range(groups)])


def dead(groups: int, size: int, seed: int) -> Tensor:
    """A unit that is never active, and the first group altogether (where there is another)."""
    moment = torch.stack([matrix(3 * size, size, seed + g) for g in range(groups)])
    moment[:, 0] = moment[:, :, 0] = 0
    if groups > 1:
        moment[0] = 0
    return moment


def rounded(groups: int, size: int, seed: int) -> Tensor:
    """Singular, and slightly indefinite by float32 arithmetic and then some: rounding may be unlucky."""
    moment = few(groups, size, seed).float().double()
    noise = torch.randn(moment.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return moment + 1e-7 * moment.abs().amax() * (noise + noise.mT)


def mixed(groups: int, size: int, seed: int) -> Tensor:
    """Units whose scales run from 1e-15 to 1e15, entries from 1e-30 to 1e30."""
    scale = torch.logspace(-15, 15, size, dtype=torch.float64)
    return scale[:, None] * torch.stack([matrix(3 * size, size, seed + g) for g in range(groups)]) * scale


def plain(groups: int, size: int, seed: int) -> Tensor:
    return torch.stack([matrix(3 * size, size, seed + g) for g in range(groups)])


KINDS = {
    "few": few,
    "one": one,
    "dead": dead,
    "rounded": rounded,
    "mixed": mixed,
    "zero": lambda groups, size, seed: torch.zeros(groups, size, size, dtype=torch.float64),
    "tiny": lambda groups, size, seed: 1e-30 * plain(groups, size, seed),
    "huge": lambda groups, size, seed: 1e30 * plain(groups, size, seed),
    "huge_one": lambda groups, size, seed: 1e30 * one(groups, size, seed),
    "largest_float32": lambda groups, size, seed: (plain(groups, size, seed) / plain(groups, size, seed).abs().max() * 3e38).float(),
}


def floor_by_hand(moment: np.ndarray) -> np.ndarray:
    """The floor as docs/metrics.md states it, in numpy: groups one by one, by eigenvalues."""
    moment = np.asarray(moment, dtype=np.float64)
    traces = np.trace(moment, axis1=1, axis2=2)
    result = []
    for group, trace in zip(moment, traces, strict=True):
        if traces.max() == 0:
            result.append(np.eye(len(group)))
            continue
        floor = FLOOR * (trace if trace > 0 else traces.max())
        values, vectors = np.linalg.eigh((group + group.T) / 2)
        if -floor < values[0] < floor:
            values = values + 2 * floor
        result.append((vectors * np.maximum(values, floor)) @ vectors.T)
    return np.stack(result)


def oracle(site: Site, residual: Tensor, moments: Moments) -> float:
    """tr(G R A R^T) of the floored moments, group by group, by explicit traces."""
    blocks = residual.reshape(site.groups, site.c_out // site.groups, -1).numpy()
    a, g = (None if m is None else floor_by_hand(m.numpy()) for m in (moments.input, moments.output))
    total = 0.0
    for k, block in enumerate(blocks):
        seen = block if a is None else block @ a[k]
        seen = seen if g is None else g[k] @ seen
        total += float(np.trace(seen @ block.T))
    return max(total, 0.0)


SITES = {
    "conv": lambda: conv(4, 3)[0],
    "groups": lambda: conv(6, 4, groups=2)[0],
    "linear": lambda: Site("x", "linear", 6, 4, kernel=(1, 1), groups=1, calls=(Call(1, (1, 1), (1, 1)),), bias=False),
}
# fitted as a whole in the metric. In others it couples parts that are fitted one by one, or that are measured in it alone: their errors
# need not fall with the rank, nor be below that of no layer at all
JOINT = ("dense", "svd", "svd_in", "spatial", "spatial_t", "tucker2")


def case(kind: str, part: str, site: Site) -> Moments:
    d, o = math.prod(site.shape[1:]), site.c_out // site.groups
    a, g = KINDS[kind](site.groups, d, 1), KINDS[kind](site.groups, o, 2)
    return Moments(None if part == "output alone" else a, None if part == "input alone" else g)


# what a fit of storage does not see of the moments, one of them alone does not show either: they are in its errors
@pytest.fixture
def _few_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank of a train is fitted by itself in a metric, and three of them are looked at here."""
    monkeypatch.setattr(tensor_train, "MEASURED", 10)


ANY = [(d, kind, "both") for d in DECOMPOSITIONS for kind in KINDS]
ANY += [
    (d, kind, part)
    for d in DECOMPOSITIONS
    if not d.storage_only
    for kind in ("few", "dead", "mixed", "huge_one")
    for part in ("input alone", "output alone")
]


@pytest.mark.usefixtures("_few_measured")
@pytest.mark.parametrize(("decomposition", "kind", "part"), ANY, ids=[f"{d.name}-{kind}-{part}" for d, kind, part in ANY])
def test_any_moments_in_every_type(decomposition: AnyDecomposition, kind: str, part: str) -> None:
    """Errors are those of the factors and end at none, those of types fitted as a whole fall with the rank; factors are finite, in float32
    as well."""
    for make in SITES.values():
        site = make()
        weight = torch.randn(site.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        if decomposition.undefined(site) is not None:
            continue
        check(decomposition, site, weight, case(kind, part, site))


def check(decomposition: AnyDecomposition, site: Site, weight: Tensor, moments: Moments) -> None:
    state = decomposition.prepare(site, weight, moments)
    errors = decomposition.errors(state)
    norm = math.sqrt(oracle(site, weight, moments))
    assert math.isfinite(errors.norm) and errors.norm == pytest.approx(norm, rel=1e-6)
    assert np.isfinite(errors.frobenius).all() and (errors.frobenius >= 0).all()
    assert (np.nan_to_num(errors.operator) >= 0).all() and not np.isinf(errors.operator).any()
    if decomposition.name in JOINT:
        assert (errors.frobenius <= 1 + 1e-6).all()
        a, b = np.nonzero((errors.ranks[:, None] <= errors.ranks[None]).all(axis=2))
        # closed forms always; local optima as far as a metric whose eigenvalues span eight orders of magnitude lets them be found
        slack = 1e-6 if errors.frobenius_is == "exact" else 1e-3
        assert (errors.frobenius[b] <= errors.frobenius[a] * 1.02 + slack).all()
    for k in sorted({0, len(errors.ranks) // 3, len(errors.ranks) - 1}):
        factors = decomposition.factors(state, tuple(errors.ranks[k].tolist()))
        assert all(bool(f.isfinite().all() & f.float().isfinite().all()) for f in factors)
        residual = weight - decomposition.compose(site, factors)
        found = math.sqrt(oracle(site, residual, moments)) / norm
        if errors.frobenius_is == "bound":
            assert found <= errors.frobenius[k] + 1e-6
        else:
            assert found == pytest.approx(errors.frobenius[k], rel=1e-4, abs=1e-6)
    if decomposition.exact:
        full = weight - decomposition.reconstruct(site, state, tuple(errors.ranks[-1].tolist()))
        assert full.norm() <= 1e-6 * weight.norm() and errors.frobenius[-1] <= 1e-6


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_moments_at_large(data: st.DataObject) -> None:
    """Any rank, scale and shape, in a type drawn at random."""
    draw = data.draw
    groups = draw(st.sampled_from([1, 1, 2]))
    c_out, c_in = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 3))
    site, _ = conv(c_out, c_in, draw(st.sampled_from([(3, 3), (1, 3), (2, 3)])), groups)
    seed = draw(st.integers(0, 99))
    weight = torch.randn(site.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    decomposition = draw(st.sampled_from([d for d in DECOMPOSITIONS if d.undefined(site) is None]))

    def moment(size: int) -> Tensor | None:
        count = draw(st.integers(-1, 2 * size))
        if count < 0:
            return None
        scale = 10.0 ** draw(st.integers(-30, 30))
        if count == 0:
            return torch.zeros(groups, size, size, dtype=torch.float64)
        return scale * torch.stack([matrix(count, size, seed + g) for g in range(groups)])

    check(decomposition, site, weight, Moments(moment(math.prod(site.shape[1:])), moment(site.c_out // groups)))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_floor_is_as_stated(kind: str) -> None:
    for groups in (1, 2):
        moment = KINDS[kind](groups, 7, 3)
        kept = moment.clone()
        wanted = torch.from_numpy(floor_by_hand(moment.numpy()))
        found = floored(moment)
        scale = wanted.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        assert torch.equal(moment, kept) and found.dtype == torch.float64
        torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-13)
        least = torch.linalg.eigvalsh(found)[:, 0] / scale[:, 0, 0]
        assert (least >= FLOOR * (1 - 1e-6) - 7 * 1e-13).all()  # Weyl: eigenvalues differ by no more than the matrices of size 7
        factor, (root, inverse) = half(found), whitener(found, 7, found)
        torch.testing.assert_close(factor @ factor.mT / scale, found / scale, rtol=0, atol=1e-13)
        torch.testing.assert_close(root @ root / scale, found / scale, rtol=0, atol=1e-13)
        torch.testing.assert_close(root @ inverse, torch.eye(7, dtype=torch.float64).expand(groups, -1, -1), rtol=0, atol=1e-6)


def test_only_what_is_indefinite_beyond_the_floor_takes_an_eigendecomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranksearch.decompositions.metric.eigh", lambda moment: pytest.fail("an eigendecomposition"))
    for kind in KINDS:
        if kind == "rounded":
            with pytest.raises(pytest.fail.Exception):
                floored(KINDS[kind](2, 7, 3))
        else:
            floored(KINDS[kind](2, 7, 3))


@pytest.mark.parametrize("least", [-0.5, 0.5, 2.0])
def test_moments_that_something_was_added_to_are_floored_too(least: float) -> None:
    """Whatever their pivots tell."""
    moment = few(2, 7, 3)
    trace = moment.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    moment += least * FLOOR * trace * torch.eye(7, dtype=torch.float64)
    found, triangle = halved(moment)
    assert (torch.linalg.eigvalsh(found / trace)[:, 0] >= FLOOR * (1 - 1e-6) - 7e-13).all()
    assert torch.equal(found, moment) == (least > 1)
    torch.testing.assert_close(triangle @ triangle.mT / trace, found / trace, rtol=0, atol=1e-13)


def test_a_half_that_is_known_is_not_made_again() -> None:
    moment, triangle = plain(1, 3, 0), torch.eye(3, dtype=torch.float64)[None]
    known = FlooredMoments(moment, None, triangle)
    assert conditioned(known, moment).input_half is triangle
    assert torch.equal(FlooredMoments(moment, None).input_half, half(moment)) and Moments().input_half is None


def test_moments_without_small_eigenvalues_stay_bit_for_bit() -> None:
    moment = plain(2, 6, 0)
    assert torch.equal(floored(moment), moment)
    moments = Moments(moment, None)
    assert conditioned(moments, moment).input is not None and torch.equal(conditioned(moments, moment).input, moment)
    assert conditioned(None, moment) == Moments()


def test_moments_that_are_floored_already_are_used_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    a, g = torch.eye(3, dtype=torch.float64)[None], 2 * torch.eye(2, dtype=torch.float64)[None]
    monkeypatch.setattr("ranksearch.decompositions.metric.floored", lambda moment: pytest.fail("floored again"))
    made = FlooredMoments(a, g)
    used = conditioned(made, a)
    assert used.input is a and used.output is g and made.floored_output is g
    assert conditioned(FlooredMoments(a, None), a).output is None


def test_an_indefinite_moment_has_a_half() -> None:
    """What rounding leaves of a marginal or a Gram matrix."""
    moment = torch.diag(torch.tensor([1.0, 0.5, -1e-12], dtype=torch.float64))[None]
    factor = half(moment)
    wanted = torch.diag(torch.tensor([1.0, 0.5, -1e-12], dtype=torch.float64) + 3e-8)[None]
    torch.testing.assert_close(factor @ factor.mT, wanted, rtol=0, atol=1e-15)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_moments_that_are_not_finite_are_refused(value: float) -> None:
    moment = plain(1, 4, 0)
    moment[0, 1, 2] = value
    with pytest.raises(InvalidArgument, match="not finite"):
        floored(moment)


def test_energy_is_the_trace() -> None:
    site, weight = conv(6, 4, groups=2)
    moments = Moments(plain(2, 18, 0), plain(2, 3, 1))
    blocks = weight.reshape(2, 3, 2, 3, 3)
    assert residual_energy(blocks, moments) == pytest.approx(oracle(site, weight, moments), rel=1e-12)
    assert residual_energy(blocks, Moments()) == pytest.approx(float(weight.square().sum()), rel=1e-12)
