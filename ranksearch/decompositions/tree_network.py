"""Tensor networks without loops, in closed form. A tensor *is* a tree network if and only if the width of every edge is at
least the rank of the unfolding that the edge cuts, and truncated SVDs along the cuts, leaves first, give its cores; narrower
trees come out within sqrt(edges) of the best error (Grasedyck 2010; Hackbusch 2012, chapter 11). Nothing is iterated, so that the
structure found depends neither on a start nor on the processor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from ranksearch.decompositions.network import Bonds, core_shapes, directions, node_count, pairs
from ranksearch.decompositions.singular import svdvals
from ranksearch.decompositions.symmetric import eigvalsh

Edge = tuple[int, int]  # nodes, the smaller first
Cut = tuple[int, ...]  # the modes on one side, see `cut`


def cut(modes: Iterable[int], count: int) -> Cut:
    """The name of the partition of ``count`` modes into ``modes`` and the others: the smaller side, of equal sides that with mode 0."""
    side = tuple(sorted(modes))
    other = tuple(m for m in range(count) if m not in side)
    return min(side, other, key=lambda s: (len(s), s))


def cut_ranks(tensor: Tensor, tolerance: float) -> dict[Cut, int]:
    """The rank of every unfolding: the fewest singular values that leave at most ``tolerance`` of its norm.

    O(2^modes) decompositions; those of unfoldings that are clearly of full rank are of Gram matrices alone."""
    count = tensor.ndim
    ranks = {}
    for size in range(1, count // 2 + 1):
        for side in itertools.combinations(range(count), size):
            if cut(side, count) == side:
                ranks[side] = _numerical_rank(unfold(tensor, side), tolerance)
    return ranks


def unfold(tensor: Tensor, side: Cut) -> Tensor:
    """The matrix of the modes in ``side`` against the others."""
    rest = [m for m in range(tensor.ndim) if m not in side]
    return tensor.permute(*side, *rest).reshape(math.prod(tensor.shape[m] for m in side), -1)


def _numerical_rank(matrix: Tensor, tolerance: float) -> int:
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    if len(short) > 64:
        values = eigvalsh(short @ short.mT)
        if float(values[0]) > 1e-10 * float(values[-1]):  # far above rounding: no SVD is needed to see that nothing is lacking
            return len(short)
    energies = svdvals(short).square()
    tails = energies.flip(0).cumsum(0).flip(0)  # tails[r]: what rank r leaves
    return max(1, int((tails > tolerance**2 * tails[0]).sum()))


@lru_cache(maxsize=64)
def trees(modes: int, hub: bool) -> tuple[tuple[Edge, ...], ...]:
    """The edges of every tree over ``modes`` nodes; with ``hub``, over one more, which has three edges or more (with fewer, an edge
    in its place costs less)."""
    nodes = modes + hub
    found = []
    for edges in itertools.combinations(pairs(nodes), nodes - 1):
        # n - 1 edges that reach n nodes are a tree
        if len(_side(edges, 0)) == nodes and (not hub or sum(modes in edge for edge in edges) > 2):
            found.append(edges)
    return tuple(found)


def tree_bonds(edges: tuple[Edge, ...], ranks: dict[Cut, int], modes: int) -> Bonds:
    """The widths at which the tree of ``edges`` is a tensor with these cut ranks; none can be narrower."""
    nodes = len(edges) + 1
    width = dict.fromkeys(pairs(nodes), 1)
    for edge in edges:
        side = _side([e for e in edges if e != edge], edge[0])
        width[edge] = ranks[cut([m for m in side if m < modes], modes)]
    return tuple(width.values())


def is_forest(bonds: Bonds) -> bool:
    """Whether the bonds wider than 1 close no loop."""
    return _spanning(bonds) is not None


def _side(edges: Iterable[Edge], node: int) -> set[int]:
    """The nodes that ``edges`` connect with ``node``."""
    reached, size = {node}, 0
    while size != len(reached):
        size = len(reached)
        reached |= {end for edge in edges if reached & set(edge) for end in edge}
    return reached


def _spanning(bonds: Bonds) -> list[Edge] | None:
    """The bonds wider than 1 and as many others as make a tree of all nodes; None where they close a loop."""
    ends = pairs(node_count(bonds))
    tree: list[Edge] = []
    for (i, j), width in sorted(zip(ends, bonds, strict=True), key=lambda item: item[1] == 1):
        apart = j not in _side(tree, i)
        if width > 1 and not apart:
            return None
        if apart:
            tree.append((i, j))
    return tree


def widest_tree(bonds: Bonds) -> Bonds:
    """The bonds without the narrowest of every loop: a spanning tree of largest widths (Kruskal 1956)."""
    ends = pairs(node_count(bonds))
    tree: list[Edge] = []
    for width, (i, j) in sorted(zip(bonds, ends, strict=True), key=lambda item: -item[0]):
        if width > 1 and j not in _side(tree, i):
            tree.append((i, j))
    return tuple(width if pair in tree else 1 for pair, width in zip(ends, bonds, strict=True))


def truncate_to_tree(tensor: Tensor, bonds: Bonds) -> list[Tensor]:
    """The cores of the tree (or forest) ``bonds`` by truncated SVDs along its cuts, leaves first.

    The squared error is at most the sum over edges of what the width leaves of the spectrum of that cut, so that it is 0, to
    rounding, for widths of at least the cut ranks. One SVD per edge, each of a tensor that the earlier ones made smaller.

    Args:
        tensor: shape (n_1, ..., n_modes), float64; nodes past the modes are hubs.
        bonds: without loops, see `is_forest`."""
    edges = _spanning(bonds)
    assert edges is not None, f"bonds {bonds} close a loop"
    nodes, modes = node_count(bonds), tensor.ndim
    width = dict(zip(pairs(nodes), bonds, strict=True))
    shapes = core_shapes(tensor.shape, bonds)
    rest, owners, labels = tensor, list(range(modes)), [nodes] * modes  # per axis of `rest`: its node; the other end, or `nodes`: a mode
    cores: list[Tensor] = [tensor.new_zeros(0)] * nodes
    left = list(edges)
    while left:
        node = next(n for n in reversed(range(nodes)) if sum(n in edge for edge in left) == 1)  # a leaf; node 0 remains
        (edge,) = (e for e in left if node in e)
        parent = edge[0] if edge[1] == node else edge[1]
        left.remove(edge)
        own = sorted((a for a, owner in enumerate(owners) if owner == node), key=lambda a: labels[a])
        others = [a for a, owner in enumerate(owners) if owner != node]
        sizes, kept = [rest.shape[a] for a in own], [rest.shape[a] for a in others]
        matrix = rest.permute(*own, *others).reshape(math.prod(sizes), -1)
        basis = directions(matrix)[0][:, : width[edge]]
        missing = width[edge] - basis.shape[1]  # wider than the unfolding: the rest of the bond is empty
        basis = torch.nn.functional.pad(basis, (0, missing))
        rest = (basis.mT @ matrix).reshape(width[edge], *kept)
        place = sum(labels[a] < parent for a in own)
        cores[node] = basis.reshape(*sizes, -1).movedim(-1, place).reshape(shapes[node])
        owners, labels = [parent, *(owners[a] for a in others)], [node, *(labels[a] for a in others)]
    order = sorted(range(len(owners)), key=lambda a: labels[a])
    cores[0] = rest.permute(*order).reshape(shapes[0])
    return cores
