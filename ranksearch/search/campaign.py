"""One run of a study: from what its store knows of a fidelity to as many evaluations as are wanted, every one of them
stored when it is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from ranksearch import checks
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.results.conditions import Condition
from ranksearch.results.pareto import spread
from ranksearch.runners import LocalRunner, RayTuneRunner, Runner
from ranksearch.samplers import Sampler
from ranksearch.search.events import Event, Finished, Planned, Stage
from ranksearch.search.loop import Search, Start, exact_starts, indices_of
from ranksearch.sites import Amount, Cost
from ranksearch.space import Configuration, SearchSpace
from ranksearch.store import Record, Store

Known = dict[str, tuple[Configuration, Sequence[float] | None]]  # id -> configuration, objective values (None: failed)


@dataclass(frozen=True)
class Goal:
    """What evaluations are worth: objectives, all to be minimised, costs relative to the dense network."""

    baseline: Cost
    directions: Mapping[str, Literal["min", "max"]]
    objectives: tuple[str, ...]

    def values(self, metrics: Mapping[str, float], cost: Mapping[str, Amount]) -> list[float]:
        """Objective values of one evaluation."""
        relative = {name: cost[name] / (dense or 1) for name, dense in self.baseline.items() if name in self.objectives}
        signs = [-1 if self.directions[name] == "max" else 1 for name in self.objectives]
        return [sign * (relative[name] if name in relative else metrics[name]) for sign, name in zip(signs, self.objectives, strict=True)]

    def known(self, store: Store, fidelity: Fidelity, seed: int) -> Known:
        """What a store knows of a fidelity and seed."""
        known: Known = {}
        for record in store.records(fidelity=fidelity.key):
            if record.seed == seed:
                values = self.values(record.metrics, record.costs) if record.status == "done" else None
                known[record.configuration_id] = (Configuration.from_json(record.configuration), values)
        return known


@dataclass(frozen=True)
class Campaign:
    """Evaluations of one fidelity."""

    space: SearchSpace
    goal: Goal
    fidelity: Fidelity
    seed: int
    trials: int
    sampler: type[Sampler]
    limits: Mapping[str, Amount]
    evaluator: Callable[[], Callable[[Request], Outcome]]  # made when it is needed
    screening: bool = False

    def run(self, store: Store, machine: Runner, tell: Callable[[Event], None], *, first: Sequence[Start] = ()) -> None:
        """Evaluate until the store has ``trials``: the dense network, ``first``, the exact fronts, then the sampler."""
        known = self.goal.known(store, self.fidelity, self.seed)
        tell(Planned(max(self.trials, len(known)), len(known), self.screening))
        if len(known) >= self.trials:
            return
        tell(Stage("solving the exact proxy fronts"))
        space, limits = self.space, self.limits
        taken = {start.indices.tobytes() for start in first}
        starts = [*first, *(start for start in exact_starts(space, limits) if start.indices.tobytes() not in taken)]
        tables = {name: space.cost_tables[name] for name in limits}

        def admissible(indices: np.ndarray) -> bool:
            return all(float(tables[name].score(indices)) <= limit for name, limit in limits.items())

        search = Search(
            space=space,
            sampler=self.sampler(space.shape, len(self.goal.objectives), seed=self.seed, admissible=admissible, first=[]),
            starts=starts, admissible=admissible, fidelity=self.fidelity, seed=self.seed, trials=self.trials,
            values=lambda outcome: self.goal.values(outcome.metrics, space.cost(space.indices(outcome.request.configuration))),
            on_outcome=lambda outcome: self._keep(store, outcome), known={k: v for k, (_, v) in known.items()},
        )  # fmt: skip
        earlier = ((indices_of(space, configuration), values) for configuration, values in known.values())
        search.resume((indices, values) for indices, values in earlier if indices is not None)

        def report(outcome: Outcome) -> None:
            search.report(outcome)
            tell(Finished(outcome, len(search.known), self.trials))

        with_supernet = f" and {self.fidelity.name}" if self.screening else ""
        tell(Stage(f"evaluating with {type(machine).__name__}{with_supernet}"))
        machine.run(self.evaluator(), search.propose, report)

    def _keep(self, store: Store, outcome: Outcome) -> None:
        request = outcome.request
        cost = self.space.cost(self.space.indices(request.configuration))
        record = Record(
            request.configuration.id, request.configuration.to_json(), request.fidelity.key, request.seed, outcome.status,
            outcome.metrics, cost, outcome.error, outcome.seconds, request.origin, datetime.now(UTC),
        )  # fmt: skip
        store.add(record)

    def best(self, store: Store, into: SearchSpace, count: int) -> list[Start]:
        """The front of what is stored, at most ``count`` of it, spread over cost, as starts of a search in another space:
        those within the limits."""
        rows: list[tuple[np.ndarray, Sequence[float]]] = []
        for configuration, values in self.goal.known(store, self.fidelity, self.seed).values():
            indices = indices_of(into, configuration)
            if values is None or indices is None or not configuration.choices:
                continue
            if all(float(into.cost_tables[name].score(indices)) <= limit for name, limit in self.limits.items()):
                rows.append((indices, values))
        return [Start(rows[i][0], self.fidelity.name) for i in spread([values for _, values in rows], count)]


def limits(space: SearchSpace, conditions: Sequence[Condition]) -> dict[str, Amount]:
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
            raise InfeasibleBudget(
                f"constraint {cost} <= {limit:,} ({limit / dense[cost]:.3f} of the dense network's): the smallest that this space "
                f"reaches is {least:,} ({least / dense[cost]:.3f}); relax the constraint or allow more decompositions or sites"
            )
    return found


def machine(runner: str | Runner, workers: int | None, address: str | None, by_value: Sequence[Any]) -> Runner:
    """The runner that is asked for.

    Raises:
        InvalidArgument: an unknown name, or options that it does not take."""
    if workers is not None:
        checks.whole("workers", workers, least=1)
    if isinstance(runner, Runner):
        return runner
    if runner == "local":
        if workers not in (None, 1) or address is not None:
            raise InvalidArgument(f"workers={workers}, address={address!r}: runner='local' evaluates one at a time here; use 'ray_tune'")
        return LocalRunner()
    if runner == "ray_tune":
        return RayTuneRunner(workers=workers, address=address, by_value=tuple(by_value))
    raise InvalidArgument(f"runner={runner!r} is none of ray_tune, local")
