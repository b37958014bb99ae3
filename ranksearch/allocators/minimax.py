"""Exact minimax allocation: within the budgets the largest value of a site is made least (ALDS's problem, arXiv 2107.11442, eq. 3),
and the whole front is found in one sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.allocators._choice import solve
from ranksearch.allocators.additive import least_cost, smallest_together

__all__ = ["Minimax", "MinimaxFront", "minimax_front"]


@dataclass(frozen=True)
class MinimaxFront:
    """Every attainable largest value that a lower cost cannot also reach, with its least cost."""

    thresholds: np.ndarray  # largest value, float64, falling, shape: (n_points,)
    costs: np.ndarray  # least sum of costs at that threshold, rising, shape: (n_points,)
    _site: np.ndarray  # the exchanges that the sweep makes, in order, shape: (n_exchanges,)
    _option: np.ndarray
    _done: np.ndarray  # how many of them each point has made, shape: (n_points,)

    def indices(self, point: int) -> np.ndarray:
        """Option per site at a point of the front: the cheapest within its threshold, int64, shape: (n_sites,)."""
        done = self._done[point]
        indices = np.full(int(self._site.max()) + 1, -1, dtype=np.int64)
        indices[self._site[:done]] = self._option[:done]  # the last of repeated assignments stands
        return indices


def minimax_front(values: Sequence[np.ndarray], costs: Sequence[np.ndarray]) -> MinimaxFront:
    """The whole front of largest value against cost, from one sort of all options. O(n log n).

    Sweeping the threshold upwards, a site gets cheaper whenever an option comes in reach that costs less than all
    before it; the total is the running sum of these changes.

    Args:
        values, costs: one array per site, shape: (n_options,).
    """
    sites, options, levels, changes = [], [], [], []
    for site, (value, cost) in enumerate(zip(values, costs, strict=True)):
        order = np.lexsort((cost, value))
        lowest = np.minimum.accumulate(cost[order])
        new = np.flatnonzero(np.r_[True, lowest[1:] < lowest[:-1]])
        options.append(order[new])
        levels.append(value[order[new]])
        changes.append(np.diff(lowest[new], prepend=lowest.dtype.type(0)))
        sites.append(np.full(len(new), site))
    site, option, level, change = (np.concatenate(part) for part in (sites, options, levels, changes))
    start = max(part[0] for part in levels)  # below this some site has no option at all
    order = np.argsort(level, kind="stable")
    site, option, level, total = site[order], option[order], level[order], np.cumsum(change[order])
    last = np.flatnonzero(np.r_[level[1:] != level[:-1], True])  # one point per distinct threshold
    last = last[level[last] >= start][::-1]
    return MinimaxFront(level[last], total[last], site, option, last + 1)


class Minimax(Allocator):
    """Finds the allocation whose largest value is least, exactly, and among all that reach it the one with the least sum of values.

    The largest value says nothing about all other sites: taking the cheapest option within the threshold everywhere
    would leave most of a budget unused wherever ladders have steps. So the second stage restricts every site to
    options within the optimal threshold and minimises the sum, by the same exact solver as `Additive`. ``gap`` is
    that of the largest value, hence 0.

    Args:
        seconds: the longest that the second stage may take.
    """

    name = "minimax"
    reduction = "max"

    def __init__(self, *, seconds: float = 60.0) -> None:
        self.seconds = seconds

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        values, costs, room = problem.table.values, problem.costs, problem.room
        if len(room) == 1:
            front = minimax_front(values, [c[:, 0] for c in costs])
            # thresholds fall and costs rise: the last point that fits
            threshold = float(front.thresholds[np.searchsorted(front.costs, room[0], side="right") - 1])
        else:
            found = _least_threshold(values, costs, room)
            if found is None:
                raise problem.infeasible_together(smallest_together(problem))
            threshold = found
        kept = [np.flatnonzero(v <= threshold) for v in values]
        second = [v[k] for v, k in zip(values, kept, strict=True)], [c[k] for c, k in zip(costs, kept, strict=True)]
        solution = solve(*second, room, seconds=self.seconds)
        assert solution is not None, "the threshold is feasible"
        return finish(problem, np.array([k[i] for k, i in zip(kept, solution.indices, strict=True)]), 0.0)


def _least_threshold(values: Sequence[np.ndarray], costs: Sequence[np.ndarray], room: np.ndarray) -> float | None:
    """Bisection over the distinct values; None where even the largest is infeasible."""
    start = max(float(v.min()) for v in values)
    levels = np.unique(np.concatenate(values))
    levels = levels[levels >= start]
    low, high = 0, len(levels) - 1
    if not _feasible(values, costs, room, levels[high]):
        return None
    while low < high:
        middle = (low + high) // 2
        if _feasible(values, costs, room, levels[middle]):
            high = middle
        else:
            low = middle + 1
    return float(levels[low])


def _feasible(values: Sequence[np.ndarray], costs: Sequence[np.ndarray], room: np.ndarray, threshold: float) -> bool:
    """Whether some choice of options within the threshold satisfies every budget. Each budget is tried alone, then weighted sums of
    the budgets, whose minimum is in closed form; the MILP runs only where these do not decide."""
    within = [c[v <= threshold] for v, c in zip(values, costs, strict=True)]
    if (np.sum([c.min(axis=0) for c in within], axis=0) > room).any():
        return False
    scale = np.maximum(room, 1)
    corner = np.eye(len(room))
    weights = [(1 - t) * corner[a] + t * corner[b] for a in range(len(room)) for b in range(a) for t in np.linspace(0, 1, 17)]
    weights.append(np.full(len(room), 1 / len(room)))
    for weight in weights:
        price = weight / scale
        picks = [c[np.argmin(c @ price)] for c in within]
        total = np.sum(picks, axis=0)
        if (total <= room).all():
            return True
        if total @ price > (room @ price) * (1 + 1e-9):
            return False  # every choice breaks this weighted sum of the budgets, so it breaks a budget
    solution = least_cost(within, room, 0)
    return solution is not None and round(solution.value) <= room[0]
