"""What several published rules share: all layers have one threshold, and each takes its cheapest option within it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ranksearch.allocators._base import Problem
from ranksearch.errors import InfeasibleBudget


def least_threshold(
    problem: Problem, values: Sequence[np.ndarray], allowed: Sequence[np.ndarray] | None = None, *, rule: str
) -> np.ndarray:
    """Option per site: every site takes its cheapest allowed option of value at most t (dense, where there is none), and t is the
    least common threshold with which all budgets hold. O(n log n).

    Args:
        values: one array per site, float64, shape: (n_options,); dense, the last, counts as the best there is.
        allowed: masks of the options that the rule knows.
        rule: its name, for the error.

    Raises:
        InfeasibleBudget: the budgets do not hold even with every site at its cheapest allowed option.
    """
    sites, options, levels, changes = [], [], [], []
    scale = 1 / np.maximum(problem.limits, 1)
    for site, (value, cost) in enumerate(zip(values, problem.costs, strict=True)):
        value = value.astype(np.float64).copy()
        value[-1] = -np.inf
        kept = np.arange(len(value)) if allowed is None else np.flatnonzero(allowed[site])
        kept = np.union1d(kept, [len(value) - 1])
        price = cost[kept] @ scale
        order = np.lexsort((price, value[kept]))
        lowest = np.minimum.accumulate(price[order])
        picked = kept[order[np.flatnonzero(np.r_[True, lowest[1:] < lowest[:-1]])]]
        sites.append(np.full(len(picked), site))
        options.append(picked)
        levels.append(value[picked])
        changes.append(np.diff(cost[picked], axis=0, prepend=np.zeros((1, cost.shape[1]), dtype=np.int64)))
    site, option, level, change = (np.concatenate(part) for part in (sites, options, levels, changes))
    order = np.argsort(level, kind="stable")
    site, option, level, total = site[order], option[order], level[order], np.cumsum(change[order], axis=0)
    last = np.flatnonzero(np.r_[level[1:] != level[:-1], True])
    fits = last[(total[last] <= problem.room).all(axis=1)]
    if not len(fits):
        reached = dict(zip(problem.names, ((total[-1] + problem.limits - problem.room) * problem.units).tolist(), strict=True))
        raise InfeasibleBudget(
            f"budgets={dict(problem.budgets)}: the rule {rule!r} with every layer at its cheapest reaches {reached}; "
            "raise a budget, allow more decompositions, or take the additive or minimax allocator"
        )
    done = int(fits[0]) + 1
    indices = np.zeros(len(problem.costs), dtype=np.int64)
    indices[site[:done]] = option[:done]  # the last of repeated assignments stands
    return indices


def of_types(problem: Problem, names: Sequence[str] | None) -> list[np.ndarray] | None:
    """Masks of the options of some decompositions; None for all."""
    if names is None:
        return None
    return [ladder.mask(names) for ladder in problem.space.ladders]
