"""One run of a study: it goes from what the store knows of a fidelity to as many evaluations as are wanted, and stores each when it is
finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Literal

import numpy as np

from ranksearch.allocators import Allocator
from ranksearch.errors import InfeasibleBudget
from ranksearch.evaluation import Evaluate, Fidelity, Outcome, Place, may_be_retried, nowhere
from ranksearch.proxies import TableProxy
from ranksearch.results.conditions import Condition
from ranksearch.results.pareto import spread_front
from ranksearch.runners import Runner
from ranksearch.samplers import Problem, Sampler
from ranksearch.schedulers import Scheduler
from ranksearch.search.events import Announced, Finished, Planned, SearchEvent
from ranksearch.search.halting import Halting
from ranksearch.search.known import Known
from ranksearch.search.loop import SearchLoop, indices_of
from ranksearch.search.portfolio import Portfolio, cheap_front
from ranksearch.search.spool import Keeper, Spool, Spooling
from ranksearch.search.starts import Start, optima
from ranksearch.search.team import Team
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

    def checked(self, outcome: Outcome) -> Outcome:
        """The outcome; a failure where it is said to be done and lacks an objective (an evaluator or runner of somebody's own)."""
        lacking = [name for name in self.names if name not in outcome.metrics and name not in self.baseline]
        if outcome.status != "done" or not lacking:
            return outcome
        error = f"the evaluator did not report {', '.join(lacking)}"
        return replace(outcome, status="failed", metrics={}, error=error, error_kind="code")

    def known(self, store: Store, fidelity: Fidelity, seed: int) -> dict[str, Known]:
        """What a store knows of a fidelity and seed, by configuration id. An evaluation that lacks an objective (the task reports
        more than it did then) counts, and teaches nothing."""
        records = store.records(fidelity=fidelity.key)[::-1]
        return self.read((records.pop() for _ in range(len(records))), seed)  # let go one by one: there may be very many

    def read(self, records: Iterable[Record], seed: int) -> dict[str, Known]:
        """What records of one fidelity say of a seed."""
        known: dict[str, Known] = {}
        for record in records:
            if record.seed == seed:
                complete = record.status == "done" and all(name in record.metrics or name in self.baseline for name in self.names)
                values = self.values(record.metrics, record.costs) if complete else None
                configuration = Configuration.from_json(record.configuration)
                stopped, failed = record.status == "stopped", record.status == "failed"
                known[record.configuration_id] = Known(configuration, values, record.error_kind, record.origin, stopped, failed)
        return known


def failed_before(known: Mapping[str, Known], *, retry_failed: bool) -> list[str]:
    """The ids of failed evaluations that a run tries again: always the dense network's and those that failed by the machine's fault,
    which is no fact about a configuration; with ``retry_failed`` all that may come to something else."""
    failed = {id: entry for id, entry in known.items() if entry.failed}
    always = [id for id, entry in failed.items() if id == DENSE.id or entry.error_kind == "machine"]
    return [id for id, entry in failed.items() if id in always or (retry_failed and may_be_retried(entry.error_kind))]


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
    evaluator: Callable[[], Evaluate]  # made when it is needed
    screening: bool = False
    retry_failed: bool = False  # what failed is tried again, and not only what did by the machine's fault; but for configurations' own
    portfolio: Portfolio | None = None  # measures the optima and the answers of rules first, so that only the best are evaluated
    scheduler: Scheduler | None = None  # not started: which evaluations are stopped early; None: none
    in_parts: Callable[[Sequence[float], Place], Evaluate] | None = None  # the evaluator that can be stopped, of rungs; where there is one
    take_over: bool = False  # what other searches of the study are about, as if they were dead

    def run(
        self, store: Store, runner: Runner, tell: Callable[[SearchEvent], None], *, wanted: Sequence[Start] = (),
        first: Sequence[Start] = (),
    ) -> None:  # fmt: skip
        """Evaluate until the store has ``trials``: the dense network, what is tried again, ``wanted``, ``first``, the optima of the
        proxies, then the sampler. What is ``wanted`` is never stopped early, and goes to its end where an earlier run has stopped it.
        Without a portfolio an optimum is solved when it is its turn, so that evaluations begin at once; with one, all are solved and
        measured without training first, and those on the front of that are evaluated.

        Raises:
            DenseFailed: the dense network could not be evaluated.
            FailedInARow: one evaluation after the other failed, by no fault of theirs."""
        spool = self._spool(store, tell)
        known = self.objectives.known(store, self.fidelity, self.seed)
        asked = {start.candidate.configuration.id: start for start in wanted}
        again = {id: start for id, start in asked.items() if id in known and known[id].stopped} | self._again(known)
        trials = max(self.trials, len(known)) if again else self.trials
        known = {id: entry for id, entry in known.items() if id not in again}
        tell(Planned(max(trials, len(known)), len(known), self.screening))
        if len(known) >= trials:
            return
        measured = self._measured(tell, trials, len(known))
        keeper = Keeper(store, spool, again.keys(), lambda text: tell(Announced(text)))
        others = None if store.claims is None else self._team(store, set(known), set(again))
        loop = SearchLoop(
            self.space, self._started(measured),
            starts=self._starts(first, measured, trials), again=list(again.values()), wanted=wanted,
            admissible=self._admissible, fidelity=self.fidelity, seed=self.seed, trials=trials, known=known,
            values=lambda outcome, candidate: self.objectives.values(outcome.metrics, candidate.cost),
            keep=lambda outcome, candidate: keeper.keep(outcome, record_of(outcome, candidate)), others=others,
        )  # fmt: skip

        def report(outcome: Outcome) -> None:
            settled = loop.report(self.objectives.checked(outcome))
            for number, each in enumerate(settled, start=loop.done - len(settled) + 1):
                tell(Finished(each, number, trials))

        with_supernet = f" and {self.fidelity.name}" if self.screening else ""
        tell(Announced(f"evaluating with {type(runner).__name__}{with_supernet}"))
        halting = self._halting(store, loop, {DENSE.id, *asked})
        judge = () if halting is None else (halting.goes_on,)
        if spool is None:
            runner.run(self._evaluator(halting, nowhere), loop.propose, report, *judge)
            return
        spool.open()
        try:
            runner.run(Spooling(self._evaluator(halting, spool.checkpoint), spool), loop.propose, report, *judge)
            keeper.finish()
        finally:
            spool.close()

    def _halting(self, store: Store, loop: SearchLoop, spared: set[str]) -> Halting | None:
        """What stops evaluations, told of what the store knows; None where nothing does."""
        rungs = () if self.scheduler is None or self.in_parts is None else self.scheduler.rungs(self.fidelity.epochs)
        if self.scheduler is None or not rungs:
            return None
        started = self.scheduler.start([name in self.objectives.baseline for name in self.objectives.names])
        halting = Halting(started, rungs, self.objectives.values, loop.cost, spared)
        halting.learn(record for record in store.records(fidelity=self.fidelity.key) if record.seed == self.seed)
        return halting

    def _evaluator(self, halting: Halting | None, place: Place) -> Evaluate:
        return self.evaluator() if halting is None or self.in_parts is None else self.in_parts(halting.rungs, place)

    def _team(self, store: Store, seen: set[str], again: set[str]) -> Team:
        def read(ids: set[str]) -> dict[str, Known]:
            records = [record for id in ids if (record := store.get(id, self.fidelity.key, self.seed)) is not None]
            return self.objectives.read(records, self.seed)

        if self.take_over and store.claims is not None:
            store.claims.take_over()
        return Team(store, self.fidelity.key, self.seed, read, again, seen | again)

    def _spool(self, store: Store, tell: Callable[[SearchEvent], None]) -> Spool | None:
        """Where workers leave what they have finished. What those of earlier runs left there, and nobody has stored, is stored."""
        if store.spool is None:
            return None
        spool, stored = Spool(store.spool, store.fingerprint), 0
        for outcome in spool.outcomes():
            indices = indices_of(self.space, outcome.request.configuration)
            if indices is None:  # of another space: a run in that stores it
                continue
            record = record_of(outcome, self.space.candidate(indices))
            stored += store.add(record) or store.add_attempt(record)
            spool.drop(outcome.request)
        if stored:
            tell(Announced(f"{stored} evaluations that were finished when an earlier run ended are stored now"))
        return spool

    def _measured(self, tell: Callable[[SearchEvent], None], trials: int, known: int) -> list[tuple[Start, float]]:
        """The portfolio with what each loses; nothing without one, or where as many are known as the sampler lets
        starts have."""
        if self.portfolio is None or known > self.sampler.starts(trials):
            return []
        most = AFFORDED * trials
        return self.portfolio.measured(self.space, self.proxies, self.limits, allocator=self.allocator, most=most, tell=tell)

    def _starts(self, first: Sequence[Start], measured: Sequence[tuple[Start, float]], trials: int) -> Iterable[Start]:
        """``first``, and then what it does not have of the best of the portfolio, or, without one, of the optima of the proxies."""
        if self.portfolio is None:
            solved = optima(self.space, self.proxies, self.limits, allocator=self.allocator)
        else:
            costs = [name for name in self.space.costs if name in self.objectives.names or name in self.limits]
            solved = cheap_front(measured, costs or [self.space.leading_cost], self.sampler.starts(trials))
        taken = {start.candidate.configuration.id for start in first}
        return chain(first, (start for start in solved if start.candidate.configuration.id not in taken))

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

    def best(self, store: Store, into: SearchSpace, count: int, *, deeper: bool = False) -> list[Start]:
        """The front of what is stored, at most ``count`` of it, spread over cost, as starts of a search in another space:
        those within the limits. With ``deeper`` the fronts behind it too, one after the other, where it has fewer."""
        rows: list[tuple[np.ndarray, Sequence[float]]] = []
        for entry in self.objectives.known(store, self.fidelity, self.seed).values():
            indices = indices_of(into, entry.configuration)
            if entry.values is not None and indices is not None and entry.configuration.choices and within(into, self.limits, indices):
                rows.append((indices, entry.values))
        chosen: list[Start] = []
        while rows and len(chosen) < count:
            front = spread_front([values for _, values in rows], count - len(chosen))
            chosen += [Start(into.candidate(rows[i][0]), self.fidelity.name) for i in front]
            rows = [row for i, row in enumerate(rows) if i not in front] if deeper else []
        return chosen


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


def record_of(outcome: Outcome, candidate: Candidate) -> Record:
    """An outcome as the store keeps it."""
    request = outcome.request
    return Record(
        candidate.configuration.id, candidate.configuration.to_json(), request.fidelity.key, request.seed, outcome.status,
        outcome.metrics, candidate.cost, outcome.error, outcome.seconds, request.origin, datetime.now(UTC), outcome.error_kind,
        outcome.provenance, [(point.epochs, point.metrics) for point in outcome.curve],
    )  # fmt: skip
