"""`ParetoASHA` as a scheduler of Ray Tune itself, for people who run `ray.tune.Tuner` without ranksearch. It imports Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ray.tune.schedulers import FIFOScheduler

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.schedulers import ParetoASHA

Mode = Literal["min", "max"]


class ParetoASHAScheduler(FIFOScheduler):
    """Asynchronous successive halving for several metrics: `ranksearch.schedulers.ParetoASHA` as a scheduler of Ray Tune.

        tune.TuneConfig(scheduler=ParetoASHAScheduler({"accuracy": "max"}, {"macs": "min"}, max_t=27), num_samples=100)

    ``TuneConfig`` gets no ``metric`` then. Trials are judged at their reports, at the latest rung that a report has reached and
    that the trial was not judged at before. A report without ``time_attr`` or one of the metrics is not judged."""

    def __init__(
        self, metrics: Mapping[str, Mode], costs: Mapping[str, Mode] | None = None, *, time_attr: str = "training_iteration",
        max_t: float = 100, grace_period: float = 1, reduction_factor: float = 3, bands: int = 8,
    ) -> None:  # fmt: skip
        """
        Args:
            metrics: what training changes, and which way is better; results report them.
            costs: what is the same in all reports of a trial: networks are compared within bands of it.
            time_attr: the entry of results that says how far a trial is.
            max_t: where trials are at their end, and are stopped.
            grace_period: of ``time_attr`` up to the first rung.
            reduction_factor: one of so many goes on at every rung.
            bands: of cost, at most.

        Raises:
            InvalidArgument: no metric, one that is a cost too, a mode that is neither, or a number out of range."""
        super().__init__()
        costs = costs or {}
        modes = {**metrics, **costs}
        wrong = [f"{name}={mode!r}" for name, mode in modes.items() if mode not in ("min", "max")]
        if not metrics or wrong or set(metrics) & set(costs):
            given = f"metrics={dict(metrics)}, costs={dict(costs)}"
            raise InvalidArgument(f"{given}: give 'min' or 'max' for every name, each once, and a metric")
        self._signs = {name: 1.0 if mode == "min" else -1.0 for name, mode in modes.items()}
        self._time, self._end = time_attr, checks.number("max_t", max_t, above=0)
        scheduler = ParetoASHA(first=grace_period, eta=reduction_factor, bands=bands)
        self._rungs = scheduler.rungs(self._end)
        self._scheduler = scheduler.start([name in costs for name in modes])
        self._passed: dict[str, float] = {}  # the latest rung, by trial

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Tune's question about a trial: whether it goes on."""
        if self._time not in result or any(name not in result for name in self._signs):
            return self.CONTINUE
        time = result[self._time]
        if time >= self._end:
            return self.STOP
        rung = max((rung for rung in self._rungs if rung <= time), default=0.0)
        if rung <= self._passed.get(trial.trial_id, 0.0):
            return self.CONTINUE
        self._passed[trial.trial_id] = rung
        values = [sign * float(result[name]) for name, sign in self._signs.items()]
        return self.CONTINUE if self._scheduler.goes_on(trial.trial_id, rung, values) else self.STOP
