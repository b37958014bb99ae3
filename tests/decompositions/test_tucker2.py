"""Tucker-2: the errors of all rank pairs from one core, and the refinement in a metric."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorly
import torch
from oracles import assert_no_neighbour_is_better, conv, descend, moments, squared_error
from tensorly.decomposition import partial_tucker

from ranksearch.decompositions import Moments, weighted_truncation
from ranksearch.decompositions import tucker2 as module
from ranksearch.decompositions.metric import floored
from ranksearch.decompositions.tucker2 import Tucker2
from ranksearch.errors import InvalidArgument

tucker2 = Tucker2()


def test_hosvd_against_tensorly() -> None:
    """tensorly's HOSVD, without sweeps, of the same pair has the same error."""
    site, weight = conv()
    state = tucker2.prepare(site, weight)
    errors = tucker2.errors(state)
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        for r_in, r_out in itertools.product((1, 3, 6), (1, 4, 8)):
            (core, factors), _ = partial_tucker(weight, rank=[r_out, r_in], modes=[0, 1], n_iter_max=0, init="svd")
            dense = torch.einsum("pqhw,op,iq->oihw", core, *factors)
            row = np.flatnonzero((errors.ranks == (r_in, r_out)).all(axis=1))[0]
            assert errors.frobenius[row] == pytest.approx(float((weight - dense).norm() / weight.norm()), abs=1e-7)


def test_finds_planted_ranks() -> None:
    site, _ = conv()
    weight = torch.einsum("pqhw,op,iq->oihw", *(torch.randn(s, dtype=torch.float64) for s in ((3, 2, 3, 3), (8, 3), (6, 2))))
    for m in (None, moments(site)):
        errors = tucker2.errors(tucker2.prepare(site, weight, m))
        sound = errors.frobenius < 1e-6
        assert np.array_equal(sound, (errors.ranks >= (2, 3)).all(axis=1))


@pytest.mark.parametrize(("groups", "output"), [(1, False), (1, True), (2, True)])
def test_refinement_never_hurts_and_reaches_the_minimum(monkeypatch: pytest.MonkeyPatch, groups: int, output: bool) -> None:
    site, weight = conv(groups=groups)
    m = moments(site, output=output)
    total = squared_error(site, weight, m)
    ranks = ((1, 1), (2, 2), (2, 1), (2, 4), (2, 3), (2, 8 // groups))
    errors: dict[tuple[int, int], list[float]] = {rank: [] for rank in ranks}
    for sweeps in (0, 1, 3, 20):
        monkeypatch.setattr(weighted_truncation, "SWEEPS", sweeps)
        state = tucker2.prepare(site, weight, m)
        for rank in ranks:
            errors[rank].append(squared_error(site, weight - tucker2.reconstruct(site, state, rank), m))
    unweighted, left = tucker2.prepare(site, weight), []
    for rank, seen in errors.items():
        # input bases are refined for one pair after the other: more steps for one are another start for the next
        assert all(error <= seen[0] * 1.1 + 1e-9 * total for error in seen)
        plain = squared_error(site, weight - tucker2.reconstruct(site, unweighted, rank), m)
        assert seen[0] < plain + 1e-9 * total
        # near a minimum: another optimizer, which may jump to another one, finds little left to gain
        reached = descend(tucker2, site, weight, m, tucker2.factors(state, rank), steps=100)
        left.append((seen[3] - reached) / seen[3] if seen[3] > 1e-9 * total else 0.0)
    assert max(left) <= 0.3 and sum(left) / len(left) <= 0.1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("misled", [False, True])
def test_refinement_is_never_worse_than_the_higher_order_svd(groups: int, misled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every output rank that input bases are refined for, against the regression on the bases of the whitened weight alone; also
    where the start from the next larger basis leads astray."""
    if misled:
        monkeypatch.setattr(weighted_truncation, "SWEEPS", 1)
        monkeypatch.setattr(module, "strongest", lambda *given: weighted_truncation.strongest(*given).flip(1))
    site, weight = conv(c_out=16, c_in=12, groups=groups)
    m = moments(site)
    state = tucker2.prepare(site, weight, m)
    assert m.input is not None and m.output is not None and state.metric is not None
    errors = tucker2.errors(state)
    s, outer = state.weight.shape[2], torch.linalg.cholesky(m.output)
    a = state.metric.input.flatten(3).flatten(1, 2)
    target = (outer.mT @ state.weight.flatten(2)) @ torch.linalg.cholesky(a)
    for r_in, r_out in errors.ranks.tolist():
        if r_out not in ((16, 4, 1) if groups == 1 else (8, 2)):
            continue
        rows = state.input_basis[..., :r_in].mT
        lifted = torch.stack([torch.kron(torch.eye(s, dtype=rows.dtype), each) for each in rows]) @ torch.linalg.cholesky(a)
        inside = target @ torch.linalg.pinv(lifted) @ lifted  # the projection on what the input basis can give
        kept = torch.linalg.svdvals(inside).square()[:, :r_out].sum()
        plain = float(((target.square().sum() - kept).clamp_min(0.0)).sqrt())
        k = int(np.flatnonzero((errors.ranks == (r_in, r_out)).all(axis=1))[0])
        assert errors.frobenius[k] * errors.norm <= plain * (1 + 1e-6) + 1e-6 * errors.norm


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("output", [False, True])
def test_errors_in_the_metric_are_those_of_the_factors(groups: int, output: bool) -> None:
    """Against the dense residual, in the Frobenius and in the operator norm; pairs off the grid work as well."""
    site, weight = conv(c_out=24, c_in=22, groups=groups)
    m = moments(site, output=output)
    state = tucker2.prepare(site, weight, m)
    errors = tucker2.errors(state)
    assert errors.frobenius_is == errors.operator_is == "measured" and len(errors.ranks) < 22 * 24 / groups**2
    assert m.input is not None
    a = floored(m.input)
    g = torch.eye(24 // groups, dtype=torch.float64).expand(groups, -1, -1) if m.output is None else floored(m.output)
    inner, outer = torch.linalg.cholesky(a), torch.linalg.cholesky(g)

    def norms(residual: torch.Tensor) -> tuple[float, float]:
        white = outer.mT @ residual.reshape(groups, 24 // groups, -1) @ inner
        return float(white.norm()), float(torch.linalg.matrix_norm(white, 2).max())

    total, top = norms(weight)
    assert errors.norm == pytest.approx(total, rel=1e-9)
    for k in (0, 5, len(errors.ranks) // 2, len(errors.ranks) - 2):
        found = norms(weight - tucker2.reconstruct(site, state, tuple(errors.ranks[k].tolist())))
        assert found == pytest.approx((errors.frobenius[k] * total, errors.operator[k] * top), rel=1e-6)
    off = next((a, b) for a in range(2, 11) for b in range(2, 11) if not (errors.ranks == (a, b)).all(axis=1).any())
    below = (errors.ranks <= off).all(axis=1)
    assert norms(weight - tucker2.reconstruct(site, state, off))[0] <= errors.frobenius[below].min() * total * 1.01


@pytest.mark.parametrize("output", [False, True])
def test_orthogonal_iteration_never_hurts_and_is_that_of_tensorly(output: bool) -> None:
    site, weight = conv()
    m = Moments(None, moments(site).output) if output else Moments()
    plain, refined = tucker2.prepare(site, weight, m), Tucker2(hooi=50).prepare(site, weight, m)
    bounds, errors = tucker2.errors(plain), Tucker2(hooi=50).errors(refined)
    assert errors.frobenius_is == "measured"
    total = squared_error(site, weight, m)
    white = weight if m.output is None else torch.einsum("op,oihw->pihw", torch.linalg.cholesky(m.output[0]), weight)
    gained = 0
    for rank in ((1, 1), (2, 2), (3, 4), (2, 5)):
        before = squared_error(site, weight - tucker2.reconstruct(site, plain, rank), m)
        seen = [squared_error(site, weight - Tucker2(hooi=n).reconstruct(site, refined, rank), m) for n in (1, 2, 50)]
        assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise([before, *seen]))
        gained += seen[-1] < 0.9999 * before
        row = np.flatnonzero((errors.ranks == rank).all(axis=1))[0]
        assert (errors.frobenius[row] * errors.norm) ** 2 == pytest.approx(seen[-1], rel=1e-5)
        assert errors.frobenius[row] <= bounds.frobenius[np.flatnonzero((bounds.ranks == rank).all(axis=1))[0]] * (1 + 1e-9)
        with tensorly.backend_context("pytorch", local_threadsafe=True):
            (core, factors), _ = partial_tucker(white, rank=[rank[1], rank[0]], modes=[0, 1], n_iter_max=50, init="svd", tol=0)
        oracle = float((white - torch.einsum("pqhw,op,iq->oihw", core, *factors)).square().sum())
        assert seen[-1] == pytest.approx(oracle, rel=1e-3, abs=1e-9 * total)
    assert gained


def test_orthogonal_iteration_without_sweeps_is_the_default() -> None:
    site, weight = conv()
    assert torch.equal(
        Tucker2(hooi=0).reconstruct(site, tucker2.prepare(site, weight), (2, 3)),
        tucker2.reconstruct(site, tucker2.prepare(site, weight), (2, 3)),
    )
    with pytest.raises(InvalidArgument, match="hooi=-1"):
        Tucker2(hooi=-1)


def test_beats_its_neighbours() -> None:
    site, weight = conv()
    assert_no_neighbour_is_better(tucker2, site, weight, moments(site), (2, 3))
