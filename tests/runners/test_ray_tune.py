"""The contract of a runner, on Ray Tune: one Ray session for the module."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import ray_drivers
import torch
from ray_drivers import launch, wait_for

from ranksearch.errors import RanksearchError, RanksearchWarning
from ranksearch.evaluation import Fidelity, Outcome, Point, Progress, Request
from ranksearch.runners import WAIT, LocalRunner, RayTuneRunner, Wait
from ranksearch.space import Configuration

HERE = sys.modules[__name__]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=128 * 2**20)
    yield
    ray.shutdown()


def request(seed: int, origin: str = "test") -> Request:
    return Request(Configuration({"layer": ("svd", (seed + 1,))}), Fidelity(), seed, origin)


def run(evaluate: Callable[[Request], Outcome], requests: list[Request], **options) -> list[Outcome]:
    queue, outcomes = list(requests), []
    options = {"workers": 2, "by_value": [HERE, ray_drivers], "retries": 1, "backoff": 0.1} | options
    RayTuneRunner(**options).run(evaluate, lambda: queue.pop(0) if queue else None, outcomes.append)
    assert not queue
    return outcomes


class Model:
    """Deterministic work; writes down every time it is unpickled, and by which process."""

    def __init__(self, log: Path | None = None) -> None:
        self.weight = torch.linspace(-1, 1, 64).reshape(8, 8).double()
        self.data = np.arange(100_000, dtype=np.float64)
        self.log = log

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{os.getpid()}\n")

    def __call__(self, asked: Request) -> Outcome:
        if asked.origin == "fails":
            return Outcome(asked, "failed", error="rank too low")
        if asked.origin == "raises":
            raise ZeroDivisionError("by itself")
        if asked.origin == "exits":
            sys.exit("by itself")
        torch.manual_seed(asked.seed)
        value = (self.weight @ torch.randn(8, 8, dtype=torch.float64)).square().sum().item()
        metrics = {"value": value, "data": float(self.data.sum()), "nan": float("nan"), "threads": float(torch.get_num_threads())}
        return Outcome(asked, "done", metrics)


class Killer:
    """Kills its worker at seed 1 the first time, at seed 2 every time."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, asked: Request) -> Outcome:
        with open(self.log, "a") as file:
            file.write(f"{asked.seed}\n")
        starts = self.log.read_text().split().count(str(asked.seed))
        if asked.seed == 2 or (asked.seed == 1 and starts == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(asked, "done", {"seed": float(asked.seed)})


def test_same_outcomes_as_local_each_reported_once_and_weights_sent_once(tmp_path: Path) -> None:
    requests = [request(seed, {3: "fails", 5: "raises", 6: "exits"}.get(seed, "test")) for seed in range(12)]
    model = Model(tmp_path / "unpickled")
    outcomes = run(model, requests)
    assert Counter(outcome.request for outcome in outcomes) == Counter(requests)
    queue, expected = list(requests), {}
    LocalRunner().run(model, lambda: queue.pop(0) if queue else None, lambda outcome: expected.update({outcome.request: outcome}))
    for outcome in outcomes:
        other = expected[outcome.request]
        assert (outcome.status, outcome.error) == (other.status, other.error)
        if outcome.status == "done":
            assert outcome.metrics["value"] == other.metrics["value"] and outcome.metrics["data"] == other.metrics["data"]
            assert np.isnan(outcome.metrics["nan"])
            assert outcome.metrics["threads"] == max(1, len(os.sched_getaffinity(0)) // 2)
    assert expected[requests[5]].error == "ZeroDivisionError: by itself"
    times = Counter((tmp_path / "unpickled").read_text().split())
    assert set(times.values()) == {1}, "a worker unpickled the evaluator more than once"


class Heavy:
    """Writes down where its weights lie in the memory of the machine, and waits until two workers have."""

    def __init__(self, log: Path) -> None:
        self.weights, self.log = np.arange(1_000_000, dtype=np.float64), log

    def __call__(self, asked: Request) -> Outcome:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {mapped(self.weights.ctypes.data)} {self.weights.flags.writeable}\n")
        both = wait_for(lambda: len({line.split()[0] for line in self.log.read_text().splitlines()}) == 2, 60)
        return Outcome(asked, "done", {"both": float(both), "sum": float(self.weights.sum())})


def mapped(address: int) -> str:
    """The file in which an address of this process lies, and the place in it: the same of two processes where the memory is."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, device, inode, *_ = line.split()
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return f"{device}:{inode}+{int(offset, 16) + address - first if int(inode) else os.getpid()}"
    raise AssertionError(f"{address:#x} is not mapped")


@linux
def test_weights_go_to_a_machine_once_and_its_workers_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    put, large = ray.put, []

    def counted(value: object, **options: object) -> ray.ObjectRef:
        arrays = value if isinstance(value, list) else [value]
        large.extend(array for array in arrays if isinstance(array, np.ndarray) and array.nbytes > 10**6)
        return put(value, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(ray, "put", counted)
    outcomes = run(Heavy(tmp_path / "log"), [request(seed) for seed in range(4)])
    assert [outcome.metrics for outcome in outcomes] == [{"both": 1.0, "sum": float(np.arange(10**6).sum())}] * 4
    pids, places, writeable = (set(column) for column in zip(*map(str.split, (tmp_path / "log").read_text().splitlines()), strict=True))
    assert len(pids) == 2 and len(places) == 1 and writeable == {"False"}
    assert len(large) == 1, "the driver has put them into the object store more than once"


def test_waiting_and_never_more_in_flight_than_workers() -> None:
    flying: set[Request] = set()
    peak, answers = 0, []

    def propose() -> Request | Wait | None:
        nonlocal peak
        if len(answers) == 7:
            return None
        if len(answers) == 3 and flying:  # a barrier: the fourth waits until all three have landed
            return WAIT
        answers.append(request(len(answers)))
        flying.add(answers[-1])
        peak = max(peak, len(flying))
        return answers[-1]

    RayTuneRunner(2, by_value=[HERE]).run(Model(), propose, lambda outcome: flying.remove(outcome.request))
    assert not flying and peak == 2


def test_waiting_for_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="nothing is in flight"):
        RayTuneRunner(2, by_value=[HERE]).run(Model(), lambda: WAIT, lambda outcome: None)


def test_killed_workers_are_replaced_and_their_requests_start_again_so_often(tmp_path: Path) -> None:
    requests = [request(seed) for seed in range(4)]
    outcomes = run(Killer(tmp_path / "starts"), requests)
    assert Counter(outcome.request for outcome in outcomes) == Counter(requests)
    by_seed = {outcome.request.seed: outcome for outcome in outcomes}
    assert [by_seed[seed].status for seed in range(4)] == ["done", "done", "failed", "done"]
    assert "the worker died 2 time(s)" in (by_seed[2].error or "")
    assert Counter((tmp_path / "starts").read_text().split()) == {"0": 1, "1": 2, "2": 2, "3": 1}


def test_what_goes_beyond_a_limit_is_an_outcome_and_its_worker_is_replaced(tmp_path: Path) -> None:
    def measure(asked: Request) -> Outcome:
        with open(tmp_path / "starts", "a") as file:
            file.write(f"{asked.origin} ")
        if asked.origin == "hangs":
            time.sleep(600)
        kept = [bytearray(2**20) for _ in range(800 if asked.origin == "swells" else 0)]
        time.sleep(30 if kept else 0)
        return Outcome(asked, "done")

    origins = ["hangs", "fine", "swells", "fine"]
    outcomes = run(measure, [request(k, origin) for k, origin in enumerate(origins)], time_limit=12.0, memory_limit=2**29, retries=3)
    found = {outcome.request.seed: outcome for outcome in outcomes}
    assert [found[k].error_kind for k in range(4)] == ["limit", None, "limit", None] and len(outcomes) == 4
    assert str(found[0].error) == "the evaluation was ended: it took longer than its limit of 12 seconds" and found[0].seconds >= 12
    assert "more than its limit of 0.5 GiB" in str(found[2].error)
    assert Counter((tmp_path / "starts").read_text().split()) == Counter(origins), "none is tried again"


class InParts:
    """Three parts, the outcome last; writes down what it begins, and in which process."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, asked: Request) -> Iterator[Progress | Outcome]:
        curve: tuple[Point, ...] = ()
        for rung in (1.0, 3.0):
            with open(self.log, "a") as file:
                file.write(f"{asked.seed}:{rung:g}:{os.getpid()}\n")
            curve = (*curve, Point(rung, {"loss": float(asked.seed)}))
            yield Progress(asked, curve, rung)
        yield Outcome(asked, "done", {"loss": float(asked.seed)}, curve=curve)


def test_evaluations_in_parts_are_stopped_where_the_judge_says_so(tmp_path: Path) -> None:
    requests, queue, outcomes = [request(seed) for seed in range(6)], [request(seed) for seed in range(6)], []

    def judge(progress: Progress) -> bool:
        seed, rung = progress.request.seed, progress.curve[-1].epochs
        return not (seed == 1 or (seed == 4 and rung == 3.0))

    RayTuneRunner(2, by_value=[HERE]).run(InParts(tmp_path / "log"), lambda: queue.pop(0) if queue else None, outcomes.append, judge)
    found = {outcome.request: outcome for outcome in outcomes}
    assert len(outcomes) == 6 and [found[one].status for one in requests] == ["done", "stopped", "done", "done", "stopped", "done"]
    assert [len(found[one].curve) for one in requests] == [2, 1, 2, 2, 2, 2]
    lines = [line.split(":") for line in (tmp_path / "log").read_text().split()]
    assert Counter((seed, rung) for seed, rung, _ in lines) == Counter((str(k), r) for k in range(6) for r in "13" if (k, r) != (1, "3"))
    assert len({pid for *_, pid in lines}) <= 2, "workers live on where an evaluation is stopped"


def test_tunes_own_users_may_stop_trials_by_several_metrics(tmp_path: Path) -> None:
    """Of 7 trials, one after the other, the best comes last and runs to its end; the worst does not."""
    from ray import tune

    from ranksearch.runners.for_tune import ParetoASHAScheduler

    def trainable(config: dict[str, float]) -> None:
        for _ in range(4):
            tune.report({"accuracy": config["quality"], "macs": 1.0})

    scheduler = ParetoASHAScheduler({"accuracy": "max"}, {"macs": "min"}, max_t=4)
    found = tune.Tuner(
        trainable, param_space={"quality": tune.grid_search([5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 9.0])},
        tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()  # fmt: skip
    ran = {result.config["quality"]: result.metrics["training_iteration"] for result in found if result.config and result.metrics}
    assert not found.errors and ran[5.0] == ran[9.0] == 4 and ran[0.0] < 4


def test_what_the_judge_raises_leaves_tune_as_it_is() -> None:
    """Tune swallows exceptions of schedulers in places."""
    from ranksearch.runners._bridge import Abort, Watch
    from ranksearch.runners._dispatch import Dispatcher

    def judge(progress: Progress) -> bool:
        raise LookupError("no scheduler")

    dispatcher = Dispatcher(lambda: request(0), lambda outcome: None, judge, workers=1)
    dispatcher.take("t")
    result = {"progress": pickle.dumps(Progress(request(0), (Point(1.0, {"loss": 0.0}),)))}
    with pytest.raises(Abort) as caught:
        Watch(dispatcher).on_trial_result(None, SimpleNamespace(trial_id="t"), result)
    assert isinstance(caught.value.cause, LookupError)


def test_exceptions_of_the_caller_propagate_and_nothing_keeps_running(tmp_path: Path) -> None:
    log = tmp_path / "beats"

    def slow(asked: Request) -> Outcome:
        for _ in range(100_000 if asked.seed else 0):  # longer than any test may take
            with open(log, "a") as file:
                file.write(".")
            time.sleep(0.1)
        return Outcome(asked, "done")

    def report(outcome: Outcome) -> None:
        raise OSError("disk full")

    queue = [request(seed) for seed in range(4)]
    with pytest.raises(OSError, match="disk full"):
        RayTuneRunner(2, by_value=[HERE]).run(slow, lambda: queue.pop(0) if queue else None, report)
    size = log.stat().st_size if log.exists() else 0
    time.sleep(1.0)
    assert (log.stat().st_size if log.exists() else 0) == size

    def propose() -> Request:
        raise LookupError("no sampler")

    with pytest.raises(LookupError, match="no sampler"):
        RayTuneRunner(2, by_value=[HERE]).run(slow, propose, lambda outcome: None)


def test_every_way_in_which_ray_ends_a_worker_is_that_trials_end() -> None:
    """Tune's controller ends the whole experiment at those that it does not know: memory, a lost machine."""
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError
    from ray.tune.execution.tune_controller import TuneController

    from ranksearch.runners._bridge import _soften

    class Manager:
        def __init__(self) -> None:
            self.seen: list[Exception] = []

        def _actor_task_failed(self, tracked_actor_task: object, exception: Exception) -> None:
            self.seen.append(exception)

    class Controller:
        _actor_manager = Manager()

    manager = Controller._actor_manager
    _soften(Controller())
    errors = [RayActorError(error_msg="as it is"), OutOfMemoryError("low on memory"), NodeDiedError("gone"), ValueError("bug")]
    for error in errors:
        manager._actor_task_failed(tracked_actor_task="task", exception=error)  # as Tune does
    assert manager.seen[0] is errors[0] and manager.seen[3] is errors[3]
    for seen, error in zip(manager.seen[1:3], errors[1:3], strict=True):
        assert isinstance(error, RayError) and isinstance(seen, RayActorError) and str(seen) == f"{type(error).__name__}: {error}"
    assert "_actor_manager" in TuneController.__init__.__code__.co_names, "where Tune has it"
    assert list(inspect.signature(RayActorManager._actor_task_failed).parameters) == ["self", "tracked_actor_task", "exception"]
    _soften(object())  # another Ray: as it is


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_what_tune_keeps_of_trials_that_are_over_is_let_go_of() -> None:
    """Without that a driver grows by what every trial was asked and has answered."""
    from ray import cloudpickle
    from ray.tune.experiment import Trial

    from ranksearch.runners._bridge import Watch
    from ranksearch.runners._dispatch import Dispatcher

    def size(trial: Trial) -> int:
        return len(cloudpickle.dumps(vars(trial)))  # pyright: ignore[reportPrivateImportUsage]

    watch = Watch(Dispatcher(lambda: None, lambda outcome: None, workers=1))
    recorded: list[object] = []
    watch.on_trial_add(SimpleNamespace(_mark_trial_to_checkpoint=recorded.append), None)
    watch.controller._mark_trial_to_checkpoint("a trial, for a restart that never is")
    assert not recorded
    over, under_way = (Trial("Worker", config={"request": bytes(20_000)}, stub=True) for _ in range(2))
    before = []
    for trial, status in ((over, Trial.TERMINATED), (under_way, Trial.RUNNING)):
        trial.update_last_result({"outcome": bytes(20_000), "time_total_s": 1.0, "training_iteration": 1})
        trial.set_status(status)
        watch.on_trial_complete(watch.controller, trial, trial.last_result)
        before.append(size(trial))
    watch.release()
    after = [size(trial) for trial in (over, under_way)]
    assert before[0] > 40_000 and after[0] < 5_000, "what is over"
    assert after[1] == before[1], "what Tune is not done with"
    assert over.is_finished() and over.last_result["done"]
    under_way.set_status(Trial.ERROR)
    watch.release()
    assert size(under_way) < 5_000


def test_modules_loaded_by_path_travel_by_value_or_the_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
from ranksearch.evaluation import Outcome
def helper(seed): return float(seed) * 3
class Task:
    def __call__(self, request): return Outcome(request, "done", {"x": helper(request.seed)})
"""
    (tmp_path / "somestudy.py").write_text(text)
    monkeypatch.setitem(sys.modules, "somestudy", ModuleType("somestudy"))
    module = load(tmp_path / "somestudy.py", "somestudy")
    outcomes = run(module.Task(), [request(2)], by_value=[module])
    assert outcomes[0].metrics == {"x": 6.0}
    with pytest.raises(RanksearchError, match=r"workers cannot load the evaluator.*somestudy"):
        run(module.Task(), [request(2)], by_value=[])


def test_fewer_workers_than_asked_for_are_said() -> None:
    with pytest.warns(RanksearchWarning, match=r"workers=5: Ray has room for 2 \(2 CPUs, 0 GPUs\), so 2 evaluations run at once"):
        assert len(run(Model(), [request(0)], workers=5)) == 1


def test_no_room_for_a_worker_is_an_error() -> None:
    with pytest.raises(RanksearchError, match="no room for a worker"):
        run(Model(), [request(0)], gpus_per_worker=1)


def test_the_cluster_of_an_address_is_joined_and_goes_on(tmp_path: Path, temporary: str) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    process, _ = launch(tmp_path, temporary, 0.0, {"RANKSEARCH_TEST_ADDRESS": address})
    output, _ = process.communicate(120)
    assert process.returncode == 0 and output.splitlines() == ["reported"] * 4 + ["stopped"], output
    assert ray.is_initialized() and ray.cluster_resources()["CPU"] == 2
