"""Trees in closed form: exact at the cut ranks, and within the bound of the tails below them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from networks import TREES, composed, rank_of, relative_error, tensor_of

from ranksearch.decompositions.network import pairs
from ranksearch.decompositions.tree_network import cut, cut_ranks, is_forest, tree_bonds, trees, truncate_to_tree, unfold, widest_tree


def spectrum_of(tensor: torch.Tensor, side: tuple[int, ...]) -> np.ndarray:
    """Singular values of the unfolding, by numpy."""
    axes = [*side, *(m for m in range(tensor.ndim) if m not in side)]
    rows = int(np.prod([tensor.shape[m] for m in side]))
    return np.linalg.svd(tensor.numpy().transpose(axes).reshape(rows, -1), compute_uv=False)


@pytest.mark.parametrize("name", list(TREES))
def test_cut_ranks_are_those_of_the_unfoldings(name: str) -> None:
    sizes, widths, _ = TREES[name]
    for seed in range(10):
        tensor = tensor_of(sizes, widths, seed)
        ranks = cut_ranks(tensor, 1e-11)
        assert len(ranks) == 2 ** (len(sizes) - 1) - 1
        for side, rank in ranks.items():
            values = spectrum_of(tensor, side)
            assert rank == (values > 1e-9 * values[0]).sum()


def test_cut_ranks_of_large_unfoldings_take_the_short_way_only_where_nothing_is_lacking() -> None:
    random = torch.Generator().manual_seed(0)
    full = torch.randn(80, 9, 12, generator=random, dtype=torch.float64)
    assert cut_ranks(full, 1e-11)[0,] == 80
    lacking = full.clone()
    lacking[79] = lacking[:3].sum(0)
    assert cut_ranks(lacking, 1e-11)[0,] == 79
    assert cut_ranks(torch.zeros(3, 4, 5, dtype=torch.float64), 1e-11) == {(0,): 1, (1,): 1, (2,): 1}


def test_trees_are_all_of_them() -> None:
    for modes in (2, 3, 4, 5):
        found = trees(modes, False)
        assert len(found) == len(set(found)) == modes ** (modes - 2)  # Cayley
    assert len(trees(4, True)) == 13  # the hub with all four, or with three of which one has the fourth: 4 * 3
    assert len(trees(3, True)) == 1


@pytest.mark.parametrize("hub", [False, True])
def test_every_tree_at_the_cut_ranks_is_the_tensor(hub: bool) -> None:
    for seed in range(3):
        tensor = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        tensor[2] = tensor[0] - tensor[1]
        ranks = cut_ranks(tensor, 1e-11)
        for edges in trees(4, hub):
            cores = truncate_to_tree(tensor, tree_bonds(edges, ranks, 4))
            assert relative_error(composed(cores, 4), tensor) < 1e-13


@pytest.mark.parametrize("hub", [False, True])
def test_narrower_trees_are_within_the_bound_of_the_tails_and_no_better_than_any_tail(hub: bool) -> None:
    random = np.random.default_rng(0)
    for seed in range(3):
        tensor = torch.randn(5, 4, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for edges in trees(4, hub):
            width = {edge: int(random.integers(1, 4)) for edge in edges}
            cores = truncate_to_tree(tensor, tuple(width.get(pair, 1) for pair in pairs(4 + hub)))
            error = float(np.linalg.norm(composed(cores, 4) - tensor.numpy()) ** 2)
            tails = [float((spectrum_of(tensor, _cut_of(edges, edge))[width[edge] :] ** 2).sum()) for edge in edges]
            assert max(tails) * (1 - 1e-9) <= error <= sum(tails) * (1 + 1e-9)


def _cut_of(edges: tuple[tuple[int, int], ...], edge: tuple[int, int]) -> tuple[int, ...]:
    side = {edge[0]}
    for _ in edges:
        side |= {end for other in edges if other != edge and side & set(other) for end in other}
    return tuple(m for m in sorted(side) if m < 4)


def test_bonds_wider_than_the_unfolding_are_filled_with_zeros() -> None:
    tensor = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cores = truncate_to_tree(tensor, (5, 1, 4))
    assert [tuple(c.shape) for c in cores] == [(5, 1, 2), (5, 4, 3), (1, 4, 2)]
    assert relative_error(composed(cores, 3), tensor) < 1e-13


def test_forests_are_told_from_loops() -> None:
    for edges in itertools.chain.from_iterable(itertools.combinations(pairs(4), n) for n in range(7)):
        bonds = tuple(2 if pair in edges else 1 for pair in pairs(4))
        # a graph is a forest if and only if every component has one edge fewer than nodes: rank of the incidence matrix = edges
        incidence = np.zeros((4, max(1, len(edges))))
        for k, (i, j) in enumerate(edges):
            incidence[i, k], incidence[j, k] = 1, -1
        assert is_forest(bonds) == (np.linalg.matrix_rank(incidence) == len(edges))


def test_the_widest_tree_leaves_out_the_narrowest_bond_of_a_loop() -> None:
    assert widest_tree((3, 1, 2, 4, 1, 5)) == (3, 1, 1, 4, 1, 5)
    assert widest_tree((2, 2, 2)) == (2, 2, 1)
    assert widest_tree(rank_of((5, 6, 4, 5), {(0, 1): 2})) == rank_of((5, 6, 4, 5), {(0, 1): 2})


def test_cuts_have_one_name() -> None:
    assert cut([3, 1], 4) == cut([0, 2], 4) == (0, 2)
    assert cut([0, 1, 2], 4) == cut([3], 4) == (3,)
    tensor = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(unfold(tensor, (1,)), tensor.permute(1, 0, 2).reshape(3, 8))
