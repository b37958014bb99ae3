"""``spatial``, its transpose, and ``svd_in`` share one folding: their refinement in a metric, against oracles."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracles import assert_no_neighbour_is_better, conv, descend, moments, squared_error

from ranksearch.decompositions import AnyDecomposition, Moments, _folding
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
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("output", [False, True])
def test_refinement_never_hurts_and_reaches_the_minimum(decomposition: AnyDecomposition, groups: int, output: bool) -> None:
    site, weight = conv(groups=groups)
    m = moments(site, output=output)
    state = decomposition.prepare(site, weight, m)
    errors = decomposition.errors(state)
    total = squared_error(site, weight, m)
    for rank in (1, 2, 3):
        seen = []
        for sweeps in (0, 1, 3, None, 100):
            factors = _folding.factors(state, rank, sweeps=sweeps)
            seen.append(squared_error(site, weight - decomposition.compose(site, factors), m))
        assert all(b <= a * (1 + 1e-6) + 1e-9 * total for a, b in itertools.pairwise(seen))
        # without a sweep the error is the one reported, to the shrinkage of the moments
        assert seen[0] == pytest.approx((errors.frobenius[rank - 1] * errors.norm) ** 2, rel=1e-4)
        plain = squared_error(site, weight - decomposition.reconstruct(site, decomposition.prepare(site, weight), (rank,)), m)
        assert seen[0] < plain + 1e-9 * total  # the metric pays
        # near a minimum: another optimizer, which may jump to another one, finds little left to gain
        reached = descend(decomposition, site, weight, m, _folding.factors(state, rank))
        assert seen[3] - reached <= 0.12 * seen[3] + 1e-9 * total


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
