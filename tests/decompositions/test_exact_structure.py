"""The structure that made a noiseless tensor is found at exactly its widths: for any draw of its cores, whatever the last bits are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from networks import LOOPS, TREES, OtherProcessor, composed, rank_of, relative_error, storage, tensor_of

from ranksearch.decompositions import exact_structure
from ranksearch.decompositions.exact_structure import exact_network, with_hub
from ranksearch.decompositions.network import pairs, reduce

ALL = TREES | LOOPS
SEEDS = {**dict.fromkeys(TREES, 6), **dict.fromkeys(LOOPS, 3)}  # loops are fitted, which takes its time


def found(tensor: torch.Tensor) -> tuple[tuple[int, ...], np.ndarray] | None:
    """Rank and value of the exact network, if there is one."""
    sizes = tuple(tensor.shape)
    reduced = reduce(tensor)
    network = exact_network(reduced.core, sizes)
    if network is None:
        return None
    return with_hub(network[0], len(sizes)), composed(reduced.lift(network[1]), len(sizes))


@pytest.mark.parametrize("name", list(ALL))
def test_the_generating_structure_is_found_at_its_widths(name: str) -> None:
    sizes, widths, _ = ALL[name]
    for seed in range(SEEDS[name]):
        tensor = tensor_of(sizes, widths, seed)
        network = found(tensor)
        assert network is not None, seed
        assert network[0] == rank_of(sizes, widths), seed
        assert relative_error(network[1], tensor) < 1e-9, seed


@pytest.mark.parametrize("name", list(ALL))
def test_signs_and_last_bits_do_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, widths, _ = ALL[name]
    for seed in range(2 if name in TREES else 1):
        with monkeypatch.context() as patch:
            OtherProcessor(patch, seed)
            network = found(tensor_of(sizes, widths, 100 + seed))
        assert network is not None and network[0] == rank_of(sizes, widths), seed


def test_random_trees_are_as_cheap_as_any_tree() -> None:
    """Against a search over all trees of modes, from Prüfer sequences and numpy's ranks."""
    random = np.random.default_rng(0)
    for seed in range(16):
        sizes = tuple(int(n) for n in random.integers(4, 7, size=4))
        edges = _tree_of((int(random.integers(4)), int(random.integers(4))))
        widths = {edge: int(random.integers(1, 4)) for edge in edges}
        tensor = tensor_of(sizes, widths, seed)
        cheapest = min(storage(sizes, rank_of(sizes, _tight(tensor, _tree_of(code)))) for code in itertools.product(range(4), repeat=2))
        network = found(tensor)
        assert network is not None and relative_error(network[1], tensor) < 1e-9
        assert storage(sizes, network[0]) <= cheapest <= storage(sizes, rank_of(sizes, widths)), (seed, network[0])


def _tree_of(code: tuple[int, int]) -> list[tuple[int, int]]:
    """The tree of four nodes with a Prüfer sequence."""
    left, edges, rest = list(range(4)), [], list(code)
    while rest:
        leaf = min(n for n in left if n not in rest)
        edges.append((min(leaf, rest[0]), max(leaf, rest[0])))
        left.remove(leaf)
        rest.pop(0)
    return [*edges, (left[0], left[1])]


def _tight(tensor: torch.Tensor, edges: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    widths = {}
    for edge in edges:
        side = {edge[0]}
        for _ in edges:
            side |= {end for other in edges if other != edge and side & set(other) for end in other}
        axes = sorted(side) + [m for m in range(4) if m not in side]
        rows = int(np.prod([tensor.shape[m] for m in side]))
        widths[edge] = int(np.linalg.matrix_rank(tensor.numpy().transpose(axes).reshape(rows, -1), rtol=1e-9))
    return widths


def test_a_tensor_without_structure_is_given_none() -> None:
    for seed in range(10):
        random = torch.Generator().manual_seed(seed)
        assert found(torch.randn(4, 5, 4, 3, generator=random, dtype=torch.float64)) is None


def test_a_zero_tensor_is_given_none() -> None:
    assert found(torch.zeros(4, 5, 3, dtype=torch.float64)) is None


def test_trees_are_found_in_tensors_too_large_for_loops() -> None:
    sizes, widths = (32, 24, 16, 9), {(0, 1): 3, (1, 2): 4, (1, 3): 2}
    assert np.prod(sizes) > exact_structure.LOOP_ENTRIES
    tensor = tensor_of(sizes, widths, 0)
    network = found(tensor)
    assert network is not None and network[0] == rank_of(sizes, widths)
    assert relative_error(network[1], tensor) < 1e-9


def test_scale_does_not_matter() -> None:
    sizes, widths, _ = LOOPS["ring"]
    for scale in (1e-30, 1e-10, 1e10, 1e30):
        network = found(scale * tensor_of(sizes, widths, 0))
        assert network is not None and network[0] == rank_of(sizes, widths)


def test_the_search_leaves_the_global_generator_alone() -> None:
    sizes, widths, _ = LOOPS["ring"]
    state = torch.get_rng_state()
    found(tensor_of(sizes, widths, 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_candidates_with_loops_satisfy_every_cut_and_come_by_storage() -> None:
    sizes = (5, 6, 4, 5)
    ranks = {(0,): 4, (1,): 4, (2,): 4, (3,): 4, (0, 1): 4, (0, 2): 16, (0, 3): 4}
    candidates = exact_structure.loop_candidates(ranks, sizes, 90)
    costs = [storage(sizes, with_hub(bonds, 4)) for bonds in candidates]
    assert (2, 1, 2, 2, 1, 2) in candidates and costs == sorted(costs) and max(costs) < 90
    for bonds in candidates:
        width = dict(zip(pairs(4), bonds, strict=True))
        for side, rank in ranks.items():
            assert np.prod([r for (i, j), r in width.items() if (i in side) != (j in side)]) >= rank
