"""Frames of a large study against Optuna's on the same evaluations, as one line of JSON.

    python analysis/benchmarks/frames.py [--evaluations 100000] [--sites 60] [--optuna 500] [--repeats 3] [--folder DIR]

A study of ``--sites`` layers is made up, with ``--evaluations`` evaluations in a SQLite store: random configurations, metrics and costs.
Measured is what a user calls, ``front()``, ``evaluations()``, ``layers()``, ``history()``: seconds of wall clock (median) and of
processor time (least), the size of the frame, and what making it added to the memory of the process at its peak (Linux). ``first``
reads the store anew every time; ``again`` is the same question of a store that nobody has written to since.
Baseline, in the same run: the first ``--optuna`` of these evaluations as trials of Optuna (`Study.to_optuna`) in SQLite, read anew by
``load_study(...).trials_dataframe()``, which says what evaluations and layers say, and ``best_trials``; and ours of as many.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ranksearch import Classification, Configuration, Fidelity, Study
from ranksearch.space import named
from ranksearch.space.specs import SpaceSpec
from ranksearch.store import database

FIDELITY = Fidelity(epochs=0, recalibration=0)
START = datetime(2026, 1, 1, tzinfo=UTC)


def study_of(sites: int, store: Path) -> Study:
    """A study of linear layers, all of one size."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 128), torch.arange(16) % 2
    task = Classification(train=(x, y), validation=(x, y), batch_size=16, learning_rate=0.05)
    net = nn.Sequential(*(layer for _ in range(sites - 1) for layer in (nn.Linear(128, 128), nn.ReLU())), nn.Linear(128, 2))
    space = SpaceSpec(named("svd"))
    return Study("large", model=net, task=task, space=space, objectives=("accuracy", "macs", "params"), fidelity=FIDELITY, store=store)


def fill(study: Study, count: int, seed: int) -> None:
    """Write evaluations as a search would, all at once."""
    study.open_store(write=True).close()
    space = study.space
    indices = np.random.default_rng(seed).integers(0, np.array(space.shape), (count, len(space.shape)))
    indices[0] = space.dense
    costs = {name: table.score(indices).astype(np.int64) for name, table in space.cost_tables.items()}
    share = costs["macs"] / space.baseline.macs
    noise = np.random.default_rng(seed + 1)
    accuracy = np.where(np.arange(count) == 0, 0.95, 0.95 * share**0.2 + 0.02 * noise.standard_normal(count))
    parts = [[_part(ladder, i) for i in range(len(ladder))] for ladder in space.ladders]
    order = sorted(range(len(space.ladders)), key=lambda at: space.ladders[at].site.name)
    configurations, rows = {}, []
    for number, row in enumerate(indices.tolist()):
        text = "{" + ",".join(part for at in order if (part := parts[at][row[at]])) + "}"
        id = Configuration.from_json(text).id if number < 3 else f"{number:012x}"
        configurations.setdefault(id, text)
        rows.append({
            "configuration_id": id, "fidelity": FIDELITY.key, "seed": 0, "fingerprint": study.fingerprint, "status": "done",
            "metrics": json.dumps({"accuracy": accuracy[number], "loss": 1 - accuracy[number]}), "params": int(costs["params"][number]),
            "macs": int(costs["macs"][number]), "seconds": 1.0, "created": (START + timedelta(seconds=number)).isoformat(),
            "origin": "dense" if number == 0 else "nsga2" if number % 3 else f"additive:energy:macs<={share[number]:.2f}",
        })  # fmt: skip
    engine = database.Place(study.store_url).engine(write=True)
    with engine.begin() as connection:
        connection.execute(database.configurations_table.insert(), [{"id": id, "json": text} for id, text in configurations.items()])
        connection.execute(database.evaluations_table.insert(), rows)
    engine.dispose()


def _part(ladder: Any, index: int) -> str:
    name, rank = ladder.choice(index)
    return "" if name == "dense" else json.dumps({ladder.site.name: [name, list(rank)]}, separators=(",", ":"))[1:-1]


def measured(make: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Median wall clock, least processor time, size of the result, growth of the process."""
    before = _peak_mb(restart=True)
    walls, processor, size = [], [], 0
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        made = make()
        walls.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
        size = int(made.memory_usage(deep=True).sum()) if hasattr(made, "memory_usage") else 0
        del made
    return {
        "seconds": round(float(np.median(walls)), 3), "processor_seconds": round(min(processor), 3), "frame_mb": round(size / 1e6, 1),
        "peak_growth_mb": round(_peak_mb() - before, 1),
    }  # fmt: skip


def _peak_mb(*, restart: bool = False) -> float:
    """The largest resident size of this process (Linux), since it was last restarted."""
    if restart:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) / 1e3


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own, so that each begins with the same memory."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def ours(sites: int, store: Path, names: Sequence[str], repeats: int) -> dict[str, dict[str, dict[str, Any]]]:
    study = study_of(sites, store)
    results = study.results
    calls = {
        "front": study.front, "evaluations": study.evaluations, "layers": results.layers, "history": results.history,
        "layers_of_front": lambda: results.layers(study.front()["id"]),
    }  # fmt: skip
    _ = study.space  # profiled once per process, as after a search
    study.open_store(write=False).close()

    def anew(name: str) -> Any:
        vars(study).pop("kept", None)  # what was read of the store
        return calls[name]()

    found = {}
    for name in names:
        found[name] = {"first": measured(lambda name=name: anew(name), repeats), "again": measured(calls[name], repeats)}
    return found


def optunas(sites: int, store: Path, repeats: int) -> dict[str, Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{store.with_suffix('.optuna')}"
    name = study_of(sites, store).to_optuna(url).study_name
    return {
        "trials_dataframe": measured(lambda: optuna.load_study(study_name=name, storage=url).trials_dataframe(), repeats),
        "best_trials": measured(lambda: optuna.load_study(study_name=name, storage=url).best_trials, repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=100_000)
    parser.add_argument("--sites", type=int, default=60)
    parser.add_argument("--optuna", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        large, small = Path(name) / "large.db", Path(name) / "small.db"
        for path, count in ((large, given.evaluations), (small, given.optuna)):
            fill(study_of(given.sites, path), count, given.seed)
        found = apart(ours, given.sites, large, ("front", "evaluations", "history"), given.repeats)
        found |= apart(ours, given.sites, large, ("layers_of_front", "layers"), given.repeats)  # the peak of the largest is its own
        few = apart(ours, given.sites, small, ("front", "evaluations", "layers"), given.repeats)
        theirs = apart(optunas, given.sites, small, given.repeats)
    frames = few["evaluations"]["first"]["processor_seconds"] + few["layers"]["first"]["processor_seconds"]
    print(json.dumps({
        "benchmark": "frames", "evaluations": given.evaluations, "sites": given.sites, "optuna_trials": given.optuna,
        "repeats": given.repeats,
        "ours": found, "ours_of_optunas_evaluations": few, "optuna": theirs,
        "times_faster_than_trials_dataframe": round(theirs["trials_dataframe"]["processor_seconds"] / frames, 1),
        "times_faster_than_best_trials": round(theirs["best_trials"]["processor_seconds"] / few["front"]["first"]["processor_seconds"], 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
