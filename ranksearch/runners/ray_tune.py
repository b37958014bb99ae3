"""Evaluations as Ray Tune trials, on this machine's cores or on a cluster. The only module that imports Ray.

Tune schedules, reuses and replaces the workers; a `Searcher` hands requests in and outcomes out. Tune's own experiment
state is not relied on: it is switched off as far as it goes, and what is left goes to a folder removed afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ranksearch import checks
from ranksearch.errors import InvalidArgument, RanksearchError
from ranksearch.evaluation.request import Outcome, Request
from ranksearch.runners._base import Evaluate, Propose, Report, Runner, Wait, deadlock, failed
from ranksearch.runners._reaper import reaper

STORE_LEAST = 128 * 2**20  # bytes of Ray's object store when it holds next to nothing
SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # KeyboardInterrupt is ours to handle
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # facts live in the store, not in Tune's experiment state
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "RAY_AIR_NEW_OUTPUT": "0",  # the other reporter prints, whatever the verbosity
}


class _Abort(BaseException):
    """Carries an exception of the caller through Tune, which swallows or retries on `Exception` in places."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class RayTuneRunner(Runner):
    """Evaluates in Ray Tune workers: processes that live as long as the run and get the evaluator once.

    Ray is started on this machine and stopped afterwards, unless an ``address`` is given or Ray is running already in
    this process: then it is left running. On the other machines of a cluster ranksearch must be installed.

    NumPy arrays of the evaluator are shared by all workers of a machine and read-only there."""

    def __init__(
        self,
        workers: int | None = None,
        *,
        address: str | None = None,
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0.0,
        retries: int = 1,
        by_value: Sequence[ModuleType] = (),
    ) -> None:
        """
        Args:
            workers: evaluations at the same time; None for as many as the cores (and GPUs) allow.
            address: of a running cluster, ``"auto"`` or ``"host:port"``; None starts Ray on this machine.
            cpus_per_worker: cores that Ray sets aside for each.
            gpus_per_worker: GPUs, or a share of one, for each.
            retries: how often a request starts again whose worker died. One that fails by itself does not.
            by_value: modules whose classes and functions travel with the evaluator, since workers cannot import them.

        Raises:
            InvalidArgument: a number out of range, or a Ray Client address.
        """
        if workers is not None:
            checks.whole("workers", workers, least=1, hint="None takes all cores")
        if cpus_per_worker <= 0 or gpus_per_worker < 0 or retries < 0:
            raise InvalidArgument(
                f"cpus_per_worker={cpus_per_worker} must be positive, gpus_per_worker={gpus_per_worker} and retries={retries} not negative"
            )
        if address is not None and address.startswith("ray://"):
            raise InvalidArgument(
                f"address={address!r}: through Ray Client the search itself would run on the cluster and not reach the store here; "
                "run on a machine of the cluster with address='auto', or give the address of its head as 'host:6379'"
            )
        self._asked = workers
        self.address = address
        self.cpus_per_worker = cpus_per_worker
        self.gpus_per_worker = gpus_per_worker
        self.retries = retries
        self.by_value = tuple(by_value)
        self.workers = workers or max(1, int(_cores() // cpus_per_worker))

    def run(self, evaluate: Evaluate, propose: Propose, report: Report) -> None:
        """See `Runner.run`.

        Raises:
            RanksearchError: workers cannot load the evaluator, or no machine has room for a worker.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        pieces = _pickled(evaluate, self.by_value)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_environment(SETTINGS))
            stack.enter_context(_quiet("ray"))
            folder = tempfile.mkdtemp(prefix="ranksearch-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            ours = not ray.is_initialized()
            if ours:
                stack.enter_context(reaper(folder))
                stack.callback(_uninterrupted, ray.shutdown)
                _uninterrupted(lambda: self._start(folder, sum(piece.nbytes for piece in pieces)))
            threads = self._fit(ray)
            os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(self.workers)
            bridge, controllers = _bridge(propose, report, self.workers, self.retries)
            try:
                self._tune(folder, pieces, bridge, threads)
            except BaseException as error:
                if not ours:
                    _uninterrupted(lambda: _kill(ray, controllers))
                if isinstance(error, _Abort):
                    raise error.cause from None
                raise

    def _start(self, folder: str, size: int) -> None:
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address is not None:
            ray.init(address=self.address, **quiet)
            return
        # sockets live in the folder, and their paths must stay under 107 characters
        place = {"_temp_dir": folder} if len(folder) < 40 else {}
        ray.init(
            num_cpus=max(_cores(), int(np.ceil(self.workers * self.cpus_per_worker))), include_dashboard=False,
            object_store_memory=max(STORE_LEAST, int(size * 1.25) + STORE_LEAST // 2), **place, **quiet,
        )  # fmt: skip

    def _fit(self, ray: Any) -> int:
        """Settle ``workers`` by what the cluster has; the PyTorch threads of each."""
        if ray.util.client.ray.is_connected():
            raise InvalidArgument("Ray Client is connected in this process: disconnect, and run on a machine of the cluster")
        resources = ray.cluster_resources()
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        room = int(cpus // self.cpus_per_worker)
        if self.gpus_per_worker:
            room = min(room, int(gpus / self.gpus_per_worker + 1e-9))
        if room < 1:
            raise RanksearchError(
                f"no room for a worker: it takes cpus_per_worker={self.cpus_per_worker:g} and gpus_per_worker={self.gpus_per_worker:g}, "
                f"Ray has {cpus:g} CPUs and {gpus:g} GPUs in all"
            )
        self.workers = min(self._asked or room, room)
        return max(1, int(min(cpus, _cores() if self.address is None else cpus) // self.workers))

    def _tune(self, folder: str, pieces: list[np.ndarray], bridge: Any, threads: int) -> None:
        from ray import tune

        resources = {"cpu": self.cpus_per_worker} | ({"gpu": self.gpus_per_worker} if self.gpus_per_worker else {})
        # Tune pins the pieces in the object store for as long as Ray runs here: with a Ray of the caller's, beyond this run
        worker = tune.with_resources(tune.with_parameters(_worker(threads), pieces=pieces), resources)
        tune.Tuner(
            worker,
            tune_config=tune.TuneConfig(
                search_alg=bridge, scheduler=bridge.scheduler, num_samples=-1, reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id, trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="run", storage_path=folder, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
            ),
        ).fit()  # fmt: skip


def _pickled(evaluate: Evaluate, by_value: Sequence[ModuleType]) -> list[np.ndarray]:
    """The evaluator as one array of pickle and one for each large buffer: what goes through the object store, once."""
    from ray import cloudpickle

    # what is not in sys.modules under its name is pickled by value anyway
    registered = [module for module in by_value if sys.modules.get(module.__name__) is module]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        buffers: list[pickle.PickleBuffer] = []
        body: bytes = cloudpickle.dumps(evaluate, protocol=5, buffer_callback=buffers.append)  # pyright: ignore[reportPrivateImportUsage]
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
    return [np.frombuffer(body, np.uint8)] + [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def _worker(threads: int) -> type:
    """The trainable: one step is one evaluation. Made in a function, since its base class is Ray's."""
    from ray.cloudpickle import dumps  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    from ray.tune import Trainable

    class Worker(Trainable):
        def setup(self, config: dict[str, Any], pieces: list[np.ndarray]) -> None:  # type: ignore[override]
            import torch

            torch.set_num_threads(threads)
            self.pieces: list[Any] = pieces
            self.evaluate: Evaluate | None = None

        def step(self) -> dict[str, Any]:
            if self.evaluate is None:
                try:
                    self.evaluate = pickle.loads(self.pieces[0].data, buffers=self.pieces[1:])
                except Exception as error:  # handed to the driver, which ends the run: no other request would fare better
                    return {"done": True, "broken": f"{type(error).__name__}: {error}"}
            assert self.evaluate is not None
            start = time.perf_counter()
            request = pickle.loads(self.config["request"])
            try:
                outcome = self.evaluate(request)
                data = dumps(outcome)
            except Exception as error:  # a fault of this request, not of the worker: reported, not retried
                data = dumps(failed(request, error, time.perf_counter() - start))
            return {"done": True, "outcome": data}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

    return Worker


def _bridge(propose: Propose, report: Report, workers: int, retries: int) -> tuple[Any, list[Any]]:
    """The searcher that hands requests in and outcomes out; and the list in which Tune's controller will turn up."""
    from ray.tune.schedulers import FIFOScheduler
    from ray.tune.search import Searcher

    controllers: list[Any] = []
    causes: dict[str, str] = {}

    class Watch(FIFOScheduler):
        """Learns the controller (to stop it) and why a trial failed (searchers are not told)."""

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            if not controllers:
                controllers.append(tune_controller)

        def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
            path = trial.error_file
            text = Path(path).read_text(errors="replace") if path and os.path.exists(path) else ""
            causes[trial.trial_id] = " ".join(text.split("\n", 1)[-1].split())[:800]  # the first line counts failures

        def __reduce__(self) -> tuple[Any, ...]:
            return FIFOScheduler, ()

    class Bridge(Searcher):
        scheduler = Watch()

        def __init__(self) -> None:
            super().__init__(metric=None, mode=None)
            self.flying: dict[str, tuple[Request, int]] = {}  # trial -> request, workers it has cost
            self.again: deque[tuple[Request, int]] = deque()
            self.waiting = self.finished = False

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            if len(self.flying) >= workers:
                return None
            if self.again:
                return self._send(trial_id, *self.again.popleft())
            if not self.finished and not self.waiting:
                with _aborting():
                    proposal = propose()
                    if isinstance(proposal, Wait) and not self.flying:
                        raise deadlock(proposal)
                if isinstance(proposal, Request):
                    return self._send(trial_id, proposal, 0)
                self.waiting, self.finished = isinstance(proposal, Wait), proposal is None
            # finished only once all have landed: one whose worker dies now must still be able to start again
            return Searcher.FINISHED if self.finished and not self.flying else None

        def _send(self, trial_id: str, request: Request, deaths: int) -> dict[str, Any]:
            self.flying[trial_id] = (request, deaths)
            with _aborting():
                return {"request": pickle.dumps(request)}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            """An evaluation has one result, its last."""

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if trial_id not in self.flying:
                return
            request, deaths = self.flying.pop(trial_id)
            if error or not result or not ("outcome" in result or "broken" in result):
                if deaths < retries:
                    self.again.append((request, deaths + 1))
                    return
                cause = causes.pop(trial_id, "no result came back")
                outcome = failed(request, f"the worker died {deaths + 1} time(s), of memory, a signal or a lost machine: {cause}")
            elif "broken" in result:
                broken = RanksearchError(
                    f"workers cannot load the evaluator ({result['broken']}): ranksearch and what the study imports must be installed "
                    "there, modules that are not go by_value"
                )
                raise _Abort(broken)
            else:
                with _aborting():
                    received: Outcome = pickle.loads(result["outcome"])
                outcome = replace(received, request=request)
            self.waiting = False
            with _aborting():
                report(outcome)

        def save(self, checkpoint_path: str) -> None:
            """Nothing to save: what is known is in the store."""

        def __reduce__(self) -> tuple[Any, ...]:
            """Tune pickles its experiment, which we never restore; what propose and report hold (a store) cannot be."""
            return Searcher, ()

    return Bridge(), controllers


def _kill(ray: Any, controllers: list[Any]) -> None:
    """End the workers of a run that was cut short, in a Ray that lives on."""
    for controller in controllers:
        for trial in controller.get_trials():
            if (actor := trial.temporary_state.ray_actor) is not None:
                ray.kill(actor, no_restart=True)
        controller.cleanup()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _aborting() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _Abort(error) from error


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    names = [*settings, "TUNE_MAX_PENDING_TRIALS_PG"]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _uninterrupted(action: Any) -> None:
    """Do something that must not be cut in half; an interrupt that comes meanwhile is raised right after it."""
    if threading.current_thread() is not threading.main_thread():
        action()
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        action()
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt
