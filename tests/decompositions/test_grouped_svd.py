"""grouped_svd and tiled_svd: the operator norm of the whole residual, and the metric that couples tiles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from oracles import assert_no_neighbour_is_better, conv, moments, squared_error

from ranksearch.decompositions import tiles
from ranksearch.decompositions.decomposition import AnyDecomposition
from ranksearch.decompositions.grouped_svd import GroupedSVD
from ranksearch.decompositions.metric import Moments
from ranksearch.decompositions.tiled_svd import TiledSVD
from ranksearch.sites import Site

TYPES = (GroupedSVD(), TiledSVD())
every = pytest.mark.parametrize("decomposition", TYPES, ids=lambda d: d.name)


def tile_by_tile(weight: torch.Tensor, p: int, t: int, r: int) -> torch.Tensor:
    """The reconstruction as the definition says, with LAPACK's SVD."""
    dense = torch.zeros_like(weight)
    m, n = weight.shape[0] // p, weight.shape[1] // t
    for i in range(p):
        for j in range(t):
            block = weight[i * m : i * m + m, j * n : j * n + n]
            u, s, vh = torch.linalg.svd(block.flatten(1), full_matrices=False)
            dense[i * m : i * m + m, j * n : j * n + n] = ((u[:, :r] * s[:r]) @ vh[:r]).reshape(block.shape)
    return dense


@every
@pytest.mark.parametrize("shape", [(8, 6, (3, 3)), (4, 12, (1, 1)), (32, 4, (1, 1)), (24, 8, (3, 1))])
def test_groups_are_cut_before_lowering(decomposition: AnyDecomposition, shape: tuple) -> None:
    site, weight = conv(*shape)
    state = decomposition.prepare(site, weight)
    errors = decomposition.errors(state)
    norm = float(torch.linalg.matrix_norm(weight.flatten(1), 2))
    for k, row in enumerate(errors.ranks.tolist()):
        p, t, r = (1, *row) if len(row) == 2 else row
        residual = weight - tile_by_tile(weight, p, t, r)
        torch.testing.assert_close(weight - decomposition.reconstruct(site, state, tuple(row)), residual, atol=1e-8, rtol=1e-8)
        assert errors.frobenius[k] == pytest.approx(float(residual.norm() / weight.norm()), abs=1e-7)
        assert errors.operator[k] == pytest.approx(float(torch.linalg.matrix_norm(residual.flatten(1), 2)) / norm, abs=1e-7)


def test_the_largest_group_would_understate_the_operator_norm() -> None:
    """Groups that lose the same direction: the whole residual is sqrt(g) times the largest of its groups."""
    site, weight = conv(8, 8, (1, 1))
    u = torch.linalg.qr(torch.randn(8, 2, dtype=torch.float64))[0]
    strong, weak = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64))[0]
    group = 3 * torch.outer(u[:, 0], strong) + torch.outer(u[:, 1], weak)
    weight = torch.cat([group] * 4, dim=1).reshape(site.shape)
    errors = GroupedSVD().errors(GroupedSVD().prepare(site, weight))
    row = np.flatnonzero((errors.ranks == (4, 1)).all(axis=1))[0]
    norm = float(torch.linalg.matrix_norm(weight.flatten(1), 2))
    assert errors.operator[row] * norm == pytest.approx(2.0)  # the largest group's: 1


def test_every_divisor_up_to_the_limit() -> None:
    site, _ = conv(16, 36)
    assert sorted(set(GroupedSVD().ranks(site)[:, 0].tolist())) == [2, 3, 4, 6, 9, 12]
    assert sorted(set(GroupedSVD(max_groups=4).ranks(site)[:, 0].tolist())) == [2, 3, 4]


def test_thinned_ranks_keep_multiples_of_powers_of_two() -> None:
    kept = tiles.thinned(np.arange(1, 401))
    assert kept[:4].tolist() == [1, 2, 4, 8] and kept[-1] == 400 and len(kept) <= 60
    assert (kept[4:] % 8 == 0).all()
    assert np.array_equal(tiles.thinned(np.arange(1, 40)), np.arange(1, 40))


def square_roots(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The symmetric square root of a moment and its inverse."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.sqrt() @ vectors.T, vectors / values.sqrt() @ vectors.T


def swept(site: Site, weight: torch.Tensor, m: Moments, cut: tuple[int, int, int], sweeps: int) -> torch.Tensor:
    """The sweeps as they are defined: each tile in turn becomes the one of its rank with the least squared error while the others stay.

    The error is a quadratic of one tile X with Hessian 2 (G_ii kron A_jj): its minimum over all X is a Newton step away, and the best
    X of a rank is the nearest one in the norm of the Hessian, by Eckart and Young on G_ii^1/2 X A_jj^1/2."""
    p, t, r = cut
    flat = weight.flatten(1)
    rows, columns = flat.shape[0] // p, flat.shape[1] // t
    g = torch.eye(len(flat), dtype=flat.dtype) if m.output is None else m.output[0]
    a = m.input[0]
    dense = torch.zeros_like(flat)
    for sweep in range(sweeps + 1):
        for i, j in itertools.product(range(p), range(t)):
            at = slice(i * rows, i * rows + rows), slice(j * columns, j * columns + columns)
            (root_g, inverse_g), (root_a, inverse_a) = square_roots(g[at[0], at[0]]), square_roots(a[at[1], at[1]])
            if sweep == 0:  # the start: each tile by itself
                target = flat[at]
            else:
                gradient = (g @ (dense - flat) @ a)[at]
                target = dense[at] - inverse_g @ inverse_g @ gradient @ inverse_a @ inverse_a
            u, s, vh = torch.linalg.svd(root_g @ target @ root_a, full_matrices=False)
            dense[at] = inverse_g @ (u[:, :r] * s[:r]) @ vh[:r] @ inverse_a
    return dense.reshape(weight.shape)


@every
@pytest.mark.parametrize("output", [False, True])
def test_refinement_in_the_metric(decomposition: AnyDecomposition, output: bool) -> None:
    site, weight = conv()
    m = moments(site, output=output)
    state = decomposition.prepare(site, weight, m)
    errors = decomposition.errors(state)
    for row in ((2, 1), (2, 2)) if decomposition.name == "grouped_svd" else ((2, 1, 1), (2, 2, 1), (4, 2, 1)):
        cut = (1, *row) if len(row) == 2 else row
        seen = []
        for sweeps in (0, 1, 2, 5):
            found = decomposition.compose(site, tiles.factors(state, *cut, sweeps=sweeps))
            seen.append(squared_error(site, weight - found, m))
            expected = squared_error(site, weight - swept(site, weight, m, cut, sweeps), m)
            assert seen[-1] == pytest.approx(expected, rel=1e-5)
        k = np.flatnonzero((errors.ranks == row).all(axis=1))[0]
        assert seen[0] == pytest.approx((errors.frobenius[k] * errors.norm) ** 2, rel=1e-4)
        if cut[1] > 1 or (cut[0] > 1 and output):  # the metric couples tiles: every sweep gains
            assert all(after < before for before, after in itertools.pairwise(seen))
        else:
            assert seen == [seen[0]] * len(seen)


@every
def test_beats_its_neighbours(decomposition: AnyDecomposition) -> None:
    site, weight = conv()
    rank = (2, 2) if decomposition.name == "grouped_svd" else (2, 2, 1)
    assert_no_neighbour_is_better(decomposition, site, weight, moments(site), rank)
