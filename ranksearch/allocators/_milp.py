"""The integer program that is left where dynamic programming has too many choices to list, for HiGHS, whose tolerances it respects."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, hstack, vstack

from ranksearch.allocators._budgets import Budgets
from ranksearch.allocators._native import without_lines
from ranksearch.allocators._options import Options
from ranksearch.errors import RanksearchError

ATTEMPTS = 20  # solutions that may turn out to break a budget in integers


def optimum(
    options: Options, reduced: np.ndarray, prices: np.ndarray, limits: np.ndarray, *, seconds: float, window: float
) -> tuple[np.ndarray | None, float]:
    """Least sum of reduced costs plus the price of what is left of the budgets; that is the sum of values, but for a constant.

    Args:
        reduced: of every option, at least 0, shape: (n,).
        prices: of the budgets, shape: (n_budgets,).
        seconds: the longest that each run of HiGHS may take.
        window: no better solution than a known one exceeds this sum; infinite where none is known.

    Returns:
        positions, one per site, or None where none was found; and a lower bound on the sum.

    Raises:
        RanksearchError: HiGHS fails or runs out of time, and no solution is known.
    """
    known = bool(np.isfinite(window))
    budgets = Budgets.of(options, prices, limits)
    program = _Program(options, reduced, budgets, window)
    lower = 0.0
    for _ in range(ATTEMPTS):
        try:
            result = program.run(seconds)
        except ValueError as error:  # from inside HiGHS ("vector::reserve"), on rare problems that are sound; the gap tells
            if not known:
                raise RanksearchError(f"no allocation found: HiGHS failed ({error}); change the budget a little") from error
            return None, lower
        if result.mip_dual_bound is not None and np.isfinite(result.mip_dual_bound):
            lower = max(result.mip_dual_bound * program.unit + budgets.base, lower)
        if result.x is None:
            if result.status != 2 and not known:
                raise RanksearchError(f"seconds={seconds:g}: no allocation found ({result.message}); give it more or raise a budget")
            return None, lower
        picked = options.lowest(-result.x[: len(options.site)])
        if budgets.hold(picked):
            return picked, lower
        program.exclude(picked)
    return None, lower


class _Program:
    """min sum(reduced x) + prices . slack, x one option per site. Every coefficient is at least 0 and of the size of the window, so
    that HiGHS' absolute tolerances are far below what matters."""

    def __init__(self, options: Options, reduced: np.ndarray, budgets: Budgets, window: float) -> None:
        self._count, self._sites, slacks = len(options.site), len(options.starts), len(budgets.room)
        # rows in units of their largest coefficient, but so that HiGHS' tolerance of 1e-6 stays below one integer
        grain = np.clip(budgets.rows.max(axis=0), 1, 5e5).astype(np.float64)
        prices, room = budgets.prices * grain, budgets.room / grain
        # all that matters beside a known solution is of the size of the window; where it is 0, nothing but what costs nothing matters
        self.unit = (window if 0 < window < np.inf else max(float(reduced.max()), float(prices.max()), 1e-300)) / 1e3
        self._objective = np.concatenate([reduced, prices]) / self.unit
        self._integrality = np.concatenate([np.ones(self._count), np.zeros(slacks)])
        self._upper = np.concatenate([np.ones(self._count), room])
        one = coo_array((np.ones(self._count), (options.site, np.arange(self._count))), shape=(self._sites, self._count))
        columns = vstack(
            [hstack([one, coo_array((self._sites, slacks))]), hstack([coo_array((budgets.rows / grain).T), coo_array(np.eye(slacks))])]
        )
        equal = np.concatenate([np.ones(self._sites), room])
        self._constraints = [LinearConstraint(columns.tocsr(), equal, equal)]  # type: ignore[arg-type]

    def run(self, seconds: float) -> Any:
        """What HiGHS finds."""
        with without_lines(b"Highs"):
            return milp(
                self._objective, integrality=self._integrality, bounds=Bounds(0, self._upper),  # type: ignore[arg-type]
                constraints=self._constraints,
                # HiGHS' presolve finds little here
                options={"mip_rel_gap": 0.0, "time_limit": seconds, "presolve": False},
            )  # fmt: skip

    def exclude(self, picked: np.ndarray) -> None:
        """Cut this very choice off."""
        taken = np.zeros(len(self._objective))
        taken[picked] = 1.0
        self._constraints.append(LinearConstraint(taken[None], -np.inf, self._sites - 1))
