"""One run of a study: from what its store knows of a fidelity to as many evaluations as are wanted, every one of them
stored when it is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Literal

import numpy as np

from ranksearch.allocators import Allocator
from ranksearch.errors import InfeasibleBudget
from ranksearch.evaluation import Fidelity, Outcome, Request, may_be_retried
from ranksearch.proxies import TableProxy
from ranksearch.results.conditions import Condition
from ranksearch.results.pareto import spread_front
from ranksearch.runners import Runner
from ranksearch.samplers import Problem, Sampler
from ranksearch.search.events import Finished, Planned, SearchEvent, Stage
from ranksearch.search.loop import Known, SearchLoop, indices_of
from ranksearch.search.portfolio import Portfolio, cheap_front
from ranksearch.search.starts import Start, optima
from ranksearch.sites import Amount, Cost
from ranksearch.space import DENSE, Candidate, Configuration, SearchSpace
from ranksearch.store import Record, Store

AFFORDED = 5  # measurements without training, on a calibration batch, per evaluation that the study is to have


@dataclass(frozen=True)
class Objectives:
    """What evaluations are worth: values of the named objectives, all to be minimised, costs relative to the dense network (as they
    are where that has none)."""

    names: tuple[str, ...]
    directions: Mapping[str, Literal["min", "max"]]  # of all metrics and costs
    baseline: Cost

    def values(self, metrics: Mapping[str, float], cost: Mapping[str, Amount]) -> list[float]:
        """The objectives of one evaluation, from its metrics and its cost."""
        relative = {name: cost[name] / (dense or 1) for name, dense in self.baseline.items() if name in self.names}
        signs = [-1 if self.directions[name] == "max" else 1 for name in self.names]
        return [sign * (relative[name] if name in relative else metrics[name]) for sign, name in zip(signs, self.names, strict=True)]

    def known(self, store: Store, fidelity: Fidelity, seed: int) -> dict[str, Known]:
        """What a store knows of a fidelity and seed, by configuration id. An evaluation that lacks an objective (the task reports
        more than it did then) counts, and teaches nothing."""
        known: dict[str, Known] = {}
        for record in store.records(fidelity=fidelity.key):
            if record.seed == seed:
                complete = record.status == "done" and all(name in record.metrics or name in self.baseline for name in self.names)
                values = self.values(record.metrics, record.costs) if complete else None
                configuration = Configuration.from_json(record.configuration)
                known[record.configuration_id] = Known(configuration, values, record.error_kind, record.origin)
        return known


def failed_before(known: Mapping[str, Known], *, retry_failed: bool) -> list[str]:
    """The ids of failed evaluations that a run tries again: the dense network's, always, and with ``retry_failed`` all that may come
    to something else."""
    failed = {id: entry for id, entry in known.items() if entry.values is None}
    return [id for id, entry in failed.items() if id == DENSE.id or (retry_failed and may_be_retried(entry.error_kind))]


@dataclass(frozen=True)
class SearchRun:
    """Evaluations of one fidelity, by one strategy."""

    space: SearchSpace
    objectives: Objectives
    fidelity: Fidelity
    seed: int
    trials: int
    sampler: Sampler  # not started: `run` does
    proxies: Sequence[TableProxy]  # whose optima are evaluated before the sampler is asked
    allocator: Allocator | None  # solves for these optima; None: exactly
    limits: Mapping[str, Amount]
    evaluator: Callable[[], Callable[[Request], Outcome]]  # made when it is needed
    screening: bool = False
    retry_failed: bool = False  # evaluations that failed are tried again, but for those that failed by the configuration's own fault
    portfolio: Portfolio | None = None  # measures the optima and the answers of rules first, so that only the best are evaluated

    def run(self, store: Store, runner: Runner, tell: Callable[[SearchEvent], None], *, first: Sequence[Start] = ()) -> None:
        """Evaluate until the store has ``trials``: the dense network, what is tried again, ``first``, the optima of the proxies, then
        the sampler. Without a portfolio an optimum is solved when it is its turn, so that evaluations begin at once; with one, all are
        solved and measured without training first, and those on the front of that are evaluated.

        Raises:
            DenseFailed: the dense network could not be evaluated."""
        known = self.objectives.known(store, self.fidelity, self.seed)
        again = self._again(known)
        trials = max(self.trials, len(known)) if again else self.trials
        known = {id: entry for id, entry in known.items() if id not in again}
        tell(Planned(max(trials, len(known)), len(known), self.screening))
        if len(known) >= trials:
            return
        taken = {start.candidate.configuration.id for start in first}
        measured = self._measured(tell, trials, len(known))
        solved = self._starts(measured, trials)

        def keep(outcome: Outcome, candidate: Candidate) -> None:
            add = store.add_attempt if candidate.configuration.id in again else store.add
            add(_record(outcome, candidate))

        loop = SearchLoop(
            self.space, self._started(measured),
            starts=chain(first, (start for start in solved if start.candidate.configuration.id not in taken)),
            again=list(again.values()), admissible=self._admissible, fidelity=self.fidelity, seed=self.seed, trials=trials, known=known,
            values=lambda outcome, candidate: self.objectives.values(outcome.metrics, candidate.cost),
            keep=keep,
        )  # fmt: skip

        def report(outcome: Outcome) -> None:
            settled = loop.report(outcome)
            for number, each in enumerate(settled, start=loop.done - len(settled) + 1):
                tell(Finished(each, number, trials))

        with_supernet = f" and {self.fidelity.name}" if self.screening else ""
        tell(Stage(f"evaluating with {type(runner).__name__}{with_supernet}"))
        runner.run(self.evaluator(), loop.propose, report)

    def _measured(self, tell: Callable[[SearchEvent], None], trials: int, known: int) -> list[tuple[Start, float]]:
        """The portfolio with what each loses; nothing without one, or where half of the trials are known, since starts are the other
        half at most."""
        if self.portfolio is None or known > trials // 2:
            return []
        most = AFFORDED * trials
        return self.portfolio.measured(self.space, self.proxies, self.limits, allocator=self.allocator, most=most, tell=tell)

    def _starts(self, measured: Sequence[tuple[Start, float]], trials: int) -> Iterable[Start]:
        """The best of the portfolio, or, without one, the optima of the proxies."""
        if self.portfolio is None:
            return optima(self.space, self.proxies, self.limits, allocator=self.allocator)
        costs = [name for name in self.space.costs if name in self.objectives.names or name in self.limits]
        return cheap_front(measured, costs or [self.space.leading_cost], trials // 2)

    def _started(self, measured: Sequence[tuple[Start, float]]) -> Sampler:
        """The sampler, told of the space and of what was measured without training."""
        evidence = np.array([start.candidate.indices for start, _ in measured], dtype=np.int64).reshape(-1, len(self.space.shape))
        rises = np.array([rise for _, rise in measured])
        problem = Problem(self.space, self.objectives.names, self.limits, evidence, rises)
        return self.sampler.start(
            self.space.shape, len(self.objectives.names), seed=self.seed, admissible=self._admissible, problem=problem
        )  # fmt: skip

    def _again(self, known: Mapping[str, Known]) -> dict[str, Start]:
        """What failed and is tried again, by id: configurations of this space within the limits, and the dense network."""
        found: dict[str, Start] = {}
        for id in failed_before(known, retry_failed=self.retry_failed):
            indices = indices_of(self.space, known[id].configuration)
            if indices is not None and (id == DENSE.id or self._admissible(indices)):
                found[id] = Start(self.space.candidate(indices), known[id].origin)
        return found

    def _admissible(self, indices: np.ndarray) -> bool:
        return within(self.space, self.limits, indices)

    def best(self, store: Store, into: SearchSpace, count: int) -> list[Start]:
        """The front of what is stored, at most ``count`` of it, spread over cost, as starts of a search in another space:
        those within the limits."""
        rows: list[tuple[np.ndarray, Sequence[float]]] = []
        for entry in self.objectives.known(store, self.fidelity, self.seed).values():
            indices = indices_of(into, entry.configuration)
            if entry.values is not None and indices is not None and entry.configuration.choices and within(into, self.limits, indices):
                rows.append((indices, entry.values))
        chosen = spread_front([values for _, values in rows], count)
        return [Start(into.candidate(rows[i][0]), self.fidelity.name) for i in chosen]


def within(space: SearchSpace, limits: Mapping[str, Amount], indices: np.ndarray) -> bool:
    """Whether the costs of option indices are within limits."""
    return all(float(space.cost_tables[name].score(indices)) <= limit for name, limit in limits.items())


def upper_limits(space: SearchSpace, conditions: Sequence[Condition]) -> dict[str, Amount]:
    """The tightest upper bound per cost, checked against the least that the space can reach.

    Raises:
        InfeasibleBudget: a bound below that."""
    dense = space.baseline
    found: dict[str, Amount] = {}
    for condition in conditions:
        for name, limit in condition.upper_bounds(dense).items():
            found[name] = min(limit, found.get(name, limit))
    for cost, limit in found.items():
        least = space.smallest(cost)
        if limit < least:
            shares = [f" ({amount / dense[cost]:.3f} of the dense network's)" if dense[cost] else "" for amount in (limit, least)]
            raise InfeasibleBudget(
                f"constraint {cost} <= {limit:,}{shares[0]}: the smallest that this space reaches is {least:,}{shares[1]}; "
                "relax the constraint or allow more decompositions or sites"
            )
    return found


def _record(outcome: Outcome, candidate: Candidate) -> Record:
    """An outcome as the store keeps it."""
    request = outcome.request
    return Record(
        candidate.configuration.id, candidate.configuration.to_json(), request.fidelity.key, request.seed, outcome.status,
        outcome.metrics, candidate.cost, outcome.error, outcome.seconds, request.origin, datetime.now(UTC), outcome.error_kind,
    )  # fmt: skip
