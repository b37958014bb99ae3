"""Ranks under a storage constraint, after STN (arXiv 2205.15198). The paper's formulas could not be obtained: the
rule here is our reading of its abstract, a data-driven choice of structure and ranks without retraining."""

from __future__ import annotations

import numpy as np

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish


class STNStorage(Allocator):
    """Grows ranks adaptively, which is our choice. All layers start at their smallest option. Again and again the layer with the
    largest relative squared error moves to the option that reduces its error most per stored parameter, among those that fit; a
    layer whose next option does not fit is closed, and the rule ends when all are. Structures (types) compete within a layer on the
    same terms. The result is deterministic; other budgets than params are kept too. The problem's table is only scored."""

    name = "stn_storage"

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        errors = [np.square(ladder.column("frobenius")) for ladder in problem.space.ladders]
        params = [ladder.column("params") for ladder in problem.space.ladders]
        scale = 1 / np.maximum(problem.limits, 1)
        indices = np.array([int(np.lexsort((e, c @ scale))[0]) for e, c in zip(errors, problem.costs, strict=True)])
        used = np.sum([c[i] for c, i in zip(problem.costs, indices, strict=True)], axis=0)
        if (used > problem.room).any():  # the cheapest in total may break one of several budgets
            raise problem.infeasible_together({})
        open_sites = set(range(len(indices)))
        while open_sites:
            site = max(open_sites, key=lambda s: (errors[s][indices[s]], -s))
            now = indices[site]
            gain = errors[site][now] - errors[site]
            fits = (used - problem.costs[site][now] + problem.costs[site] <= problem.room).all(axis=1) & (gain > 0)
            if not fits.any():
                open_sites.remove(site)
                continue
            rise = np.maximum(params[site] - params[site][now], 1e-3)  # free in params: taken first
            moves = np.flatnonzero(fits)
            best = int(moves[np.argmax(gain[moves] / rise[moves])])
            used = used - problem.costs[site][now] + problem.costs[site][best]
            indices[site] = best
        return finish(problem, indices, float("nan"))
