"""The parts that Tune calls: a searcher that hands requests in and outcomes out, and a scheduler that watches it for what
searchers are not told. It imports Ray, and is therefore imported when a run starts."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ranksearch.errors import RanksearchError
from ranksearch.runners._dispatch import Dispatcher
from ranksearch.runners._lifeline import Lifeline
from ranksearch.runners._watchdog import Limits

RESIZE = 5.0  # seconds between two looks at how large the cluster is


class Abort(BaseException):
    """Carries an exception of the caller through Tune, which swallows or retries on `Exception` in places."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextlib.contextmanager
def aborting() -> Iterator[None]:
    """Every `Exception` in the block leaves Tune, as the cause of an `Abort`."""
    try:
        yield
    except Exception as error:
        raise Abort(error) from error


class Watch(FIFOScheduler):
    """Stops what the dispatcher says. Learns Tune's controller, which a run that is cut short needs, and why trials failed; and lets go of
    what Tune keeps of trials that are over."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self.controller: Any = None
        self.causes: dict[str, str] = {}  # by trial
        self._over: list[Any] = []  # trials that Tune is about to be done with

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if self.controller is None:
            _soften(tune_controller)
            _unrecorded(tune_controller)
        self.controller = tune_controller

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "progress" not in result or not self._dispatcher.is_out(trial.trial_id):
            return self.CONTINUE
        with aborting():
            goes_on = self._dispatcher.goes_on(trial.trial_id, pickle.loads(result["progress"]))
        return self.CONTINUE if goes_on else self.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._over.append(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._over.append(trial)
        path = None if trial.error_file is None else Path(trial.error_file)
        text = path.read_text(errors="replace") if path is not None and path.exists() else ""
        self.causes[trial.trial_id] = " ".join(text.split("\n", 1)[-1].split())[:800]  # the first line counts failures

    def release(self) -> None:
        """Empty the trials that are over, which Tune keeps to the end of the run."""
        for trial in (over := [trial for trial in self._over if trial.is_finished()]):
            _emptied(trial)
        self._over = [trial for trial in self._over if trial not in over]

    def end_workers(self) -> None:
        """End the workers of a run that was cut short, in a Ray that lives on."""
        if self.controller is None:
            return
        for trial in self.controller.get_trials():
            if (actor := trial.temporary_state.ray_actor) is not None:
                ray.kill(actor, no_restart=True)
        self.controller.cleanup()

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its experiment, which is never restored; a controller cannot be pickled."""
        return FIFOScheduler, ()


def _soften(controller: Any) -> None:
    """Let a controller take every way in which Ray ends a worker (for want of memory, with its machine) for the end of that worker's
    trial. It knows two of them, and ends the whole experiment at any other."""
    manager: Any = getattr(controller, "_actor_manager", None)
    known = getattr(manager, "_actor_task_failed", None)
    if known is None:  # another Ray
        return

    def failed(tracked_actor_task: Any, exception: Exception) -> None:  # its callers name the arguments
        if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
            exception = RayActorError(error_msg=f"{type(exception).__name__}: {exception}")
        known(tracked_actor_task=tracked_actor_task, exception=exception)

    manager._actor_task_failed = failed


def _unrecorded(controller: Any) -> None:
    """Keep a controller from writing down trials for a restart: facts live in the store, and the text of a trial is 17 kB at the end."""
    inner: Any = getattr(controller, "_tune_controller", controller)  # schedulers see a wrapper
    if hasattr(inner, "_mark_trial_to_checkpoint"):
        inner._mark_trial_to_checkpoint = lambda trial: None


def _emptied(trial: Any) -> None:
    """Take from a trial that is over what it was asked, what it has answered, and statistics of that: most of 20 kB. It stays a trial that
    Tune can count and look at."""
    trial.run_metadata.last_result = {"done": True}
    trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps = {}, {}
    trial.config, trial.evaluated_params, trial.experiment_tag = {}, {}, ""
    for name in ("_Trial__unresolved_config", "_default_result_or_future"):  # of this Ray; the latter an object of a worker's
        if hasattr(trial, name):
            setattr(trial, name, None)


class Pulse(Callback):
    """Ends a run that has lost its cluster, at the next step of Tune's controller: ten times a second where nothing happens."""

    def __init__(self, lifeline: Lifeline) -> None:
        self._lifeline = lifeline

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        with aborting():
            self._lifeline.check()

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its experiment, which is never restored; a thread cannot be pickled."""
        return Callback, ()


class Bridge(Searcher):
    """Translates between Tune's trials and a `Dispatcher`."""

    def __init__(
        self, dispatcher: Dispatcher, watch: Watch, limits: Limits, verdicts: Path, resize: Callable[[], int] | None = None
    ) -> None:
        """
        Args:
            verdicts: the folder where watchdogs of this machine write why they ended an evaluation.
            resize: says, now and then, how many workers there is room for; None where that stays.
        """
        super().__init__(metric=None, mode=None)
        self._resize, self._resized = resize, time.monotonic()
        self._dispatcher, self._watch, self._limits, self._verdicts = dispatcher, watch, limits, verdicts

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The configuration of a new trial; None for none at present."""
        with aborting():
            self._watch.release()
            if self._resize is not None and time.monotonic() - self._resized >= RESIZE:
                self._dispatcher.workers, self._resized = self._resize(), time.monotonic()
            request = self._dispatcher.take(trial_id)
            if request is not None:
                return {"request": pickle.dumps(request), "trial": trial_id}
            return Searcher.FINISHED if self._dispatcher.finished else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """It is for the scheduler to say what becomes of a trial that is under way, see `Watch`."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not self._dispatcher.is_out(trial_id):
            return
        with aborting():
            if not error and result and "broken" in result:
                raise RanksearchError(
                    f"workers cannot load the evaluator ({result['broken']}): ranksearch and what the study imports must be installed "
                    "there, modules that are not go by_value"
                )
            if not error and result and "outcome" in result:
                self._dispatcher.landed(trial_id, pickle.loads(result["outcome"]))
            elif not error and result and "progress" in result:
                self._dispatcher.stopped(trial_id, pickle.loads(result["progress"]))
            elif (verdict := self._limits.verdict(self._verdicts, trial_id)) is not None:
                self._dispatcher.exceeded(trial_id, *verdict)
            else:
                self._dispatcher.lost(trial_id, self._watch.causes.pop(trial_id, "no result came back"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: what is known is in the store."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles its experiment, which is never restored; what propose and report hold (a store) cannot be pickled."""
        return Searcher, ()
