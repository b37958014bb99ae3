"""The multiple-choice knapsack behind the additive allocator: least sum of values, one option per site, within any
number of budgets (Sinha and Zoltners 1979; Kellerer, Pferschy, Pisinger, "Knapsack Problems", chapter 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from ranksearch.allocators._feasible import improve, repair
from ranksearch.allocators._hull import lagrangian_hull
from ranksearch.allocators._lists import listed
from ranksearch.allocators._milp import optimum
from ranksearch.allocators._options import Options, needed

WIDTH, DEPTH = 400, 12  # partial choices that the narrow list keeps, and options per site
WORK = 6e6  # partial choices that the other one looks at: what a processor does in about a second
SHRINKS = 1e-3  # of the largest value: where no more is left of it, what is left is begun anew
_EPS = 1e-14  # relative to all that is summed: below this two sums are equal in float64


@dataclass(frozen=True)
class Solution:
    """An optimum, or the best that was found in time."""

    indices: np.ndarray  # option per site, int64, shape: (n_sites,)
    value: float
    bound: float  # no solution has a smaller value
    remaining: int  # options that the MILP decided among; 0: it was not needed

    @property
    def gap(self) -> float:
        """(value - bound) / |value|; below 1e-6, the tolerance that HiGHS proves its bounds to, it is 0."""
        gap = (self.value - self.bound) / max(abs(self.value), 1e-300)
        return gap if gap > 1e-6 else 0.0


def solve(
    values: Sequence[np.ndarray], costs: Sequence[np.ndarray], limits: np.ndarray, *, fixing: bool = True, seconds: float = 60.0
) -> Solution | None:
    """Least sum of values with every sum of costs within its limit; None where nothing is.

    Optimal prices of the budgets give a bound. Options whose reduced cost alone exceeds the gap between the bound and the best
    known solution are ruled out. Dynamic programming decides among those that are left (`listed`), a narrow one first, whose solution
    rules out more; where it has too many choices to list, the MILP does (HiGHS, gap 0). Sums are told apart to 1e-14 of what lies
    between a solution and the least values of all sites, whatever the values of options that no solution needs.

    Args:
        values: one array per site, float64, finite, shape: (n_options,).
        costs: one array per site, int64, not negative, shape: (n_options, n_budgets).
        limits: int64, shape: (n_budgets,).
        fixing: rule options out and list choices before the MILP; without it the MILP gets all options (for comparison).
        seconds: for the MILP; where it stops early, the gap tells. Below 1, lists are shorter as well.
    """
    options = needed(values, costs, limits)
    gap = None if options is None else _begun(options, limits)
    if gap is None:
        return None
    prices = gap.prices
    if fixing:
        gap.rule_out()
        for lists in (partial(listed, width=WIDTH, depth=DEPTH), partial(listed, work=WORK * min(seconds, 1.0))):
            if not gap.closed:
                gap.take(*lists(*gap.left(), prices, limits, window=gap.allowed))
    remaining = 0
    if not gap.closed:
        remaining = len(gap.kept)
        picked, lower = optimum(*gap.left(), prices, limits, seconds=seconds, window=gap.window)
        gap.bound += lower
        gap.offer(gap.among_kept(picked))
    return None if gap.best is None else gap.solution(values, remaining)


def _begun(options: Options, limits: np.ndarray) -> _Gap | None:
    """The gap that prices and the solutions that they lead to leave; None where nothing fits. What is worth more than a whole solution
    is in no better one, and is left out where it is so much more that rounding of it would count."""
    while True:
        level, unit = options.levelled()
        prices, starts = _prices(level, limits)
        if prices is None:
            return None
        gap = _Gap(level, limits, prices, unit)
        for start in (*starts, level.lowest(gap.reduced)):
            gap.offer(improve(level, repair(level, start, limits), limits))
        rest = level.value <= gap.value  # no site has less than 0
        if rest.all() or float(level.value[rest].max()) > SHRINKS * float(level.value.max()):
            return gap
        options = options[np.flatnonzero(rest)]


class _Gap:
    """What lies between the best known solution and a bound that no solution is below; and the options that may close it.

    Args:
        prices: of the budgets, shape: (n_budgets,).
        unit: of the values.
    """

    def __init__(self, options: Options, limits: np.ndarray, prices: np.ndarray, unit: float = 1.0) -> None:
        self.options, self.prices, self._unit = options, prices, unit
        over, room = options.beyond_least(limits)
        reduced = options.value + over @ prices
        floor, paid = reduced[options.lowest(reduced)], float(room @ prices)
        self.bound = float(floor.sum()) - paid
        self.reduced = reduced - floor[options.site]  # how much a solution with this option is above the bound at least
        self.kept = np.arange(len(reduced))  # positions of the options that are not ruled out
        self.best: np.ndarray | None = None  # positions, one per site
        self._rounding = _EPS * max(float(np.abs(floor).sum()) + paid, 1e-300)  # of sums over all sites

    @property
    def value(self) -> float:
        """Of the best known solution; infinite where none is known."""
        return np.inf if self.best is None else self._value(self.best)

    @property
    def window(self) -> float:
        """Upper bound on the gap; infinite where no solution is known."""
        return 0.0 if self.value <= self.bound else self.value - self.bound

    @property
    def closed(self) -> bool:
        """Whether the gap is no more than the rounding of the sums."""
        return self.window <= self._rounding

    @property
    def allowed(self) -> float:
        """`window`, with room for the rounding of sums."""
        return self.window * (1 + 1e-9) + self._rounding

    def offer(self, picked: np.ndarray | None) -> bool:
        """Keep a solution, if it is the best so far; returns whether it is."""
        if picked is None or self._value(picked) >= self.value:
            return False
        self.best = picked
        return True

    def take(self, picked: np.ndarray | None, proven: bool) -> None:
        """What was found among `left`: a better solution rules out more, and where nothing is better that is the bound."""
        if self.offer(self.among_kept(picked)):
            self.rule_out()
        if proven:
            self.bound = self.value

    def rule_out(self) -> None:
        """Drop the options with which a solution would be worse than the best known."""
        self.kept = self.kept[self.reduced[self.kept] <= self.allowed]

    def left(self) -> tuple[Options, np.ndarray]:
        """The options that are not ruled out, and their reduced costs."""
        return self.options[self.kept], self.reduced[self.kept]

    def among_kept(self, picked: np.ndarray | None) -> np.ndarray | None:
        """Positions among `left` as positions among all."""
        return None if picked is None else self.kept[picked]

    def solution(self, values: Sequence[np.ndarray], remaining: int) -> Solution:
        """The best known one, its sum taken over the values as they were given."""
        indices = np.empty(len(self.options.starts), dtype=np.int64)
        indices[self.options.site[self.best]] = self.options.option[self.best]
        value = float(sum(v[i] for v, i in zip(values, indices, strict=True)))
        return Solution(indices, value, value if self.closed else value - self._unit * self.window, remaining)

    def _value(self, picked: np.ndarray) -> float:
        return float(self.options.value[picked].sum())


def _prices(options: Options, limits: np.ndarray) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """Optimal prices of the budgets (duals of the linear relaxation), shape: (n_budgets,), and choices that round
    its solution; None where it is infeasible. Values are `Options.levelled`."""
    if len(limits) == 1:
        ends = np.append(options.starts[1:], len(options.site))
        runs = [slice(a, b) for a, b in zip(options.starts, ends, strict=True)]
        hull = lagrangian_hull([options.value[r] for r in runs], [options.cost[r, 0] for r in runs])
        point = int(np.searchsorted(hull.costs, limits[0], side="right")) - 1
        price = hull.prices[point] if point < len(hull.prices) else 0.0
        return np.array([price]), [options.starts + hull.indices(point)]
    scale = np.maximum(limits, 1)
    count = len(options.site)
    assignment = csr_array((np.ones(count), (options.site, np.arange(count))))

    def relaxed(presolve: bool) -> Any:
        return linprog(
            options.value, A_ub=(options.cost / scale).T, b_ub=limits / scale, A_eq=assignment, b_eq=np.ones(len(options.starts)),
            bounds=(0, None), method="highs", options={"presolve": presolve},
        )  # fmt: skip

    result = relaxed(True)
    if result.status == 2:  # its presolve says so of budgets with almost nothing to spare, too
        result = relaxed(False)
    if result.x is None:
        # infeasible beyond HiGHS' tolerance; any other end leaves prices of 0, a valid if weak bound
        return (None if result.status == 2 else np.zeros(len(limits))), []
    return np.maximum(-result.ineqlin.marginals, 0.0) / scale, [options.lowest(-result.x)]
