"""What a search costs beside its evaluations, as one line of JSON: how much of two workers' time goes into evaluations, and what the
driver takes per trial and to go on, with 10, 1,000 and 10,000 finished evaluations of 60 sites.

    python analysis/benchmarks/distribute.py [--seconds 1] [--trials 40] [--workers 2] [--known 10 1000 10000] [--sampler nsga2]

Baseline of the former, measured in the same run: plain `ray.tune` with OptunaSearch and a function that sleeps as long.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import torch
from torch import nn

from ranksearch.decompositions import SVD
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.runners import LocalRunner, RayTuneRunner
from ranksearch.samplers import SAMPLERS, Sampler
from ranksearch.search.run import Objectives, SearchRun
from ranksearch.sites import find_sites
from ranksearch.space import SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.store import Store
from ranksearch.store.database import configurations_table, evaluations_table

FULL = Fidelity(epochs=0, recalibration=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--known", type=int, nargs="+", default=[10, 1000, 10_000])
    parser.add_argument("--sampler", choices=[s.name for s in SAMPLERS], default="nsga2")
    parser.add_argument("--no-ray", action="store_true", help="leave the workers out")
    given = parser.parse_args()
    sampler = next(s for s in SAMPLERS if s.name == given.sampler)
    space = sixty_sites()
    found: dict[str, Any] = {"benchmark": "distribute", "sites": len(space.shape), "sampler": sampler.name}
    found["driver"] = [driver(space, sampler, known) for known in given.known]
    if not given.no_ray:
        found["share_of_ideal"] = {"ranksearch": ours(given), "ray_tune_with_optuna": theirs(given)}
    print(json.dumps(found))


def sixty_sites() -> SearchSpace:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(24, 24) for _ in range(60)])
    return build_space(Spectra(model, find_sites(model, torch.randn(1, 24)), [SVD()]), max_options=8)


def worth(request: Request) -> Outcome:
    return Outcome(request, "done", {"accuracy": (int(request.configuration.id, 16) % 1000) / 1000})


def driver(space: SearchSpace, sampler: Sampler, known: int, trials: int = 50) -> dict[str, float]:
    """Seconds up to the first evaluation of a search that goes on, milliseconds per further trial, both also of processor time alone, which
    others on the machine do not lengthen; and the process's memory."""
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder, "s.db"), study="bench", fingerprint="f") as store:
        fill(store, space, known)
        stamps: list[tuple[float, float]] = []

        def now() -> tuple[float, float]:
            return time.perf_counter(), time.process_time()

        def evaluate(request: Request) -> Outcome:
            stamps.append(now())
            return worth(request)

        objectives = Objectives(("accuracy", "macs"), {"accuracy": "max", "macs": "min", "params": "min"}, space.baseline)
        search = SearchRun(space, objectives, FULL, 0, known + trials, sampler, [], None, {}, lambda: evaluate)
        begin = now()
        search.run(store, LocalRunner(), lambda event: None)
    first = np.array(stamps[0]) - begin
    each = 1e3 * np.median(np.diff(np.array(stamps), axis=0), axis=0)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "known": known, "seconds_to_first": round(float(first[0]), 3), "processor_seconds_to_first": round(float(first[1]), 3),
        "ms_per_trial": round(float(each[0]), 2), "processor_ms_per_trial": round(float(each[1]), 2), "mebibytes": round(memory),
    }  # fmt: skip


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


def ours(given: argparse.Namespace) -> float:
    """The time that evaluations take, as a share of what the workers have between the first outcome and the last."""
    stamps: list[float] = []
    queue = [Request(space_free(k), FULL, k) for k in range(given.trials)]
    pause = given.seconds

    def evaluate(request: Request) -> Outcome:
        time.sleep(pause)
        return Outcome(request, "done", {"accuracy": 0.5})

    runner = RayTuneRunner(given.workers, address="local")
    runner.run(evaluate, lambda: queue.pop() if queue else None, lambda outcome: stamps.append(time.perf_counter()))
    return share(stamps, given)


def space_free(number: int) -> Any:
    from ranksearch.space import Configuration

    return Configuration({"layer": ("svd", (number + 1,))})


def theirs(given: argparse.Namespace) -> float:
    import logging

    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    stamps: list[float] = []

    class Clock(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            stamps.append(time.perf_counter())

    pause = given.seconds

    def evaluate(config: dict[str, Any]) -> dict[str, float]:
        time.sleep(pause)
        return {"accuracy": 0.5}

    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=given.workers, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
        try:
            tune.Tuner(
                evaluate, param_space={"x": tune.uniform(0, 1)},
                tune_config=tune.TuneConfig(
                    search_alg=OptunaSearch(metric="accuracy", mode="max"), num_samples=given.trials, max_concurrent_trials=given.workers,
                    reuse_actors=True,
                ),
                run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[Clock()]),
            ).fit()  # fmt: skip
        finally:
            ray.shutdown()
    return share(stamps, given)


def share(stamps: list[float], given: argparse.Namespace) -> float:
    """Of the time after the first round, when every worker has started."""
    rest = stamps[given.workers :]
    return round(len(rest) * given.seconds / given.workers / (rest[-1] - stamps[given.workers - 1]), 3)


if __name__ == "__main__":
    main()
