"""TRP's rule (arXiv 1910.04576) takes in each layer the smallest rank that keeps a share 1 - e of its energy, sum sigma_k^2."""

from __future__ import annotations

import numpy as np

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.allocators._threshold import least_threshold


class EnergyThreshold(Allocator):
    """The paper fixes e (0.02) and takes the size that comes of it; here e is the least that the budgets allow. e bounds the
    relative squared Frobenius error of the space, and a layer takes its cheapest option, of any type, within it. The problem's
    table is only scored."""

    name = "energy"

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        values = [np.square(ladder.column("frobenius")) for ladder in problem.space.ladders]
        return finish(problem, least_threshold(problem, values, rule=self.name), float("nan"))
