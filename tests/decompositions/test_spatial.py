"""``spatial``, its transpose, and ``svd_in`` share one folding: their refinement in a metric, against oracles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from oracles import assert_no_neighbour_is_better, conv, descend, moments, squared_error

from ranksearch.decompositions import AnyDecomposition, Moments, weighted_truncation
from ranksearch.decompositions.metric import floored
from ranksearch.decompositions.spatial import Spatial
from ranksearch.decompositions.svd_in import SVDIn

TYPES = (Spatial(first="width"), Spatial(first="height"), SVDIn())
every = pytest.mark.parametrize("decomposition", TYPES, ids=lambda d: d.name)


def separable(decomposition: AnyDecomposition) -> torch.Tensor:
    """A weight that a type represents at rank 2, made by hand: the product of the two kernels, channel by channel."""
    random = torch.Generator().manual_seed(3)
    rows, columns = {"spatial": ((3, 1), (1, 3)), "spatial_t": ((1, 3), (3, 1)), "svd_in": ((3, 3), (1, 1))}[decomposition.name]
    second = torch.randn(8, 2, *rows, generator=random, dtype=torch.float64)
    first = torch.randn(2, 6, *columns, generator=random, dtype=torch.float64)
    return torch.stack([sum(second[o, r, None] * first[r] for r in range(2)) for o in range(8)])


@every
def test_finds_the_rank_of_a_separable_weight(decomposition: AnyDecomposition) -> None:
    site, _ = conv()
    weight = separable(decomposition)
    for m in (None, moments(site)):
        errors = decomposition.errors(decomposition.prepare(site, weight, m))
        assert errors.frobenius[0] > 0.05 and errors.frobenius[1] < 1e-6


@every
@pytest.mark.parametrize(("groups", "output"), [(1, False), (1, True), (2, True)])
def test_refinement_never_hurts_and_reaches_the_minimum(decomposition: AnyDecomposition, groups: int, output: bool) -> None:
    site, weight = conv(groups=groups)
    m = moments(site, output=output)
    state = decomposition.prepare(site, weight, m)
    errors = decomposition.errors(state)
    total = squared_error(site, weight, m)
    left = []
    for rank in (1, 2, 3):
        seen = []
        for sweeps in (0, 1, 3, 8, 100):
            factors = weighted_truncation.factors(state, rank, sweeps=sweeps)
            seen.append(squared_error(site, weight - decomposition.compose(site, factors), m))
        assert all(b <= a * (1 + 1e-6) + 1e-9 * total for a, b in itertools.pairwise(seen))
        # the factors given are those measured, to the shrinkage of the moments
        assert errors.ranks[rank - 1] == rank and errors.frobenius_is == "measured"
        found = squared_error(site, weight - decomposition.reconstruct(site, state, (rank,)), m)
        assert found == pytest.approx((errors.frobenius[rank - 1] * errors.norm) ** 2, rel=1e-4)
        assert found <= seen[0] * (1 + 1e-6) + 1e-9 * total
        plain = squared_error(site, weight - decomposition.reconstruct(site, decomposition.prepare(site, weight), (rank,)), m)
        assert seen[0] < plain + 1e-9 * total  # the metric pays
        # near a minimum: another optimizer, which may jump to another one, finds little left to gain
        reached = descend(decomposition, site, weight, m, weighted_truncation.factors(state, rank), steps=100)
        left.append((found - reached) / found if found > 1e-9 * total else 0.0)
    assert max(left) <= 0.3 and sum(left) / len(left) <= 0.12


@every
def test_a_start_that_leads_astray_is_not_kept(decomposition: AnyDecomposition, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank starts from the strongest part of the next larger one. From the weakest, it ends no worse than its own start."""
    site, weight = conv(16, 12)
    m = moments(site)
    monkeypatch.setattr(weighted_truncation, "SWEEPS", 1)
    strongest = weighted_truncation.strongest
    monkeypatch.setattr(weighted_truncation, "strongest", lambda *given: strongest(*given).flip(1))
    state = decomposition.prepare(site, weight, m)
    errors = decomposition.errors(state)
    for rank, error in zip(errors.ranks[:-1, 0].tolist(), errors.frobenius[:-1], strict=True):
        start = decomposition.compose(site, weighted_truncation.factors(state, rank, sweeps=0))
        assert error * errors.norm <= squared_error(site, weight - start, m) ** 0.5 * (1 + 1e-6)


@every
def test_errors_of_a_grid_are_those_of_its_factors(decomposition: AnyDecomposition) -> None:
    """Against the dense residual; the grid has ranks enough and lies among the savings; ranks between serve as well."""
    site, weight = conv(48, 40)
    m = moments(site)
    state = decomposition.prepare(site, weight, m)
    errors = decomposition.errors(state)
    ranks = errors.ranks[:, 0].tolist()
    saving = decomposition.options(site)[:, 0].max()
    assert len(ranks) >= 16 and ranks[-1] == decomposition.ranks(site)[-1, 0] and max(ranks[:-1]) <= saving
    assert (np.diff(errors.frobenius) < 0).all() and (errors.operator <= 1).all()
    assert m.input is not None and m.output is not None
    inner, outer = torch.linalg.cholesky(floored(m.input))[0], torch.linalg.cholesky(floored(m.output))[0]

    def norms(residual: torch.Tensor) -> tuple[float, float]:
        white = outer.mT @ residual.flatten(1) @ inner
        return float(white.norm()), float(torch.linalg.matrix_norm(white, 2))

    total, top = norms(weight)
    for k in (0, 7, len(ranks) - 2):
        found = norms(weight - decomposition.reconstruct(site, state, (ranks[k],)))
        assert found == pytest.approx((errors.frobenius[k] * total, errors.operator[k] * top), rel=1e-6)
    between = next(r for r in range(ranks[0], ranks[-2]) if r not in ranks)
    k = next(i for i, r in enumerate(ranks) if r > between)
    error = norms(weight - decomposition.reconstruct(site, state, (between,)))[0] / total
    assert errors.frobenius[k] < error < errors.frobenius[k - 1]


@pytest.mark.parametrize(("top", "count"), [(0, 16), (1, 16), (6, 16), (30, 16), (448, 16), (448, 9)])
def test_grid_is_geometric(top: int, count: int) -> None:
    grid = weighted_truncation.geometric(top, count)
    assert len(grid) == (top if top < 7 else max(count, 9)) and (np.diff(grid) > 0).all()
    if top:
        assert grid[0] == 1 and top / 2 < grid[-1] <= top and (grid[1:] <= 2 * grid[:-1]).all()


@every
def test_beats_its_neighbours(decomposition: AnyDecomposition) -> None:
    site, weight = conv()
    assert_no_neighbour_is_better(decomposition, site, weight, moments(site), (2,))


@every
def test_an_output_moment_alone_has_a_closed_form(decomposition: AnyDecomposition) -> None:
    site, weight = conv()
    m = Moments(None, moments(site).output)
    state = decomposition.prepare(site, weight, m)
    errors = decomposition.errors(state)
    assert errors.frobenius_is == "exact"
    best = squared_error(site, weight - decomposition.reconstruct(site, state, (3,)), m)
    assert best == pytest.approx((errors.frobenius[2] * errors.norm) ** 2, rel=1e-5)
    start = tuple(torch.randn_like(f) for f in decomposition.factors(state, (3,)))
    assert descend(decomposition, site, weight, m, start) >= best * (1 - 1e-7)


@every
def test_errors_in_the_metric_fall_with_rank(decomposition: AnyDecomposition) -> None:
    site, weight = conv()
    errors = decomposition.errors(decomposition.prepare(site, weight, moments(site)))
    assert (errors.frobenius[1:] <= errors.frobenius[:-1]).all() and errors.frobenius[-1] < 1e-6
