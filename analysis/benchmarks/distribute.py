"""What a search costs beside its evaluations, as one line of JSON. Its parts:

driver     what the driver takes per trial (to propose and to record) and to go on, with 10, 1,000 and 10,000 finished evaluations of
           60 sites
workers    on Ray: how much of two workers' time goes into evaluations of a second, and what a trivial trial takes; beside plain
           `ray.tune` with OptunaSearch, in turns on the same Ray. Eight runs a round, each of which starts its workers anew: about two
           minutes on two idle cores, five times that on busy ones; what is known so far is a line on standard error after every run
memory     the driver's memory over 5,000 trivial trials on Ray, beside plain `ray.tune`'s, each in a process of its own
simulated  1,000 workers and 100,000 evaluations on a virtual clock, on which the driver takes the processor time that it really takes:
           where the driver is the limit. --filled 97000 begins with as many finished evaluations, --stop-after ends it by the clock

    python analysis/benchmarks/distribute.py PART ... [--sampler surrogate] [--workers 2] [--seconds 1] [--trials 12] [--trivial 100]
        [--rounds 2] [--known 10 1000 10000] [--memory-trials 5000] [--simulated-workers 1000] [--evaluations 100000] [--minutes 1]
        [--filled 0] [--stop-after SECONDS]
"""

from __future__ import annotations

import argparse
import heapq
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import torch
from torch import nn

from ranksearch.decompositions import SVD
from ranksearch.evaluation import Evaluate, Fidelity, Outcome, Request
from ranksearch.runners import RayTuneRunner
from ranksearch.runners._base import Judge, Propose, Report, Runner
from ranksearch.runners._dispatch import Dispatcher
from ranksearch.samplers import SAMPLERS, Sampler
from ranksearch.search.events import Finished, SearchEvent
from ranksearch.search.run import Objectives, SearchRun
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.store import Store
from ranksearch.store.database import configurations_table, evaluations_table

FULL = Fidelity(epochs=0, recalibration=0)
PARTS = ("driver", "workers", "memory", "simulated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "memory_of_ours", "memory_of_theirs"], metavar="PART")
    parser.add_argument("--sampler", choices=[s.name for s in SAMPLERS], default="surrogate")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--trivial", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--known", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--memory-trials", type=int, default=5000)
    parser.add_argument("--simulated-workers", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=1.0, help="that an evaluation of the simulation takes on average")
    parser.add_argument("--filled", type=int, default=0, help="evaluations that the simulation begins with")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds by the clock on the wall after which none is begun")
    given = parser.parse_args()
    found: dict[str, Any] = {"benchmark": "distribute", "sampler": given.sampler, "load": round(os.getloadavg()[0], 1)}
    for part in given.parts:
        found[part] = globals()[part](given)
    print(json.dumps(found))


def chosen(given: argparse.Namespace) -> Sampler:
    return next(s for s in SAMPLERS if s.name == given.sampler)


def sixty_sites() -> SearchSpace:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(24, 24) for _ in range(60)])
    return build_space(Spectra(model, find_sites(model, torch.randn(1, 24)), [SVD()]), max_options=8)


def worth(request: Request) -> Outcome:
    return Outcome(request, "done", {"accuracy": (int(request.configuration.id, 16) % 1000) / 1000})


def search(space: SearchSpace, sampler: Sampler, trials: int, evaluate: Evaluate = worth) -> SearchRun:
    objectives = Objectives(("accuracy", "macs"), {"accuracy": "max", "macs": "min", "params": "min"}, space.baseline)
    return SearchRun(space, objectives, FULL, 0, trials, sampler, [], None, {}, lambda: evaluate)


def mebibytes(*, peak: bool = False) -> int:
    """Of this process, now or at most."""
    if peak:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return round(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)


class Simulated(Runner):
    """Workers on a virtual clock, on which their evaluations take what ``duration`` says and the driver, one call after the other, takes
    the processor time that it really takes. How long both kinds of call took is kept."""

    def __init__(
        self, workers: int, duration: Callable[[], float], watch: Callable[[int, float], None] = lambda done, now: None,
        seconds: float = float("inf"),
    ) -> None:  # fmt: skip
        self.workers, self._duration, self._watch, self._seconds = workers, duration, watch, seconds
        self.now = self.busy = 0.0  # virtual seconds; and those of all workers together
        self.evaluating = 0.0  # processor seconds that the workers' part took here
        self.took: list[tuple[float, float]] = []  # per trial, to propose and to record: by the clock on the wall, of processor time

    def run(self, evaluate: Evaluate, propose: Propose, report: Report, judge: Judge | None = None) -> None:
        dispatcher = Dispatcher(propose, report, judge, workers=self.workers, clock=lambda: self.now)
        heap: list[tuple[float, int, Request, tuple[float, float]]] = []
        number, idle, end = 0, self.workers, time.monotonic() + self._seconds  # what is filled in and read before does not count
        while True:
            while idle and time.monotonic() < end:
                request, took = self._timed(lambda trial=str(number): dispatcher.take(trial))
                if request is None:
                    break
                heapq.heappush(heap, (self.now + (seconds := self._duration()), number, request, took))
                self.busy, number, idle = self.busy + seconds, number + 1, idle - 1
            if not heap:
                return
            ready, landed, request, before = heapq.heappop(heap)
            self.now, idle = max(self.now, ready), idle + 1
            begun = time.process_time()
            outcome = evaluate(request)
            self.evaluating += time.process_time() - begun
            assert isinstance(outcome, Outcome)
            _, after = self._timed(lambda trial=str(landed), found=outcome: dispatcher.landed(trial, found))
            self.took.append((before[0] + after[0], before[1] + after[1]))
            self._watch(len(self.took), self.now)

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
        wall, processor = time.perf_counter(), time.process_time()
        result = call()
        took = (time.perf_counter() - wall, time.process_time() - processor)
        self.now += took[1]
        return result, took


def driver(given: argparse.Namespace) -> list[dict[str, float]]:
    """Milliseconds per trial, to propose and to record, and seconds from the beginning of a search that goes on to its first request; both
    also of processor time alone, which others on the machine do not lengthen. Sums over 50 trials hold the fits of a model that serve
    several proposals, medians do not."""
    space = sixty_sites()
    return [costs_with(space, chosen(given), known) for known in given.known]


def costs_with(space: SearchSpace, sampler: Sampler, known: int, trials: int = 50) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "s.db"), study="bench", fingerprint="f") as store:
        fill(store, space, known)
        runner, stamps = Simulated(1, lambda: 1.0), []

        def evaluate(request: Request) -> Outcome:
            stamps.append((time.perf_counter(), time.process_time()))
            return worth(request)

        begin = np.array([time.perf_counter(), time.process_time()])
        search(space, sampler, known + trials, evaluate).run(store, runner, lambda event: None)
    first, took = np.array(stamps[0]) - begin, 1e3 * np.array(runner.took)[1:]
    found: dict[str, Any] = {"known": known, "peak_mebibytes": mebibytes(peak=True)}
    for prefix, seconds, of in zip(("", "processor_"), first, took.T, strict=True):
        found[f"{prefix}seconds_to_first"] = round(float(seconds), 3)
        found[f"{prefix}ms_per_trial"] = {"median": round(float(np.median(of)), 2), "mean": round(float(of.mean()), 2)}
    return found


def fill(store: Store, space: SearchSpace, count: int) -> None:
    """So many finished evaluations, in one transaction."""
    rng, now = np.random.default_rng(1), datetime.now(UTC).isoformat()
    facts: dict[str, dict[str, Any]] = {}
    texts: dict[str, str] = {}
    rows = [space.dense, *(rng.integers(0, np.array(space.shape)) for _ in range(count - 1))]
    for indices in rows:
        candidate = space.candidate(indices)
        id = candidate.configuration.id
        texts[id] = candidate.configuration.to_json()
        metrics = worth(Request(candidate.configuration, FULL, 0)).metrics
        facts[id] = {
            "configuration_id": id, "fidelity": FULL.key, "seed": 0, "fingerprint": "f", "status": "done", "metrics": json.dumps(metrics),
            "params": candidate.cost["params"], "macs": candidate.cost["macs"], "seconds": 1.0, "origin": "bench", "created": now,
        }  # fmt: skip
    with store._engine.begin() as connection:
        connection.execute(sa.insert(configurations_table), [{"id": id, "json": text} for id, text in texts.items()])
        connection.execute(sa.insert(evaluations_table), list(facts.values()))


def simulated(given: argparse.Namespace) -> dict[str, Any]:
    """Evaluations take a lognormal time (a factor of two, up or down, is usual)."""
    space, random, curve = sixty_sites(), np.random.default_rng(0), []
    mean, sigma, step = 60 * given.minutes, 0.7, max(1, (given.evaluations - given.filled) // 10)
    begun = [0.0]

    def watch(done: int, now: float) -> None:
        if done % step:
            return
        recent = np.array(runner.took[-step:])[:, 1]
        rate, begun[0] = step / (now - begun[0]), now
        curve.append({"done": done, "mebibytes": mebibytes(), "processor_ms": round(1e3 * recent.mean(), 2), "per_second": round(rate, 1)})

    runner = Simulated(given.simulated_workers, lambda: mean * random.lognormal(-(sigma**2) / 2, sigma), watch, given.stop_after)
    with in_memory() as folder, Store.open(Path(folder, "s.db"), study="bench", fingerprint="f") as store:
        if given.filled:
            fill(store, space, given.filled)
        begin = time.process_time()
        search(space, chosen(given), given.evaluations).run(store, runner, lambda event: None)
    each = float(np.array(runner.took)[:, 1].mean())
    to_begin = time.process_time() - begin - runner.evaluating - float(np.array(runner.took)[:, 1].sum())
    return {
        "workers": given.simulated_workers, "seconds_per_evaluation": mean, "known": given.filled, "evaluations": len(runner.took),
        "processor_seconds_to_begin": round(to_begin, 1),
        "virtual_hours": round(runner.now / 3600, 2), "share_of_ideal": round(runner.busy / (runner.workers * runner.now), 4),
        "processor_ms_per_trial": round(1e3 * each, 2), "driver_bound_per_second": round(1 / each, 1), "curve": curve,
    }  # fmt: skip


@contextmanager
def in_memory() -> Iterator[str]:
    """A folder whose files are on no disk, so that a simulation does not wait for one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield folder


def workers(given: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds, in which all take turns."""
    found: dict[str, list[float]] = {}
    space = sixty_sites()
    with ray_of(given.workers):
        for _ in range(given.rounds):
            for name, run in {
                "ranksearch": lambda t, s: ours(t, s, given.workers),
                "ranksearch_search": lambda t, s: ours_searching(t, s, given.workers, space, chosen(given)),
                "ray_tune": lambda t, s: theirs(t, s, given.workers, 1),
                "ray_tune_60_parameters": lambda t, s: theirs(t, s, given.workers, 60),
            }.items():
                _add(found, f"ms_per_trivial_trial/{name}", each(run(given.trivial, 0.0), given.workers))
                _add(found, f"share_of_ideal/{name}", share(run(given.trials, given.seconds), given.seconds, given.workers))
    medians = {name: round(float(np.median(values)), 3) for name, values in found.items()}
    trivial = "ms_per_trivial_trial/"
    ratios = {f"trivial/{ours}_to_{theirs}": round(float(np.median(np.divide(found[trivial + ours], found[trivial + theirs]))), 2)
              for ours in ("ranksearch", "ranksearch_search") for theirs in ("ray_tune", "ray_tune_60_parameters")}  # fmt: skip
    return medians | ratios


def _add(found: dict[str, list[float]], name: str, value: float) -> None:
    """One more value, and all so far on standard error: what is left of a run that is cut short."""
    found.setdefault(name, []).append(value)
    print(json.dumps(found), file=sys.stderr, flush=True)


@contextmanager
def ray_of(cpus: int) -> Iterator[None]:
    import ray

    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def ours(trials: int, seconds: float, count: int, watch: Callable[[int], None] = lambda done: None) -> list[float]:
    """When each outcome came back: the runner alone, with nothing to propose and to store."""
    stamps: list[float] = []
    queue = [Request(Configuration({"layer": ("svd", (k + 1,))}), FULL, k) for k in range(trials)]

    def report(outcome: Outcome) -> None:
        stamps.append(time.perf_counter())
        watch(len(stamps))

    RayTuneRunner(count).run(sleeper(seconds), lambda: queue.pop() if queue else None, report)
    return stamps


def ours_searching(trials: int, seconds: float, count: int, space: SearchSpace, sampler: Sampler) -> list[float]:
    """When each outcome was stored: a whole search."""
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "s.db"), study="bench", fingerprint="f") as store:

        def tell(event: SearchEvent) -> None:
            if isinstance(event, Finished):
                stamps.append(time.perf_counter())

        search(space, sampler, trials, sleeper(seconds)).run(store, RayTuneRunner(count), tell)
    return stamps


def sleeper(seconds: float) -> Evaluate:
    def evaluate(request: Request) -> Outcome:
        time.sleep(seconds)
        return Outcome(request, "done", {"accuracy": (int(request.configuration.id, 16) % 1000) / 1000})

    return evaluate


def theirs(trials: int, seconds: float, count: int, parameters: int, watch: Callable[[int], None] = lambda done: None) -> list[float]:
    from optuna.samplers import NSGAIISampler
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    stamps: list[float] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            stamps.append(time.perf_counter())
            watch(len(stamps))

    def evaluate(config: dict[str, Any]) -> dict[str, float]:
        time.sleep(seconds)
        return {"accuracy": 0.5, "macs": sum(config.values())}

    names = {f"{k:04d}": tune.randint(0, 8) for k in range(parameters)}
    with tempfile.TemporaryDirectory() as folder:
        search_alg = OptunaSearch(metric=["accuracy", "macs"], mode=["max", "min"], sampler=NSGAIISampler(seed=0))
        tune.Tuner(
            evaluate, param_space=names,
            tune_config=tune.TuneConfig(search_alg=search_alg, num_samples=trials, max_concurrent_trials=count, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[Clock()]),
        ).fit()  # fmt: skip
    return stamps


def share(stamps: list[float], seconds: float, count: int) -> float:
    """Of the time after the first round, when every worker has started."""
    rest = stamps[count:]
    return len(rest) * seconds / count / (rest[-1] - stamps[count - 1])


def each(stamps: list[float], count: int) -> float:
    """Milliseconds per trial, likewise."""
    return 1e3 * (stamps[-1] - stamps[count - 1]) / (len(stamps) - count)


def memory(given: argparse.Namespace) -> dict[str, Any]:
    """In processes of their own, so that neither has the other's."""
    found = {}
    for name in ("memory_of_ours", "memory_of_theirs"):
        command = [sys.executable, __file__, name, "--memory-trials", str(given.memory_trials), "--workers", str(given.workers)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name.removeprefix("memory_of_")] = json.loads(result.stdout.splitlines()[-1])[name]
    return found


def memory_of_ours(given: argparse.Namespace) -> list[tuple[int, int]]:
    return grown(given, ours)


def memory_of_theirs(given: argparse.Namespace) -> list[tuple[int, int]]:
    return grown(given, lambda trials, seconds, count, watch: theirs(trials, seconds, count, 1, watch))


def grown(given: argparse.Namespace, run: Callable[..., Any]) -> list[tuple[int, int]]:
    """(trials that are done, mebibytes of this process), ten times."""
    curve: list[tuple[int, int]] = []
    step = max(1, given.memory_trials // 10)
    def watch(done: int) -> None:
        if done % step == 0:
            curve.append((done, mebibytes()))
            print(json.dumps(curve), file=sys.stderr, flush=True)  # of a run that is cut short

    with ray_of(given.workers):
        run(given.memory_trials, 0.0, given.workers, watch)
    return curve


if __name__ == "__main__":
    main()
