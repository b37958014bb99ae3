"""The tensor network of least storage that *is* a tensor, to 1e-10. Cut ranks say which structures can be (their bonds across every cut
have a product of at least its rank); for trees they also suffice, so that the cheapest tree is known without a fit. Loops that
would be cheaper still are fitted by alternating least squares from many starts."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ranksearch.decompositions.network import Bonds, core_shapes, even, node_count, pairs, stored, sweep, widen
from ranksearch.decompositions.tree_network import Cut, cut_ranks, is_forest, tree_bonds, trees, truncate_to_tree, widest_tree

EXACT = 1e-10  # relative error at which a network *is* the tensor
CUT = EXACT / 8  # of every unfolding's norm: so little at each of a tree's edges is less than EXACT in all
LOOPS = 60  # structures with loops that are tried
STARTS = 32  # random ones per structure; where the structure is right, a third of them arrive or more
SWEEPS = 15  # of least squares between looks at the errors
ROUNDS = 40  # of so many sweeps, at most
LOOP_ENTRIES = 20_000  # loops are tried for tensors of up to so many entries
LOOP_WORK = 2e10  # multiply-adds that the search for loops may take


def exact_network(tensor: Tensor, sizes: tuple[int, ...]) -> tuple[Bonds, list[Tensor]] | None:
    """Bonds and cores of the cheapest network found that is ``tensor``; None where none is cheaper than ``sizes`` stored densely.

    Args:
        tensor: float64; in the bases of its modes, see `network.reduce`.
        sizes: of the modes before they were reduced: what the cores will be stored at.
    """
    if tensor.ndim < 3 or not bool(tensor.any()):
        return None
    ranks = cut_ranks(tensor, CUT)
    if tuple(tensor.shape) == tuple(sizes) and all(ranks[side] == _full(tensor, side) for side in ranks):
        return None  # no unfolding lacks rank, as with every trained weight: there is no structure to find
    tree = cheapest_tree(ranks, sizes)
    limit = min(stored(sizes, tree), math.prod(sizes))
    loop = _cheaper_loop(tensor, ranks, sizes, limit)
    if loop is not None:
        return loop
    return (tree, truncate_to_tree(tensor, tree)) if stored(sizes, tree) == limit < math.prod(sizes) else None


def _full(tensor: Tensor, side: Cut) -> int:
    rows = math.prod(tensor.shape[m] for m in side)
    return min(rows, tensor.numel() // rows)


def cheapest_tree(ranks: dict[Cut, int], sizes: tuple[int, ...]) -> Bonds:
    """The tree of least storage among those of modes alone and those with a hub, which is the last node; of equals, one
    without a hub, then the first in order of the bonds."""
    modes = len(sizes)
    options = [tree_bonds(edges, ranks, modes) for hub in (False, True) for edges in trees(modes, hub)]
    return min(options, key=lambda bonds: (stored(sizes, bonds), len(bonds), bonds))


def _cheaper_loop(tensor: Tensor, ranks: dict[Cut, int], sizes: tuple[int, ...], limit: int) -> tuple[Bonds, list[Tensor]] | None:
    """The structure with loops that is found to be the tensor with the least storage, which is below ``limit`` numbers."""
    if tensor.numel() > LOOP_ENTRIES:
        return None
    spent = 0.0
    for bonds in loop_candidates(ranks, sizes, limit):
        spent += 3 * SWEEPS * (STARTS + 1) * tensor.ndim * solve_work(tensor.shape, bonds)  # a hopeless structure's, about
        if spent > LOOP_WORK:
            return None
        cores = recover_loop(tensor, bonds)
        if cores is not None:
            return bonds, cores
    return None


def solve_work(shape: tuple[int, ...], bonds: Bonds) -> float:
    """Multiply-adds of the largest normal equations."""
    total = math.prod(shape)
    widths = [math.prod(core) // n for core, n in zip(core_shapes(shape, bonds), shape, strict=True)]
    return max(total / n * w * (w + n) + w**3 / 3 for n, w in zip(shape, widths, strict=True))


def loop_candidates(ranks: dict[Cut, int], sizes: tuple[int, ...], limit: int) -> list[Bonds]:
    """At most `LOOPS` structures with loops whose bonds satisfy every cut rank, of less storage than ``limit``, cheapest first.
    Their bonds are between modes only, up to 8 wide among four modes and 64 among three."""
    count = len(sizes)
    ends = pairs(count)
    top = min(max(ranks.values()), 8 if len(ends) > 3 else 64)
    grid = np.stack([g.ravel() for g in np.meshgrid(*[np.arange(1, top + 1)] * len(ends), indexing="ij")], axis=1)
    for side, rank in ranks.items():
        across = [k for k, (i, j) in enumerate(ends) if (i in side) != (j in side)]
        grid = grid[grid[:, across].prod(axis=1) >= rank]
    touching = [[k for k, pair in enumerate(ends) if node in pair] for node in range(count)]
    cost = sum((n * grid[:, bonds].prod(axis=1) for n, bonds in zip(sizes, touching, strict=True)), np.zeros(len(grid), dtype=np.int64))
    order = np.lexsort((*grid.T[::-1], cost))
    cheap = (tuple(int(r) for r in grid[k]) for k in order[cost[order] < limit])
    return [bonds for bonds in cheap if not is_forest(bonds)][:LOOPS]


def recover_loop(tensor: Tensor, bonds: Bonds) -> list[Tensor] | None:
    """Cores that reproduce the tensor, or None if alternating least squares arrives from no start: that of the widest tree in
    closed form, and `STARTS` random ones of fixed seed. All starts are fitted together, as one batch; those that stall are dropped."""
    total = float(tensor.square().sum())
    cores = _loop_starts(tensor, bonds)
    order = tuple(reversed(range(len(cores))))
    last = torch.full((len(cores[0]),), math.inf, dtype=tensor.dtype, device=tensor.device)
    for _ in range(ROUNDS):
        for _ in range(SWEEPS):
            cores, errors = sweep(tensor, cores, order)
        cores = list(even(cores))
        arrived = torch.le(errors, EXACT**2 * total).nonzero()
        if len(arrived):
            return [c[int(arrived[0])] for c in cores]
        going = (errors <= 0.9 * last) | (errors <= 1e-8 * total)
        if not bool(going.any()):
            return None
        cores, last = [c[going] for c in cores], errors[going]
    return None


def _loop_starts(tensor: Tensor, bonds: Bonds) -> list[Tensor]:
    """Cores of all starts, shape (1 + STARTS, *core); the closed form first."""
    generator = torch.Generator().manual_seed(0)
    closed = widen(truncate_to_tree(tensor, widest_tree(bonds)), bonds, generator)
    shapes = core_shapes(tensor.shape, bonds)
    random = [torch.randn(STARTS, *shape, generator=generator, dtype=torch.float64).to(tensor) for shape in shapes]
    return list(even([torch.cat([c[None], r]) for c, r in zip(closed, random, strict=True)]))


def with_hub(bonds: Bonds, modes: int) -> Bonds:
    """Bonds over the modes and, last, a hub; all of the hub's are 1 where the network has none."""
    if node_count(bonds) > modes:
        return bonds
    width = dict(zip(pairs(modes), bonds, strict=True))
    return tuple(width.get(pair, 1) for pair in pairs(modes + 1))
