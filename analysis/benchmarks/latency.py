"""Latency as a cost, on a ResNet-20 trained on CIFAR-10: how well the table of layers predicts whole networks, what the network chosen
at half of the latency takes, and its accuracy against the best networks that a search over MACs finds at that measured latency.
Prints one line of JSON. All times are measured in turn with the dense network's in this process; times are ratios to it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.costs import COSTS, DenseNetwork
from ranksearch.errors import InfeasibleBudget
from ranksearch.evaluation import Evaluator, Fidelity, Request
from ranksearch.home import home
from ranksearch.latency import RUNTIMES, Latency, Precision, TableLatency
from ranksearch.latency.device import clock_of
from ranksearch.latency.inputs import batched, network_input
from ranksearch.latency.timing import Interval, paired
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import SearchSpace, build_space, mixture
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import metric as space_metric
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

SHARES = (0.9, 0.8, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)  # of the MACs: networks of the search over MACs


def measured(models: Sequence[nn.Module], dense: nn.Module, inputs: Any, runtime: str, precision: Precision) -> list[Interval]:
    """Times of whole networks over the dense one's."""
    works = [RUNTIMES[runtime].prepare(model.eval(), inputs) for model in (dense, *models)]
    return list(paired(works[0], works[1:], precision=precision, clock=clock_of(dense)).ratios)


def optima(space: SearchSpace, cost: str, shares: Sequence[float]) -> dict[float, np.ndarray]:
    """Exact optima of the additive proxy at shares of one cost."""
    found = {}
    for share in shares:
        try:
            found[share] = Additive().allocate(Problem(space, space.table("energy"), {cost: share})).indices
        except InfeasibleBudget:
            continue
    return found


def deviations(space: SearchSpace, spectra: Spectra, times: Any, count: int, seed: int) -> np.ndarray:
    """|predicted / measured - 1| of networks with real factors, optima at random budgets of params and latency: none of them was
    measured for the fit."""
    generator = np.random.default_rng(seed)
    rows = []
    while len(rows) < count:
        budgets = {"latency": float(generator.uniform(0.35, 0.95)), "params": float(generator.uniform(0.2, 1.0))}
        try:
            rows.append(Additive().allocate(Problem(space, space.table("energy"), budgets)).indices)
        except InfeasibleBudget:
            continue
    candidates = [space.candidate(indices) for indices in rows]
    ratios = times([build(spectra, candidate.configuration) for candidate in candidates])
    predicted = [candidate.cost.share("latency", space.baseline) for candidate in candidates]
    return np.array([abs(p / r.value - 1) for p, r in zip(predicted, ratios, strict=True)])


def described(candidates: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in candidates.items()}


def main() -> None:
    begun = time.perf_counter()

    def tell(text: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s: {text}", file=sys.stderr, flush=True)

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="of a CIFAR-10 ResNet-20, a safetensors file")
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 as parquet files")
    parser.add_argument("--runtime", default="eager", choices=[*RUNTIMES])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--budget", type=float, default=0.7, help="share of the latency")
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--metric", default="fisher", choices=["weight", "activation", "fisher"])
    parser.add_argument("--rivals", type=int, default=2, help="networks of the search over MACs to be evaluated; 0: no accuracies")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    dense = load_weights(cifar_resnet(20), given.weights).eval().to(memory_format=torch.channels_last)
    task = cifar10(given.data)
    example = task.example()
    sites = find_sites(dense, example)
    types = mixture().decompositions
    moments = None
    if given.metric != "weight":
        found = space_metric.statistics(dense, sites, task, calibration=8, gradients=given.metric == "fisher")
        moments = space_metric.moments(found, given.metric)
    spectra = Spectra(dense, sites, types, moments=moments, cache=home() / "cache" / "spectra")
    tell("profiled")
    begin = time.perf_counter()
    network = DenseNetwork(dense, sites, example, 0, types)
    cost = Latency(runtime=given.runtime, batch=given.batch, networks=given.networks).of(network, tell=tell)
    assert isinstance(cost, TableLatency)
    seconds = time.perf_counter() - begin
    space = build_space(spectra, costs=(*COSTS, cost), example=example)
    by_macs = build_space(spectra)

    inputs, precision = network_input(dense, batched(example, given.batch, 0)), Precision(least=11, most=31)

    def times(models: Sequence[nn.Module]) -> list[Interval]:
        return measured(models, dense, inputs, given.runtime, precision)

    tell("space built; measuring other networks")
    off = deviations(space, spectra, times, given.networks, seed=1)
    evaluator = Evaluator(spectra, task)
    fidelity = Fidelity(epochs=0, recalibration=8, reconstruction=4)

    def accuracy(configuration: Any) -> float | None:
        if not given.rivals:
            return None
        return evaluator(Request(configuration, fidelity, 0)).metrics["accuracy"]

    tell("choosing")
    chosen = space.candidate(Additive().allocate(Problem(space, space.table("energy"), {"latency": given.budget})).indices)
    rivals = {share: by_macs.candidate(indices) for share, indices in optima(by_macs, "macs", SHARES).items()}
    networks = [build(spectra, candidate.configuration) for candidate in (chosen, *rivals.values())]
    mine, *others = times(networks)
    tell("evaluating")
    affordable = [share for share, r in zip(rivals, others, strict=True) if r.value <= mine.value]
    within = {share: accuracy(rivals[share].configuration) for share in affordable[: given.rivals]}  # those of most MACs
    best = max(within, key=lambda share: within[share] or 0.0, default=None)
    fit = cost.table.correction
    row = {
        "benchmark": "latency", "model": "resnet20", "device": cost.table.device, "runtime": given.runtime, "batch": given.batch,
        "threads": given.threads, "metric": given.metric, "table_seconds": round(seconds, 1), "scale": round(fit.scale, 3),
        "fit_median_deviation": fit.deviation, "median_deviation": float(np.median(off)), "worst_deviation": float(off.max()),
        "chosen": {"budget": given.budget, "predicted": chosen.cost.share("latency", space.baseline), "measured": mine.value,
                   "low": mine.low, "high": mine.high, "macs": chosen.cost.share("macs", space.baseline),
                   "params": chosen.cost.share("params", space.baseline), "accuracy": accuracy(chosen.configuration)},
        "by_macs": {f"{share:g}": r.value for share, r in zip(rivals, others, strict=True)},
        "best_by_macs_at_that_latency": None if best is None else {"macs": best, "accuracy": within[best]},
        "accuracy_dense": accuracy(by_macs.candidate(by_macs.dense).configuration),
    }  # fmt: skip
    print(json.dumps({key: described(value) if isinstance(value, dict) else described({key: value})[key] for key, value in row.items()}))


if __name__ == "__main__":
    main()
