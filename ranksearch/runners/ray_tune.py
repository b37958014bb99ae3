"""Evaluations as Ray Tune trials, on this machine's cores or on a cluster.

Tune schedules, reuses and replaces the workers (`_worker`); a searcher of Tune's (`_bridge`) hands requests in and outcomes
out, as a `Dispatcher` says. Tune's own experiment state is not relied on: it is switched off as far as it goes, and what is
left goes to a folder that is removed afterwards. Ray is imported when a run starts."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np

from ranksearch import checks
from ranksearch.errors import ClusterLost, InvalidArgument, RanksearchError, RanksearchWarning
from ranksearch.evaluation.request import Evaluate
from ranksearch.logs import quiet
from ranksearch.runners._address import checked_address
from ranksearch.runners._base import Judge, Propose, Report, Runner
from ranksearch.runners._dispatch import BACKOFF, RETRIES, Dispatcher
from ranksearch.runners._lifeline import Lifeline, Place
from ranksearch.runners._process import cores, environment, loopback, unechoed, uninterrupted
from ranksearch.runners._reaper import reaper
from ranksearch.runners._watchdog import Limits

LOCAL = "local"
PATIENCE = 10.0  # seconds that the head of a cluster may be away
PENDING = 1000  # trials that Tune may have waiting, in a cluster
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
        retries: int = RETRIES,
        backoff: float = BACKOFF,
        time_limit: float | None = None,
        memory_limit: int | None = None,
        by_value: Sequence[ModuleType] = (),
    ) -> None:
        """
        Args:
            workers: evaluations at the same time; None for as many as the cores (and GPUs) allow.
            address: of a running cluster, ``"auto"`` or ``"host:port"``; ``"local"`` starts Ray on this machine. None: what the
                environment variable RAY_ADDRESS says, else ``"local"``. Machines that join a cluster during a run are used too.
            cpus_per_worker: cores that Ray sets aside for each, or a share of one.
            gpus_per_worker: GPUs, or a share of one, for each.
            retries: how often a request starts again whose worker died, or that failed by the machine's fault. One that fails by itself
                does not.
            backoff: seconds before it starts again for the first time, twice as many before each further one.
            time_limit: seconds that one evaluation may take; its worker is then ended and replaced, and the outcome is a failure of kind
                ``limit``. None: as long as it takes.
            memory_limit: bytes that a worker, with the processes that it starts, may have for itself, likewise (Linux only; see
                `Limits`). None: as much as there is.
            by_value: modules whose classes and functions travel with the evaluator, since workers cannot import them.

        Raises:
            InvalidArgument: a number out of range, or an address that is malformed or where no cluster answers, which takes up
                to about 12 seconds to find out.
        """
        if workers is not None:
            checks.whole("workers", workers, least=1, hint="None takes all cores")
        self._asked = workers
        self.cpus_per_worker = _share("cpus_per_worker", checks.number("cpus_per_worker", cpus_per_worker, above=0))
        self.gpus_per_worker = _share("gpus_per_worker", checks.number("gpus_per_worker", gpus_per_worker, least=0))
        self.address = _cluster(address)
        self.retries = checks.whole("retries", retries, least=0)
        self.backoff = checks.number("backoff", backoff, least=0)
        self.limits = Limits(time_limit, memory_limit)
        self.by_value = tuple(by_value)
        self.workers = workers or max(1, int(cores() // cpus_per_worker))

    def carrying(self, modules: Sequence[ModuleType]) -> Self:
        """See `Runner.carrying`."""
        other = copy(self)
        other.by_value = tuple(dict.fromkeys((*self.by_value, *modules)))
        return other

    def run(self, evaluate: Evaluate, propose: Propose, report: Report, judge: Judge | None = None) -> None:
        """See `Runner.run`.

        Raises:
            RanksearchError: workers cannot load the evaluator, or no machine has room for a worker.
            ClusterLost: the head of the cluster, or Ray's process on this machine, has gone, which takes a few seconds to find out.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        from ranksearch.runners._bridge import Bridge, Watch
        from ranksearch.runners._worker import pickled

        pieces = pickled(evaluate, self.by_value)
        with contextlib.ExitStack() as stack:
            stack.enter_context(environment(SETTINGS))
            stack.enter_context(quiet("ray"))
            folder = tempfile.mkdtemp(prefix="ranksearch-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            ours = not ray.is_initialized()
            lifeline = stack.enter_context(self._lifeline(ours))
            if ours:
                stack.enter_context(unechoed())
                end_all = stack.enter_context(reaper(folder))
                stack.callback(uninterrupted, ray.shutdown)
                stack.callback(lambda: lifeline.lost and self.address is None and end_all())
                uninterrupted(lambda: self._start(folder, sum(piece.nbytes for piece in pieces)))
            threads = self._fit(ray)
            # the dispatcher has no more out than there are workers; how many there may be is not known where machines may join
            stack.enter_context(environment({"TUNE_MAX_PENDING_TRIALS_PG": str(PENDING if self.address else self.workers)}))
            dispatcher = Dispatcher(propose, report, judge, workers=self.workers, retries=self.retries, backoff=self.backoff)
            watch = Watch(dispatcher)
            verdicts = Path(folder, "verdicts")
            verdicts.mkdir(mode=0o700)
            resize = (lambda: self._resized(ray)) if not ours or self.address else None
            bridge = Bridge(dispatcher, watch, self.limits, verdicts, resize)
            given = {"pieces": pieces, "threads": threads, "limits": self.limits, "verdicts": str(verdicts)}
            try:
                with lifeline.watching(_places(ray)):
                    self._tune(folder, given, bridge, watch, lifeline)
            except BaseException as error:
                if not ours and lifeline.lost is None:
                    uninterrupted(watch.end_workers)
                raise _cause(error, lifeline.lost) from None

    def _lifeline(self, ours: bool) -> Lifeline:
        if ours and self.address is None:  # nobody restarts it
            return Lifeline(patience=0.0, remedy="")
        return Lifeline(patience=PATIENCE, remedy="start the cluster and ")

    def _resized(self, ray: Any) -> int:
        """How many workers the cluster has room for by now."""
        room = self._room(ray)[2]
        self.workers = max(1, min(self._asked or room, room))
        return self.workers

    def _start(self, folder: str, size: int) -> None:
        import ray
        from ray.exceptions import RayError

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if self.address is not None:
            _cluster(self.address)  # it may have gone since it was first asked
            try:
                ray.init(address=self.address, **quiet)
            except (ConnectionError, ValueError, RuntimeError, RayError) as error:
                reason = " ".join(str(error).split())
                raise RanksearchError(f"address={self.address!r}: this process cannot join the cluster: {reason}") from error
            return
        # sockets live in the folder, and their paths must stay under 107 characters; Ray opens its own to everybody, so it is within ours
        place = {"_temp_dir": f"{folder}/r"} if len(folder) < 38 else {}
        with loopback():
            ray.init(
                address=LOCAL,  # a new one, whatever RAY_ADDRESS says
                num_cpus=max(cores(), int(np.ceil(self.workers * self.cpus_per_worker))), include_dashboard=False,
                object_store_memory=max(STORE_LEAST, int(size * 1.25) + STORE_LEAST // 2), **place, **quiet,
            )  # fmt: skip

    def _fit(self, ray: Any) -> int:
        """Settle ``workers`` by what the cluster has; returns the PyTorch threads of each."""
        if ray.util.client.ray.is_connected():
            raise InvalidArgument("Ray Client is connected in this process: disconnect, and run on a machine of the cluster")
        cpus, gpus, room = self._room(ray)
        if room < 1:
            raise RanksearchError(
                f"no room for a worker: it takes cpus_per_worker={self.cpus_per_worker:g} and gpus_per_worker={self.gpus_per_worker:g}, "
                f"Ray has {cpus:g} CPUs and {gpus:g} GPUs in all"
            )
        self.workers = min(self._asked or room, room)
        if self._asked is not None and self._asked > room:
            more = "more start when machines join the cluster" if self.address else "give each fewer CPUs or GPUs, or join a cluster"
            warnings.warn(
                f"workers={self._asked}: Ray has room for {room} ({cpus:g} CPUs, {gpus:g} GPUs), so {room} evaluations run at once; "
                f"{more}", RanksearchWarning, stacklevel=3,
            )  # fmt: skip
        return max(1, int(min(cpus, cores() if self.address is None else cpus) // self.workers))

    def _room(self, ray: Any) -> tuple[float, float, int]:
        """The CPUs and GPUs of the cluster as it is now, and how many workers it has room for: no worker spreads over two machines."""
        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        sizes = [(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in found]
        return sum(c for c, _ in sizes), sum(g for _, g in sizes), sum(self._fitting(*size) for size in sizes)

    def _fitting(self, cpus: float, gpus: float) -> int:
        """How many workers one machine has room for."""
        room = int(cpus / self.cpus_per_worker + 1e-9)
        return min(room, _on_gpus(gpus, self.gpus_per_worker)) if self.gpus_per_worker else room

    def _tune(self, folder: str, given: Mapping[str, Any], bridge: Any, watch: Any, lifeline: Lifeline) -> None:
        from ray import tune

        from ranksearch.runners._bridge import Pulse
        from ranksearch.runners._worker import Worker

        resources = {"cpu": self.cpus_per_worker} | ({"gpu": self.gpus_per_worker} if self.gpus_per_worker else {})
        # Tune pins the pieces in the object store for as long as Ray runs here: with a Ray of the caller's, beyond this run
        worker = tune.with_resources(tune.with_parameters(Worker, **given), resources)
        tune.Tuner(
            worker,
            tune_config=tune.TuneConfig(
                search_alg=bridge, scheduler=watch, num_samples=-1, reuse_actors=True,
                trial_name_creator=lambda trial: trial.trial_id, trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="run", storage_path=folder, verbose=0, callbacks=[Pulse(lifeline)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()  # fmt: skip


def _places(ray: Any) -> dict[str, Place]:
    """Where Ray's processes listen without which this one cannot go on."""
    context = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    host, _, port = context.gcs_address.rpartition(":")
    head = (host.strip("[]"), int(port))
    return {"the head of Ray": head, "Ray on this machine": (node["NodeManagerAddress"], node["NodeManagerPort"])}


def _cause(error: BaseException, lost: ClusterLost | None) -> BaseException:
    """Why a run has ended: what Tune passed through; that Ray is gone, where Tune has failed for that."""
    from ranksearch.runners._bridge import Abort

    if isinstance(error, Abort):
        return error.cause
    return error if lost is None or not isinstance(error, Exception) else lost


def _cluster(address: str | None) -> str | None:
    """The address of the cluster to join, which answers; None for a Ray of this run's own.

    Raises:
        InvalidArgument: it is malformed, or no cluster answers there."""
    if address is not None:
        return None if address == LOCAL else checked_address(address)
    elsewhere = os.environ.get("RAY_ADDRESS")
    if not elsewhere or elsewhere == LOCAL:
        return None
    try:
        return checked_address(elsewhere)
    except InvalidArgument as error:
        remedy = "unset the variable, or give address='local' (--address local) to evaluate on this machine"
        raise InvalidArgument(f"RAY_ADDRESS={elsewhere}: {error}; {remedy}") from error


def _share(name: str, amount: float) -> float:
    """An amount of CPUs or GPUs: Ray takes whole ones, or a share of one to four digits."""
    if (amount > 1 and amount != int(amount)) or amount != round(amount, 4):
        raise InvalidArgument(f"{name}={amount!r}: a whole number, or a share of one such as 0.5 or 0.25")
    return amount


def _on_gpus(gpus: float, each: float) -> int:
    """How many workers fit on GPUs of one machine: shares of one worker are of the same GPU."""
    return int(gpus // each) if each >= 1 else int(gpus) * int(1 / each + 1e-9)
