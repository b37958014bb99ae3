"""Our own sampler. It fits a model of the loss to all that was measured, solves it exactly under draws from its posterior (Thompson, 1933),
and proposes where the hypervolume is expected to grow most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ranksearch import checks
from ranksearch.allocators import Additive, lagrangian_hull
from ranksearch.allocators import Problem as Allocating
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.proxies import Energy, Frobenius
from ranksearch.results.pareto import growths, non_dominated
from ranksearch.samplers.problem import Problem
from ranksearch.samplers.sampler import Sampler
from ranksearch.space.table import Table
from ranksearch.surrogate import Curves, LossModel, Observations, curves, fit, least_of_draws

REMEMBERED = 400  # observations that models are fitted to: the front and the latest
POINTS = 24  # of every solved front
FINALISTS = 32  # whose expected growth of the hypervolume is computed over all draws
WITHIN, SECONDS = 12, 0.1  # optima within limits and shares of them, over all fronts; and what HiGHS may take for each
USEFUL = 0.5  # of the largest loss seen: networks that lost more are worth nothing, of metrics without a worst value
FEWEST = 4  # starts, where they are half of the trials at most: what the links of a model are fitted to first
FLOOR = 0.02  # of the 0.9 quantile of rises: smaller differences are taken for noise
NEIGHBOURS = 64  # of the front that are tried, farther and farther away, where all that was solved is known
BARREN = 2  # times that fronts are solved without anything new on them, before more is observed
EVERY = 6  # proposals, one of which goes to what was measured without training, if that is expected to win at its own cost
LEAST = 0.01  # of the dense network's metric, by which it is to win
CARRIED = 1 / 3  # of the difference between such a measurement and the model that evaluations show again (docs/results/samplers.md)
RANDOM = 8  # observations before anything is modelled where only the number of options is known


class Surrogate(Sampler):
    """Fits `ranksearch.surrogate.LossModel` to every evaluation and to what was measured without training, each with a link of its own.
    Fronts over all budgets are solved exactly for the most likely model and for some drawn from its posterior, at random prices of the
    costs; of their points that are neither known nor in flight the one is proposed with which the hypervolume of the front, those in
    flight among it at their expected values, is expected to grow most over ``draws`` models. The hypervolume says little of single budgets:
    every sixth proposal is an answer of the portfolio that is expected to beat what was evaluated within its own cost, if there is one.

    Without a `Problem`, as in a search of something else than networks, every objective is an additive Gaussian process over the
    options, and proposals are least for randomly weighted draws of them.

    Args:
        draws: models drawn for the expectation.
        fronts: models whose fronts are solved, the most likely one among them.
        start_share: of the trials that starts may take before the sampler is asked; above 0 at least `FEWEST`, as far as these are no more
            than half. The model knows what the others lost without training, and proposes what it expects more of.

    Raises:
        InvalidArgument: ``draws`` or ``fronts`` below 1, or ``start_share`` not between 0 and 1.
    """

    name = "surrogate"

    def __init__(self, *, draws: int = 16, fronts: int = 8, start_share: float = 0.1) -> None:
        self.draws, self.fronts = checks.whole("draws", draws, least=1), checks.whole("fronts", fronts, least=1)
        self.start_share = checks.fraction("start_share", start_share, hint="a share of the trials")

    def starts(self, trials: int) -> int:
        return max(super().starts(trials), min(FEWEST, trials // 2) if self.start_share else 0)

    def _begin(self, seed: int) -> None:
        self._observed: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # indices and values
        self._best: list[tuple[np.ndarray, np.ndarray]] | None = []  # of these the front; None: to be found anew
        self._failed: set[bytes] = set()
        self._flying: dict[bytes, np.ndarray] = {}
        self._solved: _Solved | None = None  # until enough has been observed
        self._stale = 0
        self._turn = 0  # proposals
        self._vain = 0  # candidates in a row that were known or refused
        self._barren = 0  # fronts solved in a row that had nothing new
        self._model: LossModel | None = None
        self._curves = None if self.problem is None or not self.problem.measured else _curves(self.problem)

    def propose(self) -> np.ndarray:
        self._vain = 0
        indices = super().propose()
        self._flying[indices.tobytes()] = indices.copy()
        return indices

    def _candidate(self) -> np.ndarray:
        self._vain += 1
        self._turn += self._vain == 1
        if self._vain > 8 or self._barren >= BARREN:  # everything solved is known: something near what is good
            return self._neighbour()
        if self._curves is None or self.problem is None:
            return self._additive()
        if self._solved is None:
            self._solved = self._solve(self.problem, self._curves)
        front = np.array([values for _, values in self._front()]).reshape(-1, self.n_objectives)
        flying, best = list(self._flying.values()), None
        if self._turn % EVERY == 0:
            best = self._solved.winner(front, flying, taken=self._taken)
        if best is None:
            best = self._solved.best(front, flying, taken=self._taken)
        if best is None:
            self._solved, self._barren = None, self._barren + 1
            return self._neighbour()
        self._barren = 0
        self._solved.refused.add(best.tobytes())
        return best

    def _learn(self, indices: np.ndarray, values: list[float] | None) -> None:
        key = indices.tobytes()
        self._flying.pop(key, None)
        if values is None:
            self._failed.add(key)
            return
        if key in self._observed and np.array_equal(self._observed[key][1], values):
            return  # the answer to a duplicate
        row = (indices, np.array(values))
        self._best = None if key in self._observed or self._best is None else _front_of([*self._best, row])
        self._observed[key] = row
        self._barren = 0
        self._stale += 1
        if self._stale > len(self._observed) // 50:
            self._solved, self._stale = None, 0

    def _taken(self, key: bytes) -> bool:
        return key in self._observed or key in self._failed or key in self._flying

    def _front(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Indices and values of what nothing observed dominates."""
        if self._best is None:
            self._best = _front_of(list(self._observed.values()))
        return self._best

    def _remembered(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices and values that models are fitted to: the front, and the latest."""
        rows = list(self._observed.values())
        if not rows:
            return np.zeros((0, len(self.shape)), dtype=np.int64), np.zeros((0, self.n_objectives))
        indices, values = (np.array(part) for part in zip(*rows, strict=True))
        if len(rows) > REMEMBERED:
            front = np.flatnonzero(_best(values))[-REMEMBERED // 2 :]
            kept = np.union1d(front, np.arange(len(rows) - REMEMBERED + len(front), len(rows)))
            indices, values = indices[kept], values[kept]
        return indices, values

    # -- where the space is known ------------------------------------------------------------------------------

    def _dense(self) -> np.ndarray:
        """Values of the dense network, or the best of each that is known."""
        assert self.problem is not None
        known = self._observed.get(self.problem.space.dense.tobytes())
        if known is not None:
            return known[1]
        values = [values for _, values in self._observed.values()]
        return np.min(values, axis=0) if values else np.zeros(self.n_objectives)

    def _solve(self, problem: Problem, known: Curves) -> _Solved:
        """The model of what was observed, and the fronts of some likely ones."""
        indices, values = self._remembered()
        dense = self._dense()
        seen = _observations(problem, indices, values - dense)
        self._model = model = fit(known, seen, start=self._model)
        parameters = [model.mean, *(model.draw(self._rng) for _ in range(self.fronts - 1))]
        found: dict[bytes, np.ndarray] = {}
        for drawn in parameters:
            for candidate in _fronts(problem, model, drawn, self._rng, limited=WITHIN // len(parameters)):
                if candidate.tobytes() not in found and self._admissible(candidate):
                    found[candidate.tobytes()] = candidate
        drawn = [model.mean, *(model.draw(self._rng) for _ in range(self.draws))]
        candidates = np.array(list(found.values()), dtype=np.int64).reshape(-1, len(self.shape))
        return _Solved.of(_Scale.of(problem, values, dense), model, drawn, candidates)

    # -- where only the number of options is known ----------------------------------------------------------------

    def _additive(self) -> np.ndarray:
        """The least of a randomly weighted sum of drawn objectives, or something random while little is known."""
        indices, values = self._remembered()
        if len(indices) < RANDOM or self._rng.random() < 0.1:
            return self._rng.integers(0, np.array(self.shape))
        return least_of_draws(self.shape, indices, values, self._rng)

    def _neighbour(self) -> np.ndarray:
        """Something of the front with few options changed; something random where nothing is known."""
        shape = np.array(self.shape)
        if not self._observed:
            return self._rng.integers(0, shape)
        front = self._front()
        indices = front[0][0]
        for tried in range(NEIGHBOURS):
            indices = front[int(self._rng.integers(len(front)))][0].copy()
            changed = self._rng.random(len(shape)) < tried / NEIGHBOURS
            changed[self._rng.integers(len(shape))] = True
            indices[changed] = self._rng.integers(0, shape[changed])
            if not self._taken(indices.tobytes()) and self._admissible(indices):
                break
        return indices


@dataclass(frozen=True)
class _Solved:
    """Points of solved fronts, and what drawn models expect of them."""

    scale: _Scale
    candidates: np.ndarray  # int64, shape: (n, n_sites)
    expected: np.ndarray  # scaled values: most likely model first, then those drawn; shape: (draws, n, n_objectives)
    members: np.ndarray  # scaled values expected of what was measured without training, shape: (n_evidence, n_objectives)
    model: LossModel
    refused: set[bytes]  # proposed from here already

    @classmethod
    def of(cls, scale: _Scale, model: LossModel, drawn: Sequence[np.ndarray], candidates: np.ndarray) -> _Solved:
        costs = scale.problem.costs(candidates)
        expected = np.array([_expected(scale, model, parameters, candidates, costs) for parameters in drawn])
        return cls(scale, candidates, expected, _members(scale, model), model, set())

    def winner(self, front: np.ndarray, flying: Sequence[np.ndarray], *, taken: Callable[[bytes], bool]) -> np.ndarray | None:
        """Of what was measured without training the configuration that is expected to beat by most the best evaluated within one of its own
        costs; None where none does by `LEAST`."""
        problem = self.scale.problem
        left = self._left(problem.evidence, taken)
        if not len(left):
            return None
        points, members = self._points(front, flying), self.members[left]
        wins = np.full(len(members), -np.inf)
        for cost in set(range(len(problem.objectives))) - set(problem.measured):
            within = points[None, :, cost] <= members[:, None, cost]  # (members, points)
            for metric in problem.measured:
                best = np.where(within, points[None, :, metric], 1.0).min(axis=1, initial=1.0)
                wins = np.maximum(wins, best - members[:, metric])
        most = int(np.argmax(wins))
        return problem.evidence[left[most]].copy() if wins[most] >= LEAST else None

    def _left(self, rows: np.ndarray, taken: Callable[[bytes], bool]) -> np.ndarray:
        """Which rows were neither proposed from here nor are otherwise known."""
        keys = (row.tobytes() for row in rows)
        return np.flatnonzero(np.array([key not in self.refused and not taken(key) for key in keys], dtype=bool))

    def _points(self, front: np.ndarray, flying: Sequence[np.ndarray]) -> np.ndarray:
        """Scaled values of the front, and of what is in flight at its expected ones."""
        points = self.scale(front)
        if not flying:
            return points
        soon = np.array(flying)
        return np.concatenate([points, _expected(self.scale, self.model, self.model.mean, soon, self.scale.problem.costs(soon))])

    def best(self, front: np.ndarray, flying: Sequence[np.ndarray], *, taken: Callable[[bytes], bool]) -> np.ndarray | None:
        """The candidate with which the hypervolume is expected to grow most; None where none is left."""
        left = self._left(self.candidates, taken)
        if not len(left):
            return None
        points = self._points(front, flying)
        sums = growths(points, self.expected[0, left]) + growths(points, self.expected[-1, left])
        finalists = left[np.argsort(-sums, kind="stable")[:FINALISTS]]
        expected = self.expected[:, finalists]
        growth = growths(points, expected.reshape(-1, expected.shape[2])).reshape(expected.shape[:2]).mean(axis=0)
        if max(growth) <= 0:  # nothing is expected to grow: what the most likely model puts nearest to it
            return self.candidates[left[int(np.argmin(self.expected[0, left].max(axis=1)))]].copy()
        return self.candidates[finalists[int(np.argmax(growth))]].copy()


def _front_of(rows: list[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of indices and values that no other dominates, in their order."""
    return [rows[i] for i in np.flatnonzero(_best(np.array([values for _, values in rows])))] if rows else []


def _best(values: np.ndarray) -> np.ndarray:
    """Which rows are on the front, bool, shape: (n,)."""
    directions: list[Literal["min", "max"]] = ["min" for _ in range(values.shape[1])]
    return non_dominated(values, directions)


@dataclass(frozen=True)
class _Scale:
    """From values to what hypervolume is taken of: 1 and more is worth nothing. Costs are shares of the dense network's. Metrics are what
    is lost against the dense network, in the units of `ranksearch.results.pareto.relative_hypervolume`: in shares of its value, so that a
    metric of which more is better is worth nothing at 0, whatever was seen of it so far. Others have no worst value; their unit is half of
    the largest loss seen where that is more."""

    problem: Problem
    dense: np.ndarray
    unit: np.ndarray  # shape: (n_objectives,)

    @classmethod
    def of(cls, problem: Problem, values: np.ndarray, dense: np.ndarray) -> _Scale:
        most = (values - dense).max(axis=0, initial=0.0)
        share = np.where(dense < 0, 0.0, USEFUL)  # below 0: more is better
        return cls(problem, dense, np.maximum(np.where(dense == 0, 1.0, np.abs(dense)), share * most))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        scaled = np.array(values, dtype=np.float64).reshape(-1, len(self.unit))
        for number in self.problem.measured:
            scaled[:, number] = (scaled[:, number] - self.dense[number]) / self.unit[number]
        return scaled


def _expected(scale: _Scale, model: LossModel, parameters: np.ndarray, candidates: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Scaled values that a model expects of candidates with these costs (`Problem.costs`), shape: (n, n_objectives)."""
    problem, values = scale.problem, costs.copy()
    sums = model.table(parameters).score(candidates)
    first = 1 if len(problem.rises) else 0
    for channel, number in enumerate(problem.measured, start=first):
        values[:, number] = scale.dense[number] + model.linked(sums, channel=channel, parameters=parameters)
    return scale(values)


def _members(scale: _Scale, model: LossModel) -> np.ndarray:
    """Scaled values expected of what was measured without training: the model's, corrected by a part of what that measurement differs from
    it by; shape: (n_evidence, n_objectives)."""
    problem = scale.problem
    if not len(problem.rises):
        return np.zeros((0, len(problem.objectives)))
    values = problem.costs(problem.evidence)
    sums = model.table().score(problem.evidence)
    apart = model.transformed(problem.rises) - model.transformed(model.linked(sums))
    for channel, number in enumerate(problem.measured, start=1):
        expected = model.transformed(model.linked(sums, channel=channel), channel=channel) + CARRIED * apart
        values[:, number] = scale.dense[number] + np.sinh(expected) * model.floors[channel]
    return scale(values)


def _curves(problem: Problem) -> Curves | None:
    """What is known of the space before anything is measured; None where that is nothing: no option has an error."""
    proxy = Energy() if "fisher" in problem.space.metric else Frobenius()
    try:
        return curves(problem.space, proxy.table(problem.space))
    except InvalidArgument:
        return None


def _observations(problem: Problem, indices: np.ndarray, rises: np.ndarray) -> Observations:
    """Everything measured, a channel for what was measured without training and one for every metric."""
    channels: list[tuple[np.ndarray, np.ndarray]] = [(problem.evidence, problem.rises)] if len(problem.rises) else []
    channels += [(indices, rises[:, number]) for number in problem.measured]
    floors = [max(FLOOR * float(np.quantile(np.abs(of), 0.9)), 1e-9) if len(of) else 1.0 for _, of in channels]
    return Observations(
        np.concatenate([rows for rows, _ in channels]), np.concatenate([of for _, of in channels]),
        channels=np.concatenate([np.full(len(of), number) for number, (_, of) in enumerate(channels)]), floors=floors,
    )  # fmt: skip


def _fronts(problem: Problem, model: LossModel, parameters: np.ndarray, random: np.random.Generator, *, limited: int) -> list[np.ndarray]:
    """Exact optima of a model: points of its convex front for every cost alone and one random mixture of them, its optimum within the
    limits, and up to ``limited`` in all within random shares of them."""
    space, table = problem.space, model.table(parameters)
    names = [name for name in space.costs if name in problem.objectives and space.baseline[name]] or [space.leading_cost]
    shares = np.array([np.concatenate(space.cost_tables[name].values) / space.baseline[name] for name in names])
    ends = np.cumsum(space.shape)[:-1]
    mixtures = [*np.eye(len(names)), *([random.dirichlet(np.ones(len(names)))] if len(names) > 1 else [])]
    found = []
    for weights in mixtures:
        hull = lagrangian_hull(table.values, np.split(weights @ shares, ends))
        levels = np.linspace(hull.costs[0], hull.costs[-1], POINTS) + random.uniform(0, (hull.costs[-1] - hull.costs[0]) / POINTS)
        found += [hull.indices(point) for point in np.unique(np.searchsorted(hull.costs, levels).clip(0, len(hull.costs) - 1))]
    return found + _within(problem, table, random, limited)


def _within(problem: Problem, table: Table, random: np.random.Generator, count: int) -> list[np.ndarray]:
    """The optimum of a table within the limits, and those within random shares of them; none without limits."""
    found: list[np.ndarray] = []
    for share in (1.0, *random.uniform(0.3, 1.0, size=max(count - 1, 0))) if problem.limits else ():
        budgets = {name: problem.space.budget(name, type(amount)(amount * share)) for name, amount in problem.limits.items()}
        try:
            found.append(Additive(seconds=SECONDS).allocate(Allocating(problem.space, table, budgets)).indices)
        except InfeasibleBudget:  # a share below what the space can have
            continue
    return found
