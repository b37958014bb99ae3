"""Measured local search: it moves from a configuration along the ladders, within the budgets, and keeps a move only where a measurement on
calibration data is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ranksearch import checks
from ranksearch.allocators import Additive, Problem
from ranksearch.errors import InfeasibleBudget
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table

SPREAD = 6.0  # how far one round of probes may move a site's weight from the common one


@dataclass(frozen=True)
class Polished:
    """What a local search found."""

    indices: np.ndarray  # option per site, int64, shape: (n_sites,)
    value: float  # its measurement
    start: float  # the measurement of what it was given
    evaluations: int  # measurements made, the first among them
    accepted: int  # moves taken


def polish(
    space: SearchSpace,
    indices: np.ndarray,
    measure: Callable[[np.ndarray], float],
    budgets: Mapping[str, float],
    *,
    evaluations: int = 100,
    table: Table | None = None,
    width: int = 3,
) -> Polished:
    """Improve a configuration by measured exchanges; never returns one that measured worse than the given one.

    First, with enough evaluations, rounds of probing: every site in turn is set to a cheaper option, and how much worse
    that measures, against what ``table`` predicts, corrects the table's weight of that site (within ``SPREAD``); the
    exact optimum of the corrected table is measured. Each round takes one measurement per site and two more.

    Then exchanges: a move takes one site to another option and, where that breaks a budget, a second site to the option
    that makes room at the least loss. Moves are tried in the order of the corrected table's predicted change, at most
    ``width`` per site before others have had their turn; a better measurement is kept at once and the moves are ranked
    anew. Ends after ``evaluations`` measurements, or when no untried move is left. Deterministic if ``measure`` is.

    Args:
        space: whose ladders are moved on.
        indices: where to start, shape: (n_sites,); within the budgets.
        measure: value of option indices to minimise, such as the loss on calibration data (`ranksearch.proxies.CalibrationLoss`).
        budgets: as for `Problem`: bounds on whole-network costs, up to 1 relative.
        evaluations: how often ``measure`` may be called, at least 1.
        table: ranks the moves; relative squared Frobenius errors by default.

    Raises:
        InvalidArgument: ``evaluations`` below 1, misshapen indices, or as for `Problem`.
        InfeasibleBudget: the start breaks a budget.
    """
    checks.whole("evaluations", evaluations, least=1, hint="the start takes one")
    space.configuration(indices)
    if table is None:
        table = Table(tuple(np.square(ladder.column("frobenius")) for ladder in space.ladders), "sum")
    problem = Problem(space, table, budgets)
    start = np.asarray(indices, dtype=np.int64).copy()
    if (_total(problem, start) > problem.room).any():
        over = f"indices cost {space.cost(start)}, over the budgets {dict(budgets)}"
        raise InfeasibleBudget(f"{over}; start from an allocator's answer to them")
    found = _Incumbent(measure, start)
    first = found.value
    _exchange(_corrected(problem, found, evaluations), found, evaluations, width)
    return Polished(found.best, found.value, first, found.evaluations, found.accepted)


class _Incumbent:
    """The best configuration so far, and every measurement that was made: none is made twice."""

    def __init__(self, measure: Callable[[np.ndarray], float], start: np.ndarray) -> None:
        self._measure = measure
        self._known: dict[bytes, float] = {}
        self.accepted = 0
        self.best, self.value = start, self.ask(start)

    @property
    def evaluations(self) -> int:
        """Measurements made."""
        return len(self._known)

    def ask(self, candidate: np.ndarray) -> float:
        key = candidate.tobytes()
        if key not in self._known:
            self._known[key] = float(self._measure(candidate))
        return self._known[key]

    def knows(self, candidate: np.ndarray) -> bool:
        return candidate.tobytes() in self._known

    def improves(self, candidate: np.ndarray) -> bool:
        """Whether a candidate measures better; then it takes the place of the best."""
        value = self.ask(candidate)
        if not value < self.value:
            return False
        self.best, self.value = candidate, value
        self.accepted += 1
        return True


def _corrected(problem: Problem, found: _Incumbent, evaluations: int) -> Problem:
    """Rounds of probing, while three quarters of the evaluations last and the last two rounds were not both in vain. Returns the
    problem with the corrected table."""
    in_vain = 0
    while found.evaluations + len(found.best) + 2 <= 0.75 * evaluations and in_vain < 2:
        problem = replace(problem, table=_probe(problem, found))
        before = found.value
        # the corrected optimum, and the one when every change has a price
        for target in (problem.table, _reluctant(problem.table, found.best)):
            found.improves(Additive().allocate(replace(problem, table=target)).indices)
        in_vain = 0 if found.value < before else in_vain + 1
    return problem


def _exchange(problem: Problem, found: _Incumbent, evaluations: int, width: int) -> None:
    """Rounds of exchanges. A round ends with the first better configuration; where it finds none, the next looks twice as far."""
    # how well moves that grow a site have done so far: the table's word is taken less where it misled
    trust = np.ones(len(found.best))
    widest = 4 * max(problem.space.shape)
    while found.evaluations < evaluations and width <= widest:
        if not _improved(_moves(problem, found.best, trust, width), found, evaluations, trust):
            width *= 2


def _improved(moves: Iterator[tuple[int, np.ndarray]], found: _Incumbent, evaluations: int, trust: np.ndarray) -> bool:
    """Try moves in their order up to the first that measures better; their outcomes change the trust in place."""
    for site, candidate in moves:
        if found.knows(candidate):
            continue
        if found.evaluations >= evaluations:
            return False
        if found.improves(candidate):
            trust[site] *= 1.5
            return True
        trust[site] *= 0.7
    return False


def _probe(problem: Problem, found: _Incumbent) -> Table:
    """The table with every site's values scaled to what a cheaper option of it measures."""
    table, now, value = problem.table, found.best, found.value
    current = np.array([v[i] for v, i in zip(table.values, now, strict=True)])
    typical = max(float(current.mean()), float(np.mean([v.max() for v in table.values])) * 1e-3, 1e-300)
    factors = np.full(len(now), np.nan)
    for site, values in enumerate(table.values):
        rise = values - current[site]
        cost = problem.costs[site]
        cheaper = np.flatnonzero((cost <= cost[now[site]]).all(axis=1) & (rise > 0))
        if len(cheaper):
            option = int(cheaper[np.argmin(np.abs(np.log(rise[cheaper] / typical)))])
            candidate = now.copy()
            candidate[site] = option
            factors[site] = max(found.ask(candidate) - value, 0.0) / rise[option]
    seen = factors[np.isfinite(factors)]
    common = float(np.median(seen)) if len(seen) else 0.0
    if not common > 0:
        return table
    weights = np.clip(np.nan_to_num(factors / common, nan=1.0), 1 / SPREAD, SPREAD)
    # the square root: a probe is one step of a curved function
    return replace(table, values=tuple(v * w**0.5 for v, w in zip(table.values, weights, strict=True)))


def _reluctant(table: Table, now: np.ndarray) -> Table:
    """The table with a price on leaving the present option: a quarter of the mean value per site."""
    step = 0.25 * float(np.mean([v[i] for v, i in zip(table.values, now, strict=True)]))
    moved = []
    for values, index in zip(table.values, now, strict=True):
        price = np.full(len(values), step)
        price[index] = 0.0
        moved.append(values + price)
    return replace(table, values=tuple(moved))


def _total(problem: Problem, indices: np.ndarray) -> np.ndarray:
    """What the sites cost together, int64, shape: (n_budgets,)."""
    return np.sum([costs[i] for costs, i in zip(problem.costs, indices, strict=True)], axis=0)


def _moves(problem: Problem, now: np.ndarray, trust: np.ndarray, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Feasible neighbours and the site that they grow, best predicted first."""
    values, costs = problem.table.values, problem.costs
    slack = problem.room - _total(problem, now)
    scale = 1 / np.maximum(problem.room, 1)
    scored: list[tuple[float, int, int, np.ndarray]] = []
    for site in range(len(now)):
        gain = values[site][now[site]] - values[site]
        grow = [int(i) for i in _nearest(np.flatnonzero(gain > 0), gain, width)]
        for option in grow:
            rise = costs[site][option] - costs[site][now[site]]
            if (rise <= slack).all():
                scored.append(_scored(values, now, {site: option}, site, trust, len(scored)))
                continue
            # some other site must give: its option that frees enough at the least loss
            for other in range(len(now)):
                if other == site:
                    continue
                freed = costs[other][now[other]] - costs[other]
                enough = np.flatnonzero((freed + slack >= rise).all(axis=1))
                if len(enough):
                    loss = values[other][enough]
                    place = enough[np.lexsort((freed[enough] @ scale, loss))[0]]
                    scored.append(_scored(values, now, {site: option, other: int(place)}, site, trust, len(scored)))
    # two per growing site before the third of any
    scored.sort(key=lambda item: (item[0], item[1]))
    turn: dict[int, int] = {}
    ranked = []
    for score, number, site, candidate in scored:
        turn[site] = turn.get(site, 0) + 1
        if turn[site] <= width * 2:
            ranked.append(((turn[site] - 1) // 2, score, number, site, candidate))
    ranked.sort(key=lambda item: item[:3])
    for _, _, _, site, candidate in ranked:
        yield site, candidate


def _nearest(options: np.ndarray, gain: np.ndarray, width: int) -> np.ndarray:
    """``width`` options from the smallest to larger gains, in growing steps."""
    ordered = options[np.argsort(gain[options], kind="stable")]
    steps = np.unique(np.round(np.geomspace(1, max(len(ordered), 1), min(width, max(len(ordered), 1)))).astype(int)) - 1
    return ordered[steps] if len(ordered) else ordered


def _scored(values: Sequence[np.ndarray], now: np.ndarray, changes: Mapping[int, int], site: int, trust: np.ndarray, number: int):
    candidate = now.copy()
    change = 0.0
    for place, option in changes.items():
        candidate[place] = option
        step = float(values[place][option] - values[place][now[place]])
        change += step * trust[site] if place == site else step
    return change, number, site, candidate
