"""Tucker-2: the errors of all rank pairs from one core, and the refinement in a metric."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorly
import torch
from oracles import assert_no_neighbour_is_better, conv, descend, moments, squared_error
from tensorly.decomposition import partial_tucker

from ranksearch.decompositions import tucker2 as module
from ranksearch.decompositions.tucker2 import Tucker2

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


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("output", [False, True])
def test_refinement_never_hurts_and_reaches_the_minimum(monkeypatch: pytest.MonkeyPatch, groups: int, output: bool) -> None:
    site, weight = conv(groups=groups)
    m = moments(site, output=output)
    state = tucker2.prepare(site, weight, m)
    errors = tucker2.errors(state)
    total = squared_error(site, weight, m)
    for rank in ((1, 1), (2, 3), (2, 1), (3, 4)):
        seen = []
        for sweeps in (0, 1, 3, 20):
            monkeypatch.setattr(module, "affordable", lambda *_, sweeps=sweeps: sweeps)
            seen.append(squared_error(site, weight - tucker2.reconstruct(site, state, rank), m))
        assert all(b <= a * (1 + 1e-6) + 1e-9 * total for a, b in itertools.pairwise(seen))
        row = np.flatnonzero((errors.ranks == rank).all(axis=1))[0]
        assert seen[0] <= (errors.frobenius[row] * errors.norm) ** 2 * (1 + 1e-4) + 1e-9 * total
        plain = squared_error(site, weight - tucker2.reconstruct(site, tucker2.prepare(site, weight), rank), m)
        assert seen[0] < plain + 1e-9 * total
        # near a minimum: another optimizer, which may jump to another one, finds little left to gain
        reached = descend(tucker2, site, weight, m, tucker2.factors(state, rank))
        assert seen[3] - reached <= 0.08 * seen[3] + 1e-9 * total


def test_beats_its_neighbours() -> None:
    site, weight = conv()
    assert_no_neighbour_is_better(tucker2, site, weight, moments(site), (2, 3))
