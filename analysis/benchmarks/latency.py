"""Latency as a cost: how well the table of layers predicts whole networks, what the network chosen at a share of the latency takes, and
its accuracy against the best network that a search over MACs finds at that measured latency. Prints one line of JSON. All times are
measured in turn with the dense network's in this process; times are ratios to it.

    python analysis/benchmarks/latency.py --network resnet20 --weights FILE --data FOLDER [--budgets 0.7 0.5]
    python analysis/benchmarks/latency.py --network resnet50 --batch 32 --device cuda --dtype bfloat16 --runtime cuda_graph
    ... --layers                                                    # of each type in how many layers it is faster, and how much"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency_networks import SUBJECTS, Subject

from ranksearch.allocators import Additive, Problem
from ranksearch.costs import COSTS, CostModel, DenseNetwork
from ranksearch.errors import EmptySpace, InfeasibleBudget
from ranksearch.evaluation import Evaluator, Request
from ranksearch.home import home
from ranksearch.latency import RUNTIMES, Latency, TableLatency, break_even, suggested_round_to
from ranksearch.latency.timing import Interval
from ranksearch.networks.surgery import build
from ranksearch.search.landing import fronts, landed
from ranksearch.sites import copied
from ranksearch.space import Candidate, Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import metric as space_metric

SHARES = (0.9, 0.8, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2)  # of the MACs: networks of the search over MACs


@dataclass
class Timed:
    """A subject with the table of its layers.

    Attributes:
        first: what was measured before anything was chosen.
        cost: after the networks that exact fronts land on, as a study counts.
        space: options with latency among their costs.
        by_macs: the same without latency: slower options stay.
        space_of: the space of cost models.
    """

    subject: Subject
    spectra: Spectra
    first: TableLatency
    cost: TableLatency
    network: DenseNetwork
    space: SearchSpace
    by_macs: SearchSpace
    space_of: Callable[[Sequence[CostModel]], SearchSpace]
    given: argparse.Namespace

    def times(self, candidates: Sequence[Candidate]) -> list[Interval]:
        """Of whole networks with real factors over the dense one's."""
        bench = self.cost.bench
        assert bench is not None  # the table was measured here
        dtype = getattr(torch, self.given.dtype)
        return bench.whole(self.subject.ready(build(self.spectra, candidate.configuration), dtype) for candidate in candidates)

    def landed(
        self, choose: Callable[[SearchSpace], Candidate | None], tell: Callable[[str], None]
    ) -> tuple[SearchSpace, Candidate | None]:
        """What is chosen once its latency is measured where it lands, and the space that says so; as `ranksearch.compress` does it."""

        def indices(space: SearchSpace) -> list[np.ndarray]:
            found = choose(space)
            return [] if found is None or found.indices is None else [found.indices]

        _, space = landed((*COSTS, self.first), self.spectra, self.space_of, indices, tell=tell)
        return space, choose(space)


def spectra_of(subject: Subject, given: argparse.Namespace) -> Spectra:
    """The types of a subject in a metric: that of its weights where they are random."""
    spec = subject.space.replace(metric=given.metric if subject.task else "weight")
    sites = spec.sites(subject.model, subject.example)
    moments = None
    if subject.task is not None and spec.metric != "weight":
        found = space_metric.statistics(subject.model, sites, subject.task, calibration=8, gradients=spec.metric == "fisher")
        moments = space_metric.moments(found, spec.metric)
    return Spectra(subject.model, sites, spec.decompositions, moments=moments, cache=home() / "cache" / "spectra", cache_bytes=8 << 30)


def table_of(
    subject: Subject, spectra: Spectra, given: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[DenseNetwork, TableLatency]:
    """A subject as it is timed, and the table of its layers."""
    dense = subject.ready(copied(subject.model), getattr(torch, given.dtype))
    network = DenseNetwork(dense, spectra.sites, subject.example, 0, subject.space.decompositions)
    cost = Latency(runtime=given.runtime, batch=given.batch, networks=0 if given.layers else given.networks).of(network, tell=tell)
    assert isinstance(cost, TableLatency)
    tell("the table is measured")
    return network, cost


def prepared(subject: Subject, spectra: Spectra, given: argparse.Namespace, tell: Callable[[str], None]) -> Timed:
    """Measure the table of a subject and build its spaces."""
    spec = subject.space
    network, first = table_of(subject, spectra, given, tell)
    options = {"round_to": spec.round_to, "max_options": spec.max_options}

    def space_of(costs: Sequence[CostModel]) -> SearchSpace:
        return build_space(spectra, costs=costs, example=subject.example, **options)

    counts, space = landed((*COSTS, first), spectra, space_of, fronts([first.name]), tell=tell)
    cost = counts[-1]
    assert isinstance(cost, TableLatency)
    return Timed(subject, spectra, first, cost, network, space, build_space(spectra, **options), space_of, given)


def optimum(space: SearchSpace, budgets: Mapping[str, float]) -> Candidate | None:
    """The exact optimum of the additive proxy; None where no network is so cheap."""
    try:
        return space.candidate(Additive().allocate(Problem(space, space.table("energy"), dict(budgets))).indices)
    except InfeasibleBudget:
        return None


def deviations(timed: Timed, count: int, seed: int) -> np.ndarray:
    """|predicted / measured - 1| of networks with real factors, optima at random budgets of params and latency: none of them was
    measured for the fit."""
    generator = np.random.default_rng(seed)
    candidates: list[Candidate] = []
    for _ in range(50 * count):
        if len(candidates) == count:
            break
        budgets = {"latency": float(generator.uniform(0.35, 0.95)), "params": float(generator.uniform(0.2, 1.0))}
        if (found := optimum(timed.space, budgets)) is not None:
            candidates.append(found)
    predicted = [candidate.cost.share("latency", timed.space.baseline) for candidate in candidates]
    return np.array([abs(p / r.value - 1) for p, r in zip(predicted, timed.times(candidates), strict=True)])


def chosen(
    timed: Timed, budget: float, rivals: Mapping[float, tuple[Candidate, Interval]], tell: Callable[[str], None]
) -> dict[str, Any]:  # fmt: skip
    """The network at a share of the latency, and those of most MACs of the search over MACs that are measured to be as fast."""
    space, found = timed.landed(lambda space: optimum(space, {"latency": budget}), tell)
    if found is None:
        fastest = sum(int(ladder.costs["latency"].min()) for ladder in space.ladders) + space.fixed["latency"]
        return {"budget": budget, "fastest_predicted": fastest / space.baseline["latency"]}
    (time_of,) = timed.times([found])
    baseline = space.baseline
    as_fast = [(share, rivals[share][0]) for share in rivals if rivals[share][1].value <= time_of.value][: timed.given.rivals]
    return {
        "budget": budget, "predicted": found.cost.share("latency", baseline), "measured": time_of.value, "low": time_of.low,
        "high": time_of.high, "macs": found.cost.share("macs", baseline), "params": found.cost.share("params", baseline),
        "configuration": found.configuration.to_json(),
        "by_macs_as_fast": [{"macs": share, "configuration": rival.configuration.to_json()} for share, rival in as_fast],
    }  # fmt: skip


def with_accuracies(row: dict[str, Any], spectra: Spectra, subject: Subject) -> dict[str, Any]:
    """A row with the accuracy of every configuration in it, in the place of the configuration; of random weights there is none."""
    evaluator = None if subject.task is None else Evaluator(spectra, subject.task)

    def judged(one: dict[str, Any]) -> dict[str, Any]:
        if evaluator is None or "configuration" not in one:
            return one
        configuration = Configuration.from_json(one["configuration"])
        outcome = evaluator(Request(configuration, subject.fidelity, 0))
        return {**{key: value for key, value in one.items() if key != "configuration"}, "accuracy": outcome.metrics["accuracy"]}

    for one in row["chosen"]:
        one["by_macs_as_fast"] = [judged(rival) for rival in one.get("by_macs_as_fast", [])]
    dense = judged({"configuration": Configuration({}).to_json()})
    return {**row, "chosen": [judged(one) for one in row["chosen"]], "accuracy_dense": dense.get("accuracy")}


def settings(given: argparse.Namespace) -> dict[str, Any]:
    names = ("network", "runtime", "dtype", "batch", "metric")
    return {"benchmark": "latency", **{name: getattr(given, name) for name in names}}


def row(timed: Timed, tell: Callable[[str], None]) -> dict[str, Any]:
    """What one run measures."""
    given, table = timed.given, timed.cost.table
    off = deviations(timed, given.networks, seed=1)
    tell("the deviations are measured")
    optima = {share: found for share in timed.given.shares if (found := optimum(timed.by_macs, {"macs": share})) is not None}
    rivals = dict(zip(optima, zip(optima.values(), timed.times([*optima.values()]), strict=True), strict=True))
    tell("the networks of the search over MACs are measured")
    even = break_even(timed.cost, timed.network, timed.network.decompositions)
    return {
        **settings(given), "device": table.device, "threads": table.threads,
        "milliseconds": timed.space.baseline["latency"] / 1e6,
        "scale": table.correction.scale, "rest": table.correction.rest / timed.space.baseline["latency"],
        "fit_median_deviation": table.correction.deviation,
        "median_deviation": float(np.median(off)) if len(off) else None, "worst_deviation": float(off.max(initial=0.0)),
        "round_to": suggested_round_to(timed.cost, timed.network), "never_faster": sum(one.rank is None for one in even),
        "break_even": len(even), "by_macs": {f"{share:g}": ratio.value for share, (_, ratio) in rivals.items()},
        "chosen": [chosen(timed, budget, rivals, tell) for budget in given.budgets],
    }  # fmt: skip


def by_type(cost: TableLatency) -> dict[str, Any]:
    """Of each type, in how many different layers it is defined, in how many of these an option that was measured is surely faster than the
    dense layer, and the least of the measured ratios, a layer each, in rising order."""
    found: dict[str, dict[str, Any]] = {}
    for layer in cost.table.layers.values():
        for name, points in layer.types.items():
            one = found.setdefault(name, {"layers": 0, "faster": 0, "ratios": []})
            one["layers"] += 1
            one["faster"] += any(interval.high < 1 for interval in points.values())
            one["ratios"].append(min(interval.value for interval in points.values()))
    return {name: {**one, "ratios": sorted(one["ratios"])} for name, one in found.items()}


def rounded(value: Any) -> Any:
    """The same with four digits after the point."""
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    begun = time.perf_counter()

    def tell(text: str) -> None:
        print(f"{time.perf_counter() - begun:6.1f} s: {text}", file=sys.stderr, flush=True)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20", choices=[*SUBJECTS])
    parser.add_argument("--weights", type=Path, help="of a CIFAR-10 ResNet-20, a safetensors file")
    parser.add_argument("--encoder", type=Path, help="folder of MiniLM")
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10, or with sentences, as parquet files")
    parser.add_argument("--runtime", default="eager", choices=[*RUNTIMES])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the networks that are timed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5], help="shares of the latency")
    parser.add_argument("--networks", type=int, default=20, help="that the fit is made of, and as many others that it is compared with")
    parser.add_argument("--metric", default="fisher", choices=["weight", "activation", "fisher"])
    parser.add_argument("--rivals", type=int, default=2, help="networks of the search over MACs beside each")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the MACs: networks of the search over MACs")
    parser.add_argument("--layers", action="store_true", help="measure layers alone, and say where which type is faster")
    parser.add_argument("--no-accuracies", action="store_true", help="the line has configurations in their place, for --accuracies")
    parser.add_argument("--accuracies", type=Path, help="file with a line that was made so, on whatever machine: measure nothing else")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    subject = SUBJECTS[given.network](given).on(given.device)
    spectra = spectra_of(subject, given)
    tell("the network is there")
    if given.accuracies is not None:
        line = json.loads(given.accuracies.read_text().splitlines()[-1])
    else:
        RUNTIMES[given.runtime].check()
        if given.layers:
            print(json.dumps(rounded({**settings(given), "types": by_type(table_of(subject, spectra, given, tell)[1])})))
            return
        try:
            line = row(prepared(subject, spectra, given, tell), tell)
        except EmptySpace as error:
            print(json.dumps({**settings(given), "nothing_is_faster": str(error)}))
            return
    print(json.dumps(rounded(line if given.no_accuracies else with_accuracies(line, spectra, subject))))


if __name__ == "__main__":
    main()
