"""The uniform rule: one ratio for all layers, the baseline of every paper on low-rank compression."""

from __future__ import annotations

import numpy as np

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.errors import InfeasibleBudget


class Uniform(Allocator):
    """Every site gets its lowest-value option that costs at most one share of the site's dense layer (its cheapest,
    where none does); the largest share whose network satisfies all budgets, found among all distinct shares.

    With several budgets an option's share is the largest of its shares. Takes tables of either reduction."""

    name = "uniform"

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        sites, options, shares, changes = [], [], [], []
        for site, (value, cost) in enumerate(zip(problem.table.values, problem.costs, strict=True)):
            dense = np.maximum(cost[-1], 1)  # dense is the last option of a ladder
            share = (cost / dense).max(axis=1)
            order = np.lexsort((cost.sum(axis=1), value, share))
            lowest = np.minimum.accumulate(value[order])
            picked = order[np.flatnonzero(np.r_[True, lowest[1:] < lowest[:-1]])]
            entry = share[picked]
            entry[0] = 0.0  # the cheapest option is what a site has below its first share
            sites.append(np.full(len(picked), site))
            options.append(picked)
            shares.append(entry)
            changes.append(np.diff(cost[picked], axis=0, prepend=np.zeros((1, cost.shape[1]), dtype=np.int64)))
        site, option, share, change = (np.concatenate(part) for part in (sites, options, shares, changes))
        order = np.argsort(share, kind="stable")
        site, option, share = site[order], option[order], share[order]
        total = np.cumsum(change[order], axis=0)
        last = np.flatnonzero(np.r_[share[1:] != share[:-1], True])
        fits = last[(total[last] <= problem.room).all(axis=1)]
        if not len(fits):
            raise InfeasibleBudget(
                f"budgets={dict(problem.budgets)}: no uniform share satisfies all at once, though other configurations may; "
                "take the additive or minimax allocator, or raise a budget"
            )
        indices = np.zeros(len(problem.costs), dtype=np.int64)
        done = int(fits[-1]) + 1
        indices[site[:done]] = option[:done]  # the last of repeated assignments stands
        return finish(problem, indices, float("nan"))
