"""Exact additive allocation: the least sum of values within any number of budgets, and the whole convex front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.allocators._choice import Solution, solve
from ranksearch.allocators._hull import Hull, lagrangian_hull
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table

__all__ = ["Additive", "Hull", "additive_front", "lagrangian_hull"]


class Additive(Allocator):
    """Finds the least sum of values and proves it: a Lagrangian bound and reduced costs rule out most options, dynamic programming
    decides among those that are left, or a MILP where these leave too many choices to list.

    Args:
        seconds: the longest that the MILP may take; if it stops there, the allocation's ``gap`` is above 0.
    """

    name = "additive"
    reduction = "sum"

    def __init__(self, *, seconds: float = 60.0) -> None:
        self.seconds = seconds

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        solution = solve(problem.table.values, problem.costs, problem.room, seconds=self.seconds)
        if solution is None:
            raise problem.infeasible_together(smallest_together(problem))
        return finish(problem, solution.indices, solution.gap)


def smallest_together(problem: Problem) -> Mapping[str, int | None]:
    """The least that the whole network can have of each cost within the other budgets, in the problem's units; None where the
    others exclude each other."""
    smallest: dict[str, int | None] = {}
    for number, name in enumerate(problem.names):
        solution = least_cost(problem.costs, problem.room, number)
        fixed = int(problem.limits[number] - problem.room[number])
        smallest[name] = None if solution is None else round(solution.value) + fixed
    return smallest


def least_cost(costs: Sequence[np.ndarray], room: np.ndarray, number: int) -> Solution | None:
    """The solution of least cost in column ``number`` within the limits on the other columns."""
    others = [b for b in range(len(room)) if b != number]
    return solve([c[:, number].astype(np.float64) for c in costs], [c[:, others] for c in costs], room[others])


def additive_front(space: SearchSpace, table: Table, name: str, budgets: Sequence[float]) -> tuple[Allocation, ...]:
    """The exact additive optimum at each of several budgets of one cost, in their order.

    Raises:
        InfeasibleBudget: one of them is below the feasible minimum.
    """
    return tuple(Additive().allocate(Problem(space, table, {name: budget})) for budget in budgets)
