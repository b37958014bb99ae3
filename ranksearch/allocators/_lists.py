"""Dynamic programming over lists of partial choices, which bounds keep short (Dyer, Riha and Walker, "A hybrid dynamic
programming/branch-and-bound algorithm for the multiple-choice knapsack problem", J. Comput. Appl. Math. 58, 1995)."""

from __future__ import annotations

import numpy as np

from ranksearch.allocators._budgets import Budgets
from ranksearch.allocators._options import Options, unbeaten


def listed(
    options: Options, reduced: np.ndarray, prices: np.ndarray, limits: np.ndarray, *,
    window: float, width: int | None = None, depth: int | None = None, work: float = np.inf,
) -> tuple[np.ndarray | None, bool]:  # fmt: skip
    """The least sum of reduced costs plus the price of what is left of the budgets, among all choices or among many.

    Site by site, every partial choice is extended by every option, and what can be no part of an optimum is left out: what does not
    fit; whose reduced costs, with the price of what all further sites cannot use of the budgets, exceed the window; and what another one
    is no worse than in value and in every cost. Layers of one shape have the same costs, so that few sums differ.

    Args:
        reduced: of every option, at least 0, shape: (n,).
        prices: of the budgets, shape: (n_budgets,).
        window: no better solution than a known one exceeds this sum; infinite where none is known.
        width: partial choices that are kept, those of least reduced costs; None: all.
        depth: options per site that are tried, those of least reduced costs; None: all.
        work: partial choices that are looked at, all sites together, before it gives up.

    Returns:
        positions, one per site, or None where there is no choice within the window; and whether that is the last word: nothing that fits
        was left out.
    """
    budgets = Budgets.of(options, prices, limits)
    groups, whole = _groups(options, reduced, depth)
    most = np.array([budgets.rows[group].max(axis=0) for group in groups])
    spent, score = np.zeros((1, len(limits)), dtype=np.int64), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for group, later in zip(groups, most[::-1].cumsum(axis=0)[::-1] - most, strict=True):
        work -= len(score) * len(group)
        if work < 0:
            return None, False
        parent, choice = np.divmod(np.arange(len(score) * len(group)), len(group))
        total, lost = spent[parent] + budgets.rows[group[choice]], score[parent] + reduced[group[choice]]
        unused = np.maximum(budgets.room - total - later, 0) @ budgets.prices
        alive = np.flatnonzero((total <= budgets.room).all(axis=1) & (lost + unused + budgets.base <= window))
        if not len(alive):
            return None, whole
        alive = alive[unbeaten(total[alive], lost[alive] - total[alive] @ budgets.prices)]
        if width is not None and len(alive) > width:
            alive, whole = alive[np.argpartition(lost[alive], width)[:width]], False
        spent, score = total[alive], lost[alive]
        history.append((parent[alive], group[choice[alive]]))
    return _followed(history, int(np.argmin(score - spent @ budgets.prices))), whole


def _groups(options: Options, reduced: np.ndarray, depth: int | None) -> tuple[list[np.ndarray], bool]:
    """Options by site, those of least reduced costs; and whether that is all. Sites with the finest choices come last, where they can use
    up what the others leave."""
    groups = [np.arange(a, b) for a, b in zip(options.starts, np.append(options.starts[1:], len(options.site)), strict=True)]
    groups = [group[np.argsort(reduced[group], kind="stable")] for group in groups]
    whole = depth is None or max(map(len, groups)) <= depth
    groups.sort(key=lambda group: -float(reduced[group[1]]) if len(group) > 1 else -np.inf)
    return [group[:depth] for group in groups], whole


def _followed(history: list[tuple[np.ndarray, np.ndarray]], state: int) -> np.ndarray:
    """The choice that led to a last state, one position per site."""
    picked = []
    for parent, choice in reversed(history):
        picked.append(int(choice[state]))
        state = int(parent[state])
    return np.sort(np.array(picked))  # positions are sorted by site
