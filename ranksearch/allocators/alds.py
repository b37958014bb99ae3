"""ALDS (arXiv 2107.11442) chooses ranks and types so that the largest relative operator-norm error of a layer is least. Here it is
solved exactly; the paper's own heuristic stands beside it for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.allocators._threshold import least_threshold
from ranksearch.allocators.minimax import Minimax
from ranksearch.decompositions.folding import FOLDINGS, split_tiles
from ranksearch.errors import InfeasibleBudget
from ranksearch.sites import canonical_weight
from ranksearch.space import Ladder, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table

GROUPED = "grouped_svd"


def relative_errors(space: SearchSpace, spectra: Spectra | None = None) -> Table:
    """The error of every option that ALDS bounds, reduction ``max``: relative operator norms of the residual. That of `grouped_svd`
    is, with ``spectra``, what the paper's code takes: the largest, over the groups, of the first singular value left out, over the
    largest of the whole weight. The norm of the whole residual lies between that and its sqrt(groups)-fold (the paper's theorem, whose
    factor the code drops), so that many groups look better than by the norm.

    Args:
        spectra: the dense network, whose weights are decomposed; None: the norm of the whole residual for all types."""
    table = space.table("operator", "max")
    if spectra is None:
        return table
    return Table(tuple(_by_groups(ladder, values, spectra) for ladder, values in zip(space.ladders, table.values, strict=True)), "max")


def _by_groups(ladder: Ladder, values: np.ndarray, spectra: Spectra) -> np.ndarray:
    rows = np.flatnonzero(ladder.mask((GROUPED,)))
    if not len(rows):
        return values
    site, found = ladder.site, values.copy()
    weight = canonical_weight(spectra.model.get_submodule(site.name), site).double()
    (matrix,) = FOLDINGS["svd"].fold(site, weight)
    top = float(torch.linalg.matrix_norm(matrix, 2))
    for groups in np.unique(ladder.ranks[rows, 0]):
        sigma = torch.linalg.svdvals(split_tiles(matrix, 1, int(groups))[0]).amax(dim=0).cpu().numpy()
        mine = rows[ladder.ranks[rows, 0] == groups]
        found[mine] = np.append(sigma, 0.0)[ladder.ranks[mine, 1]] / max(top, 1e-300)
    return found


class ALDS(Allocator):
    """Solves the paper's problem (eq. 3) exactly. What the threshold leaves of the budget is spent where the sum of errors falls most. The
    problem's table is only scored.

    Args:
        spectra: the dense network, for errors as ALDS has them (`relative_errors`); None: those of the space, which take groups for worse.
    """

    name = "alds"

    def __init__(self, spectra: Spectra | None = None) -> None:
        self.spectra = spectra

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        exact = Minimax().allocate(Problem(problem.space, relative_errors(problem.space, self.spectra), problem.budgets))
        return finish(problem, exact.indices, float("nan"))


class ALDSHeuristic(Allocator):
    """The paper's algorithm 1, with types in the place of numbers of groups. Two steps alternate: with a type given for every
    layer, find one error for all layers; with the cost of every layer given, take its best type at no more than that cost. This is
    repeated from several starts: each type everywhere, then random types. What it finds is never better than what `ALDS` finds.

    Args:
        spectra: as for `ALDS`.
        starts, iterations: as in the paper.
        seed: of the random starts.
    """

    name = "alds_heuristic"

    def __init__(self, spectra: Spectra | None = None, *, starts: int = 15, iterations: int = 4, seed: int = 0) -> None:
        self.spectra, self.starts, self.iterations, self.seed = spectra, starts, iterations, seed

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        values = relative_errors(problem.space, self.spectra).values
        # a type per option; dense is of no type, least_threshold adds it to all
        types = [np.array(ladder.decompositions)[ladder.which] for ladder in problem.space.ladders]
        scale = 1 / np.maximum(problem.limits, 1)
        prices = [costs @ scale for costs in problem.costs]
        best: tuple[float, np.ndarray] | None = None
        refused: InfeasibleBudget | None = None
        for chosen in self._starts([sorted(set(of_site[:-1])) for of_site in types]):
            for _ in range(self.iterations):
                masks = [of_site == one for of_site, one in zip(types, chosen, strict=True)]
                try:
                    indices = least_threshold(problem, values, masks, rule=self.name)
                except InfeasibleBudget as error:
                    refused = error
                    break
                error_now = max(float(v[i]) for v, i in zip(values, indices, strict=True))
                if best is None or error_now < best[0]:
                    best = (error_now, indices)
                chosen = [_least(v, t, p, int(i)) or one for v, t, p, i, one in zip(values, types, prices, indices, chosen, strict=True)]
        if best is None:
            assert refused is not None
            raise refused
        return finish(problem, best[1], float("nan"))

    def _starts(self, choices: Sequence[Sequence[str]]) -> Iterator[list[str]]:
        """A type per site to begin with: each type wherever a site has it, then types at random."""
        everywhere = sorted(set().union(*choices))
        for one in everywhere:
            yield [one if one in c else (c[0] if c else "dense") for c in choices]
        rng = np.random.default_rng(self.seed)
        for _ in range(self.starts - len(everywhere)):
            yield [str(rng.choice(c)) if c else "dense" for c in choices]


def _least(values: np.ndarray, types: np.ndarray, prices: np.ndarray, index: int) -> str | None:
    """The type of least error among a site's options, dense apart, that cost no more than option ``index``; None: no option does."""
    fits = np.flatnonzero(prices[:-1] <= prices[index])
    return str(types[fits[np.argmin(values[fits])]]) if len(fits) else None
