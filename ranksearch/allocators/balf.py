"""BALF's rule (arXiv 2509.25136) keeps the most relative (whitened) energy; the paper finds it by bisection of one Lagrange
multiplier."""

from __future__ import annotations

import numpy as np

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.allocators._hull import lagrangian_hull
from ranksearch.errors import InfeasibleBudget


class BALF(Allocator):
    """Every layer takes the option with the least sum of relative squared error and price x cost. The price is the least that
    satisfies the budgets; it is found exactly on the convex hull instead of by bisection. A layer never costs more than dense,
    since ladders have no such option. What the last step leaves of the budget stays unused, as in the paper. The energy is whitened
    in a space in the activation metric. The problem's table is only scored. Several budgets share one price, each cost relative to
    its limit."""

    name = "balf"

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        values = [np.square(ladder.column("frobenius")) for ladder in problem.space.ladders]
        scale = 1 / np.maximum(problem.limits, 1)
        hull = lagrangian_hull(values, [cost @ scale for cost in problem.costs])
        # points rise in the summed cost only: the last one that fits is sought in integers
        for point in range(len(hull.costs) - 1, -1, -1):
            indices = hull.indices(point)
            total = np.sum([cost[i] for cost, i in zip(problem.costs, indices, strict=True)], axis=0)
            if (total <= problem.room).all():
                return finish(problem, indices, float("nan"))
        raise InfeasibleBudget(
            f"budgets={dict(problem.budgets)}: no single price satisfies all at once, though other configurations may; "
            "take the additive or minimax allocator, or raise a budget"
        )
