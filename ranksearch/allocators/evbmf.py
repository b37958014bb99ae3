"""MUSCO's ranks (arXiv 1903.09973): the analytic solution of empirical variational Bayesian matrix factorization
(Nakajima, Sugiyama, Babacan, Tomioka: "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14, 2013), moved towards full rank by a weakening factor."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar

from ranksearch.allocators._base import Allocation, Allocator, Problem, finish
from ranksearch.decompositions.folding import FOLDINGS, MODES
from ranksearch.errors import InfeasibleBudget
from ranksearch.sites import canonical_weight
from ranksearch.space.spectra import Spectra

# Nakajima et al. 2013, theorem 2 and corollary 1: the threshold's constant for alpha -> 0
TAU = 2.5129


def evbmf_rank(matrix: np.ndarray, *, noise: float | None = None) -> int:
    """How many components of ``matrix`` (m, n) stand out of Gaussian noise, whose variance is estimated unless given. The rule has
    no parameters and costs one SVD and a scalar minimisation."""
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    rows, columns = matrix.shape  # L <= M in the paper
    sigma = np.linalg.svd(matrix, compute_uv=False)
    if not sigma.any():
        return 0
    alpha = rows / columns
    tau = TAU * np.sqrt(alpha)
    if noise is None:
        # eq. 26-28: bounds on the variance, then the free energy's minimum between them
        edge = (1 + tau) * (1 + alpha / tau)  # x-bar
        most = min(int(np.ceil(rows / (1 + alpha))) - 1, rows) - 1
        total = np.square(sigma).sum()
        upper = total / (rows * columns)
        lower = max(sigma[most + 1] ** 2 / (columns * edge), np.square(sigma[most + 1 :]).mean() / columns) if most + 1 < rows else 0.0
        lower = max(lower, upper * 1e-12)
        if lower >= upper:
            noise = upper
        else:
            found = minimize_scalar(lambda v: _free_energy(v, sigma, rows, columns, edge), bounds=(lower, upper), method="bounded")
            noise = float(found.x)  # type: ignore[attr-defined]
    threshold = np.sqrt(columns * noise * (1 + tau) * (1 + alpha / tau))
    return int((sigma > threshold).sum())


def _free_energy(noise: float, sigma: np.ndarray, rows: int, columns: int, edge: float) -> float:
    """Nakajima et al. 2013, eq. 25, up to a constant and the factor."""
    alpha = rows / columns
    x = np.square(sigma) / (columns * noise)
    signal, rest = x[x > edge], x[x <= edge]
    inner = signal - (1 + alpha)
    tau = 0.5 * (inner + np.sqrt(np.maximum(inner**2 - 4 * alpha, 0.0)))
    value = np.sum(rest - np.log(np.maximum(rest, 1e-300))) + np.sum(signal - tau)
    return float(value + np.sum(np.log((tau + 1) / signal)) + alpha * np.sum(np.log(tau / alpha + 1)))


class EVBMF(Allocator):
    """Every layer has rank = full - k (full - EVBMF rank). The weakening factor k is one for all layers, and the least that
    satisfies the budgets, 0 where full ranks do. MUSCO takes a k below 1 and iterates with fine-tuning; a budget below the EVBMF
    ranks is met by scaling them, rank = (2 - k) EVBMF rank for k in (1, 2]. Every rank is rounded down to one on the ladder; layers
    with a rank that does not pay stay dense. The problem's table is only scored.

    It is not in ``ALLOCATORS``, because it needs the weights.

    Args:
        spectra: of the same model and sites as the problem's space.
        decomposition: "svd", or "tucker2" (ranks of both channel unfoldings), as in MUSCO.
    """

    name = "evbmf"

    def __init__(self, spectra: Spectra, *, decomposition: Literal["svd", "tucker2"] = "svd") -> None:
        self.spectra, self.decomposition = spectra, decomposition
        self._ranks: dict[str, tuple[tuple[int, int], ...]] = {}

    def ranks(self, name: str) -> tuple[tuple[int, int], ...]:
        """(EVBMF rank, full rank) for every entry of a site's rank tuple; groups are averaged, rounded up."""
        if name not in self._ranks:
            site = self.spectra.sites[name]
            weight = canonical_weight(self.spectra.model.get_submodule(site.name), site).double().cpu()
            foldings = [FOLDINGS["svd"]] if self.decomposition == "svd" else [MODES["in"], MODES["out"]]
            self._ranks[name] = tuple(
                (max(1, int(np.ceil(np.mean([evbmf_rank(m) for m in folding.fold(site, weight).numpy()])))), min(folding.shape(site)[1:]))
                for folding in foldings
            )
        return self._ranks[name]

    def allocate(self, problem: Problem) -> Allocation:
        self.check(problem)
        low, high = 0.0, 2.0
        if self._fits(problem, full := self._at(problem, low)):
            return finish(problem, full, float("nan"))
        best = self._at(problem, high)
        if not self._fits(problem, best):
            raise self._too_large(problem, best)
        for _ in range(40):  # far below one rank of any layer
            middle = (low + high) / 2
            indices = self._at(problem, middle)
            if self._fits(problem, indices):
                high, best = middle, indices
            else:
                low = middle
        return finish(problem, best, float("nan"))

    def _too_large(self, problem: Problem, smallest: np.ndarray) -> InfeasibleBudget:
        """The error where even the smallest options of the type, at every layer that has any, are over a budget."""
        spent = np.sum([c[i] for c, i in zip(problem.costs, smallest, strict=True)], axis=0) + problem.limits - problem.room
        over = [
            f"{problem.text(n, int(limit))}: its smallest network has {problem.text(n, int(amount), bare=True)}"
            for n, (limit, amount) in enumerate(zip(problem.limits, spent, strict=True))
            if amount > limit
        ]
        without = sum(not ladder.mask((self.decomposition,)).any() for ladder in problem.space.ladders)
        dense = f", and {without} of {len(smallest)} layers have none and stay dense" if without else ""
        return InfeasibleBudget(
            f"{'; '.join(over)}: evbmf takes options of {self.decomposition!r} alone{dense}; raise the budget or take another allocator"
        )

    def _fits(self, problem: Problem, indices: np.ndarray) -> bool:
        total = np.sum([c[i] for c, i in zip(problem.costs, indices, strict=True)], axis=0)
        return bool((total <= problem.room).all())

    def _at(self, problem: Problem, weakening: float) -> np.ndarray:
        picked = []
        for ladder in problem.space.ladders:
            limit = [
                full - weakening * (full - rank) if weakening <= 1 else max(1.0, (2 - weakening) * rank)
                for rank, full in self.ranks(ladder.site.name)
            ]
            options = [(i, ladder.rank(i)) for i in np.flatnonzero(ladder.mask((self.decomposition,))).tolist()]
            within = [(i, rank) for i, rank in options if all(r <= bound for r, bound in zip(rank, limit, strict=True))]
            if not options or (within and _pays_not(limit, options)):
                picked.append(len(ladder) - 1)
            elif within:
                picked.append(max(within, key=lambda item: (sum(item[1]), item[0]))[0])
            else:  # thinned ladders may start above the rank
                picked.append(min(options, key=lambda item: (sum(item[1]), item[0]))[0])
        return np.array(picked, dtype=np.int64)


def _pays_not(limit: list[float], options: list[tuple[int, tuple[int, ...]]]) -> bool:
    """Whether the wanted rank is above every option in each entry, in which case it costs more than dense."""
    return all(int(bound) > max(rank[k] for _, rank in options) for k, bound in enumerate(limit))
