"""Measure, refit, resolve: a model of the loss is fitted to what was measured near a budget and the allocation solved exactly again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ranksearch import checks
from ranksearch.allocators import Additive, Problem
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table
from ranksearch.surrogate import Curves, LossModel, Observations, fit

ANCHOR_NOISE = 2.0  # of one site's loss alone, relative to that of a whole configuration: it is another place than where the model is used


@dataclass(frozen=True)
class Refitted:
    """What came of it."""

    value: float  # the least measurement within the budgets
    start: float  # the measurement of the optimum before anything was measured
    measured: int  # measurements made, the dense network's among them
    model: LossModel  # of all of them
    ranked: np.ndarray  # what was measured within the budgets, the least first: option per site, int64, shape: (n, n_sites)

    @property
    def indices(self) -> np.ndarray:
        """The best of these, option per site, int64, shape: (n_sites,)."""
        return self.ranked[0]


def refit(
    space: SearchSpace,
    curves: Curves,
    measure: Callable[[np.ndarray], float],
    budgets: Mapping[str, float],
    *,
    known: Sequence[np.ndarray] = (),
    rounds: int = 3,
    each: int = 8,
    anchors: bool = False,
    seed: int = 0,
    seconds: float = 2.0,
) -> Refitted:
    """The best configuration within budgets that a model of the loss finds, which learns from whole networks measured near them.

    First every site alone is set to its option in the optimum of ``curves`` (its anchor, as LEMS takes one per site), and everything
    ``known`` is measured; then, ``rounds`` times, the model is fitted to all measurements, the allocation is solved exactly for the most
    likely model and for models drawn from what is open (Thompson, 1933), and these optima are measured, ``each`` new ones a round. The last
    model's optimum is measured too. Together these are at most 3 + ``rounds`` x ``each`` measurements, the dense network's among them, and
    one for each of ``known`` and of the anchors.

    Args:
        space: of ``curves``.
        curves: what is known before (`ranksearch.surrogate.curves`).
        measure: loss of option indices, to be minimised; the dense network's is taken off.
        budgets: as for `Problem`.
        known: further configurations to measure and learn from, such as other rules' answers to the same budgets.
        anchors: whether single sites are measured.
        seed: of the draws.
        seconds: for HiGHS, per allocation; what is known by then is taken.

    Raises:
        InvalidArgument: ``rounds`` or ``each`` below 1, or as for `Problem`.
        InfeasibleBudget: nothing is within the budgets.
    """
    checks.whole("rounds", rounds, least=1)
    checks.whole("each", each, least=1)
    seen = _Measured(space, measure)
    solver, random = Additive(seconds=seconds), np.random.default_rng(seed)

    def solved(table: Table) -> np.ndarray:
        return solver.allocate(Problem(space, table, budgets)).indices

    first = solved(Table(tuple(np.exp(base) for base in curves.base), "sum"))
    begin = seen.add(first)
    for indices in known:
        seen.add(indices)
    if anchors:
        for indices in _anchors(space, first):
            seen.add(indices, noise=ANCHOR_NOISE)
    model = fit(curves, seen.observations())
    for _ in range(rounds):
        new = [solved(model.table())]
        tries = 0
        while len({x.tobytes() for x in new} - seen.values.keys()) < each and tries < 4 * each:
            new.append(solved(model.table(model.draw(random))))
            tries += 1
        for indices in new:
            seen.add(indices)
        model = fit(curves, seen.observations(), start=model)
    seen.add(solved(model.table()))
    ranked = seen.ranked(Problem(space, model.table(), budgets))
    return Refitted(seen.values[ranked[0].tobytes()], begin, len(seen.values) + 1, model, ranked)


class _Measured:
    """Measurements by configuration; none is made twice."""

    def __init__(self, space: SearchSpace, measure: Callable[[np.ndarray], float]) -> None:
        self._measure = measure
        self._dense = measure(space.dense)
        self.values: dict[bytes, float] = {}
        self._rows: list[np.ndarray] = []
        self._noise: list[float] = []

    def add(self, indices: np.ndarray, *, noise: float = 1.0) -> float:
        key = indices.tobytes()
        if key not in self.values:
            self.values[key] = self._measure(indices)
            self._rows.append(indices)
            self._noise.append(noise)
        return self.values[key]

    def observations(self) -> Observations:
        values = np.array([self.values[row.tobytes()] for row in self._rows])
        finite = np.isfinite(values)
        return Observations(np.array(self._rows)[finite], values[finite] - self._dense, noise=np.array(self._noise)[finite])

    def ranked(self, problem: Problem) -> np.ndarray:
        """Those within the budgets, the least measured first."""
        within = [
            row for row in self._rows
            if (np.sum([c[i] for c, i in zip(problem.costs, row, strict=True)], axis=0) <= problem.room).all()
        ]  # fmt: skip
        return np.array(sorted(within, key=lambda row: self.values[row.tobytes()]))


def _anchors(space: SearchSpace, optimum: np.ndarray) -> list[np.ndarray]:
    """For every site the dense network with that site at its option in an optimum; where it is dense there, at its dearest other one."""
    found = []
    for site, option in enumerate(optimum):
        if len(space.ladders[site]) > 1:
            anchor = space.dense.copy()
            anchor[site] = min(int(option), len(space.ladders[site]) - 2)
            found.append(anchor)
    return found
