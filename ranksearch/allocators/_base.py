"""The contract of an allocator: the best configuration under a table of values, within budgets that are never
exceeded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.sites import Amount, Cost
from ranksearch.space import SearchSpace
from ranksearch.space.table import Reduction, Table

GRID = 1 << 32  # units in the dense network's cost, for costs that are not counted


@dataclass(frozen=True)
class Problem:
    """The problem of choosing one option per site, so that the table's score is least and the costs are within the budgets.

    Budgets bound the cost of the whole network, fixed parts included; values up to 1 are shares of the dense network's (see
    `SearchSpace.limit`). All attributes below are in whole `units`, so that sums and comparisons are exact. Costs that are counted
    stay as they are; others are rounded to 2^-32 of the dense network's cost, and their budgets are raised by the most that
    rounding at every site can add.

    Raises:
        InvalidArgument: no budget, an unknown or impossible one, a table that does not fit the space or holds NaN or
            infinite values.
    """

    space: SearchSpace
    table: Table
    budgets: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.budgets:
            raise InvalidArgument("budgets={} is empty: give at least one, such as {'params': 0.5}")
        for name, value in self.budgets.items():
            self.space.limit(name, value)
        shape = tuple(len(values) for values in self.table.values)
        if shape != self.space.shape:
            raise InvalidArgument(f"table with options per site {shape} does not fit this space, which has {self.space.shape}")
        for ladder, values in zip(self.space.ladders, self.table.values, strict=True):
            if not np.isfinite(values).all():
                wrong = int(np.flatnonzero(~np.isfinite(values))[0])
                raise InvalidArgument(
                    f"table: the value of option {wrong} of site {ladder.site.name!r} is {values[wrong]}; "
                    "give every option a finite value (a large one for options that must not be taken)"
                )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The budgeted costs: the columns of `costs` and `room`."""
        return tuple(self.budgets)

    @cached_property
    def units(self) -> tuple[Amount, ...]:
        """What 1 stands for in `costs`, `limits` and `room`, one per budget: 1 where the cost is counted."""
        dense = self.space.baseline
        return tuple(1 if isinstance(dense[name], int) else (dense[name] or 1.0) / GRID for name in self.names)

    @cached_property
    def limits(self) -> np.ndarray:
        """The budgets in absolute numbers, of the whole network, int64, shape: (n_budgets,)."""
        # rounding moves each site and the rest by half a unit at most
        slack = (len(self.space.ladders) + 1) // 2 + 1
        limits = zip(self.budgets.items(), self.units, strict=True)
        amounts = [(self.space.limit(name, value), unit) for (name, value), unit in limits]
        return np.array([a if isinstance(a, int) else int(a / unit) + slack for a, unit in amounts], dtype=np.int64)

    @cached_property
    def room(self) -> np.ndarray:
        """What the budgets leave to the sites, int64, shape: (n_budgets,)."""
        fixed = [self.space.fixed[name] for name in self.names]
        return self.limits - np.array([f if u == 1 else round(f / u) for f, u in zip(fixed, self.units, strict=True)], dtype=np.int64)

    @cached_property
    def costs(self) -> tuple[np.ndarray, ...]:
        """Costs of every option, one array per site, int64, shape: (n_options, n_budgets)."""
        units = dict(zip(self.names, self.units, strict=True))
        return tuple(
            np.stack([_in_units(ladder.costs[name], unit) for name, unit in units.items()], axis=1) for ladder in self.space.ladders
        )

    @cached_property
    def least(self) -> np.ndarray:
        """The least that the sites can cost, each budget on its own, int64, shape: (n_budgets,)."""
        return np.sum([costs.min(axis=0) for costs in self.costs], axis=0)

    def check_each(self) -> None:
        """Refuse budgets that are too small on their own.

        Raises:
            InfeasibleBudget: with the smallest feasible value of each.
        """
        smallest = self.least + self.limits - self.room
        wrong = [
            f"{self.text(number, limit)}: the smallest this space reaches is {self.text(number, least, bare=True)}"
            for number, (limit, least) in enumerate(zip(self.limits, smallest, strict=True))
            if limit < least
        ]
        if wrong:
            raise InfeasibleBudget(f"{'; '.join(wrong)}; raise the budget or allow more decompositions or sites")

    def infeasible_together(self, smallest: Mapping[str, int | None]) -> InfeasibleBudget:
        """The error for budgets that hold each alone but not at once; ``smallest`` is the least of each cost, of the
        whole network and in `units`, within the other budgets (None: the other budgets exclude each other already)."""
        given = ", ".join(self.text(number, limit) for number, limit in enumerate(self.limits))
        facts = [
            f"the smallest {name} within the other budgets is {self.text(self.names.index(name), value, bare=True)}"
            for name, value in smallest.items()
            if value is not None
        ]
        return InfeasibleBudget(f"{given}: no configuration satisfies all at once; {'; '.join(facts) or 'relax several'}; raise one")

    def text(self, number: int, value: int, *, bare: bool = False) -> str:
        """A bound on a cost in words, or the amount alone; ``value`` is in `units`."""
        name, unit = self.names[number], self.units[number]
        dense = self.space.baseline[name]
        amount = f"{value:,}" if unit == 1 else f"{value * unit:.6g}"
        share = f"{value * unit / dense:.4f} of dense" if dense else "dense has none"
        return f"{amount} ({share})" if bare else f"{name} <= {amount} ({share})"


def _in_units(amounts: np.ndarray, unit: Amount) -> np.ndarray:
    return amounts if unit == 1 else np.rint(amounts / unit).astype(np.int64)


@dataclass(frozen=True)
class Allocation:
    """A configuration that an allocator chose."""

    indices: np.ndarray  # option per site, int64, shape: (n_sites,)
    value: float  # the table's score
    cost: Cost  # of the whole network
    gap: float  # proven (value - lower bound) / |value|; 0.0: exact (to 1e-6, the solver's tolerance); NaN: a rule that proves nothing


class Allocator(ABC):
    """Solves problems. ``reduction`` is the kind of table that it takes; None: any."""

    name: str
    reduction: Reduction | None = None

    @abstractmethod
    def allocate(self, problem: Problem) -> Allocation:
        """The allocation for a problem.

        Raises:
            InfeasibleBudget: no configuration satisfies the budgets; names the smallest feasible values.
            InvalidArgument: the table's reduction is not the one that this allocator solves.
        """

    def check(self, problem: Problem) -> None:
        """Refuse what no allocator can solve: a table of another reduction, budgets below the feasible minimum."""
        if self.reduction is not None and problem.table.reduction != self.reduction:
            raise InvalidArgument(
                f"table with reduction={problem.table.reduction!r}: the {self.name} allocator solves reduction={self.reduction!r}; "
                f"take {'minimax' if problem.table.reduction == 'max' else 'additive'}"
            )
        problem.check_each()


def finish(problem: Problem, indices: np.ndarray, gap: float) -> Allocation:
    """The allocation of option indices, its budgets verified in integers."""
    indices = np.asarray(indices, dtype=np.int64)
    spent = np.sum([costs[i] for costs, i in zip(problem.costs, indices, strict=True)], axis=0)
    assert (spent <= problem.room).all(), f"{problem.names}: {spent} exceeds {problem.room}; please report this"
    return Allocation(indices, float(problem.table.score(indices)), problem.space.cost(indices), gap)
