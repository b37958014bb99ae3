"""Decomposable-Net's rules (arXiv 1910.13141) put all bases of all layers in one list and drop the least important ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.allocators._threshold import least_threshold, of_types
from ranksearch.space import Ladder


class DecomposableNet(Allocator):
    """The rule of the first version drops the basis of least C = C1 C2 until the budgets hold. C1 = sigma_k / |W|_2 and C2 = (1 -
    P_i / sum P)(1 - M_i / sum M), where P and M are the params and MACs of the basis's dense layer.

    Since sigma falls with k, dropping bases in the order of C amounts to one threshold on C for all layers; a layer that keeps more
    bases than pay is dense. sigma_{r+1} / |W|_2 is the relative operator norm of the residual at rank r. The problem's table is
    only scored.

    Args:
        decompositions: whose options take part; the paper has SVDs. None: all, by their operator norms.
    """

    name = "decomposable_net"

    def __init__(self, *, decompositions: Sequence[str] | None = ("svd",)) -> None:
        self.decompositions = decompositions

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        ladders = problem.space.ladders
        costs = np.array([[l.site.cost.params, l.site.cost.macs] for l in ladders], dtype=np.float64)
        weights = np.prod(1 - costs / np.maximum(costs.sum(axis=0), 1), axis=1)
        weights = weights if weights.any() else np.ones_like(weights)  # a single site has none by its formula, which then tells no options
        values = [np.nan_to_num(l.column("operator"), nan=1.0) * w for l, w in zip(ladders, weights, strict=True)]
        return finish(problem, least_threshold(problem, values, of_types(problem, self.decompositions), rule=self.name), float("nan"))


class DecomposableNetRaw(Allocator):
    """The rule of the IJCAI version drops the basis of least sigma_k, but keeps at least ``least`` in every layer.

    sigma_{r+1} is the relative operator norm at rank r times sigma_1. The latter is found from the energies of the ladder's SVD
    options, sigma_{r+1}^2 = E_r - E_{r+1} (the mean between ranks that are not neighbours); for a site without SVD options it
    counts as 1.

    Args:
        least: smallest rank (smallest entry of one) that a layer may have, where it has one that large.
        decompositions: see `DecomposableNet`.
    """

    name = "decomposable_net_raw"

    def __init__(self, *, least: int = 5, decompositions: Sequence[str] | None = ("svd",)) -> None:
        self.least, self.decompositions = least, decompositions

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        ladders = problem.space.ladders
        values = [np.nan_to_num(l.column("operator"), nan=1.0) * largest_singular_value(l) for l in ladders]
        masks = of_types(problem, self.decompositions) or [np.ones(len(l), dtype=bool) for l in ladders]
        allowed = []
        for ladder, mask in zip(ladders, masks, strict=True):
            ranks = np.array([min(ladder.rank(i), default=0) for i in range(len(ladder))])
            allowed.append(mask & (ranks >= min(self.least, int(ranks[mask].max(initial=0)))))
        return finish(problem, least_threshold(problem, values, allowed, rule=self.name), float("nan"))


def largest_singular_value(ladder: Ladder) -> float:
    """sigma_1 of a site's lowered weight, from two SVD options of its ladder; 1 where there are none."""
    options = sorted((ladder.option(i) for i in np.flatnonzero(ladder.mask(("svd",))).tolist()), key=lambda o: o.rank)
    usable = [o for o in options if o.operator > 0]
    if not usable:
        return 1.0
    pairs = [(a, b) for a, b in zip(usable, options[1:], strict=False) if a.energy > b.energy]
    if not pairs:  # one option: its residual is at most (full - r) sigma_{r+1}^2
        first = usable[0]
        left = min(ladder.site.c_out // ladder.site.groups, int(np.prod(ladder.site.shape[1:]))) - first.rank[0]
        return float(np.sqrt(first.energy / max(left, 1)) / first.operator)
    a, b = min(pairs, key=lambda p: (p[1].rank[0] - p[0].rank[0], p[0].rank))
    return float(np.sqrt((a.energy - b.energy) / (b.rank[0] - a.rank[0])) / a.operator)
