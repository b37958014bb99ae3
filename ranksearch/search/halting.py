"""Which evaluations of a search are stopped early: what a scheduler decides, in terms of objectives and facts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ranksearch.evaluation import Progress, Request
from ranksearch.schedulers import Scheduler
from ranksearch.sites import Amount
from ranksearch.store import Record

Values = Callable[[Mapping[str, float], Mapping[str, Amount]], Sequence[float]]  # of the objectives, to be minimised


@dataclass(frozen=True)
class Halting:
    """Asks a scheduler, and tells it what earlier runs saw.

    Attributes:
        scheduler: started for this search.
        rungs: where it is asked.
        values: objectives of metrics and costs.
        cost: of a request that is under way.
        spared: ids that always go on; others are compared with them nevertheless.
    """

    scheduler: Scheduler
    rungs: tuple[float, ...]
    values: Values
    cost: Callable[[Request], Mapping[str, Amount]]
    spared: Collection[str] = ()

    def learn(self, records: Iterable[Record]) -> None:
        """What evaluations, done or stopped, had come to at the rungs."""
        for record in records:
            for epochs, metrics in record.curve or ():
                self._observe(record.configuration_id, epochs, metrics, record.costs)

    def goes_on(self, progress: Progress) -> bool:
        """Whether an evaluation goes on that has come so far."""
        id, cost = progress.request.configuration.id, self.cost(progress.request)
        *before, last = progress.curve
        for point in before:  # seen by a run that was cut short
            self._observe(id, point.epochs, point.metrics, cost)
        if last.epochs not in self.rungs or id in self.spared:
            self._observe(id, last.epochs, last.metrics, cost)
            return True
        return self.scheduler.goes_on(id, last.epochs, self.values(last.metrics, cost))

    def _observe(self, id: str, epochs: float, metrics: Mapping[str, float], cost: Mapping[str, Amount]) -> None:
        if epochs not in self.rungs:
            return
        try:
            values = self.values(metrics, cost)
        except KeyError:  # measured before the task reported all the objectives: it cannot be compared with
            return
        self.scheduler.observe(id, epochs, values)
