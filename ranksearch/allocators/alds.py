"""ALDS (arXiv 2107.11442): the least largest relative operator-norm error over layers, over ranks and types; exact,
and its own heuristic beside it for comparison."""

from __future__ import annotations

import numpy as np

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.allocators._threshold import least_threshold
from ranksearch.allocators.minimax import Minimax
from ranksearch.errors import InfeasibleBudget


class ALDS(Allocator):
    """The paper's problem (eq. 3), solved exactly on the space's operator norms; what the threshold leaves of the
    budget goes to the least sum of errors. The problem's table is only scored."""

    name = "alds"

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        exact = Minimax().allocate(Problem(problem.space, problem.space.table("operator", "max"), problem.budgets))
        return finish(problem, exact.indices, float("nan"))


class ALDSHeuristic(Allocator):
    """The paper's algorithm 1, with types in the place of numbers of groups: given a type per layer, one error for all
    layers; given each layer's cost, its best type at no more than that; repeated from several starts (each type
    everywhere, then random ones). What it finds is never better than `ALDS`.

    Args:
        starts, iterations: as in the paper.
        seed: of the random starts.
    """

    name = "alds_heuristic"

    def __init__(self, *, starts: int = 15, iterations: int = 4, seed: int = 0) -> None:
        self.starts, self.iterations, self.seed = starts, iterations, seed

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        values = problem.space.table("operator", "max").values
        # a type per option; dense is of no type, least_threshold adds it to all
        types = [np.array(ladder.decompositions)[ladder.which] for ladder in problem.space.ladders]
        choices = [sorted(set(t[:-1])) for t in types]
        scale = 1 / np.maximum(problem.limits, 1)
        prices = [cost @ scale for cost in problem.costs]
        rng = np.random.default_rng(self.seed)
        everywhere = sorted(set().union(*choices))
        best: tuple[float, np.ndarray] | None = None
        refused: InfeasibleBudget | None = None
        for start in range(max(self.starts, len(everywhere))):
            if start < len(everywhere):
                chosen = [everywhere[start] if everywhere[start] in c else (c[0] if c else "dense") for c in choices]
            else:
                chosen = [str(rng.choice(c)) if c else "dense" for c in choices]
            for _ in range(self.iterations):
                try:
                    masks = [t == one for t, one in zip(types, chosen, strict=True)]
                    indices = least_threshold(problem, values, masks, rule=self.name)
                except InfeasibleBudget as error:
                    refused = error
                    break
                error_now = max(float(v[i]) for v, i in zip(values, indices, strict=True))
                if best is None or error_now < best[0]:
                    best = (error_now, indices)
                for site, index in enumerate(indices):
                    fits = np.flatnonzero(prices[site][:-1] <= prices[site][index])
                    if len(fits):
                        chosen[site] = str(types[site][fits[np.argmin(values[site][fits])]])
        if best is None:
            assert refused is not None
            raise refused
        return finish(problem, best[1], float("nan"))
