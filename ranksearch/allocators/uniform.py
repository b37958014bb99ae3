"""The uniform rule: one ratio for all layers, the baseline of every paper on low-rank compression."""

from __future__ import annotations

import numpy as np

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.errors import InfeasibleBudget


class Uniform(Allocator):
    """Every site gets the option of lowest value among those that cost at most a share of its dense layer (its cheapest, where none
    does). The share is one for all sites: of all distinct shares, the largest whose network satisfies all budgets.

    With several budgets an option's share is the largest of its shares. Tables of either reduction are taken."""

    name = "uniform"

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        sites, options, shares, changes = [], [], [], []
        for site, (value, cost) in enumerate(zip(problem.table.values, problem.costs, strict=True)):
            dense = cost[-1]  # the last option of a ladder; of a cost that it has none of there are no shares
            share = np.where(dense > 0, cost / np.maximum(dense, 1), 0.0).max(axis=1)
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
