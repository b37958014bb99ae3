"""The contract of an allocator: the best configuration under a table of values, within budgets that are never
exceeded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.sites import Cost
from ranksearch.space import CostName, SearchSpace
from ranksearch.space.table import Reduction, Table


@dataclass(frozen=True)
class Problem:
    """Choose one option per site: least table score at costs within the budgets.

    Budgets bound the cost of the whole network, fixed parts included; values up to 1 are shares of the dense
    network's (see `SearchSpace.limit`).

    Raises:
        InvalidArgument: no budget, an unknown or impossible one, a table that does not fit the space or holds NaN or
            infinite values.
    """

    space: SearchSpace
    table: Table
    budgets: Mapping[CostName, float]

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
    def names(self) -> tuple[CostName, ...]:
        """The budgeted costs: the columns of `costs` and `room`."""
        return tuple(self.budgets)

    @cached_property
    def limits(self) -> np.ndarray:
        """The budgets in absolute numbers, of the whole network, int64, shape: (n_budgets,)."""
        return np.array([self.space.limit(name, value) for name, value in self.budgets.items()], dtype=np.int64)

    @cached_property
    def room(self) -> np.ndarray:
        """What the budgets leave to the sites, int64, shape: (n_budgets,)."""
        return self.limits - np.array([getattr(self.space.fixed, name) for name in self.names], dtype=np.int64)

    @cached_property
    def costs(self) -> tuple[np.ndarray, ...]:
        """Costs of every option, one array per site, int64, shape: (n_options, n_budgets)."""
        return tuple(
            np.array([[getattr(option.cost, name) for name in self.names] for option in ladder.options], dtype=np.int64)
            for ladder in self.space.ladders
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
        fixed = self.limits - self.room
        wrong = [
            f"{name} <= {limit:,} ({self._share(name, limit)}): the smallest this space reaches is {least:,} ({self._share(name, least)})"
            for name, limit, least in zip(self.names, self.limits, self.least + fixed, strict=True)
            if limit < least
        ]
        if wrong:
            raise InfeasibleBudget(f"{'; '.join(wrong)}; raise the budget or allow more decompositions or sites")

    def infeasible_together(self, smallest: Mapping[CostName, int | None]) -> InfeasibleBudget:
        """The error for budgets that hold each alone but not at once; ``smallest`` is the least of each cost, of the
        whole network, within the other budgets (None: the other budgets exclude each other already)."""
        given = ", ".join(f"{n} <= {v:,} ({self._share(n, int(v))})" for n, v in zip(self.names, self.limits, strict=True))
        facts = [
            f"the smallest {name} within the other budgets is {value:,} ({self._share(name, value)})"
            for name, value in smallest.items()
            if value is not None
        ]
        return InfeasibleBudget(f"{given}: no configuration satisfies all at once; {'; '.join(facts) or 'relax several'}; raise one")

    def _share(self, name: CostName, value: int) -> str:
        dense = getattr(self.space.baseline, name)
        return f"{value / dense:.4f} of dense" if dense else "dense has none"


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
    cost = problem.space.cost(indices)
    for name, limit in zip(problem.names, problem.limits, strict=True):
        assert getattr(cost, name) <= limit, f"{name}: {getattr(cost, name)} exceeds the budget {limit}; please report this"
    return Allocation(indices, float(problem.table.score(indices)), cost, gap)
