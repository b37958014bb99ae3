"""What stopping evaluations early is worth at equal time: schedulers on a simulated clock over curves of real fine-tunings, which are
measured once and kept in a file, or those of RankBench. Prints markdown.

    python analysis/early_stopping.py studies/digits.py --count 100 --epochs 4.5 --first 0.5 --keep curves.json [--seeds 20] [--workers 4]
    python analysis/early_stopping.py rankbench:digits --eta 2 --seeds 60

Of RankBench all configurations that have curves take part; the seeds of the orders take those of the fine-tunings in turn, epochs are the
short ones, and one takes every network the same time. Of a study candidates are what searches propose: exact optima of the Frobenius
proxy at random budgets of MACs, with every value of its table multiplied by a random factor, so that good and poor ones are among them at
every size. A simulated search starts one whenever one of its workers is free, in an order that the seed shuffles; a stretch between two
rungs takes the time that it took when it was measured, in proportion to its epochs. Only evaluations that have come to their end count:
the hypervolume of their front is taken at shares of the time that one worker needs for all of them."""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ranksearch import rankbench
from ranksearch.allocators import Additive, Problem
from ranksearch.evaluation import Outcome, Request, Stepwise
from ranksearch.home import replacing
from ranksearch.proxies import Frobenius
from ranksearch.rankbench import OBJECTIVES, RankBench
from ranksearch.rankbench.bench import DIRECTIONS
from ranksearch.results.pareto import Direction, relative_hypervolume
from ranksearch.schedulers import ASHA, NoStopping, ParetoASHA, Scheduler
from ranksearch.space import DENSE, Configuration
from ranksearch.space.table import Table
from ranksearch.study import Study
from ranksearch.studyfile import load

SHARES = (0.1, 0.2, 0.3, 0.5)  # of the time that all evaluations take, one after the other


@dataclass(frozen=True)
class Run:
    """A fine-tuning that was measured: objectives to be minimised, shape: (rungs + 1, n_objectives), and its seconds."""

    values: Sequence[Sequence[float]]
    seconds: float


@dataclass(frozen=True)
class Tabulated:
    """The runs of a study.

    Attributes:
        constant: of every objective, whether it is a cost.
        epochs: at the rungs and at the end.
        dense: values of the dense network at its end.
    """

    constant: Sequence[bool]
    epochs: Sequence[float]
    dense: Sequence[float]
    runs: Sequence[Run]

    @property
    def seconds(self) -> float:
        """Of all runs, one after the other."""
        return sum(run.seconds for run in self.runs)


@dataclass(frozen=True)
class Finish:
    """A run that came to its end at a time of the simulated clock."""

    time: float
    run: int


def simulate(table: Tabulated, scheduler: Scheduler, order: Sequence[int], *, workers: int) -> tuple[list[Finish], int]:
    """What finishes when, and how many were stopped, if ``workers`` take the runs of ``order`` one by one."""
    started = scheduler.start(table.constant)
    rungs = set(scheduler.rungs(table.epochs[-1]))
    shares = np.diff([0.0, *table.epochs]) / table.epochs[-1]
    waiting, finished, stopped, number = list(order)[::-1], [], 0, 0
    busy: list[tuple[float, int, int, int]] = []  # (when, arrival, run, stretch)
    for _ in range(workers):
        if waiting:
            run = waiting.pop()
            heapq.heappush(busy, (table.runs[run].seconds * shares[0], number := number + 1, run, 0))
    while busy:
        now, _, run, stretch = heapq.heappop(busy)
        epochs, values = table.epochs[stretch], table.runs[run].values[stretch]
        goes_on = stretch + 1 < len(shares)
        if goes_on and epochs in rungs and not started.goes_on(str(run), epochs, values):
            goes_on, stopped = False, stopped + 1
        elif not goes_on:
            finished.append(Finish(now, run))
        if goes_on:
            stretch += 1
        elif waiting:
            run, stretch = waiting.pop(), 0
        else:
            continue
        heapq.heappush(busy, (now + table.runs[run].seconds * shares[stretch], number := number + 1, run, stretch))
    return finished, stopped


def volume(table: Tabulated, finished: Sequence[Finish], until: float) -> float:
    """The relative hypervolume of what was finished by then."""
    points = [table.runs[one.run].values[-1] for one in finished if one.time <= until]
    directions: list[Direction] = ["min"] * len(table.constant)
    return relative_hypervolume(np.array(points), table.dense, directions, table.constant) if points else 0.0


def candidates(study: Study, count: int) -> list[Configuration]:
    """Distinct configurations, near the front and farther from it, at all sizes."""
    random, space = np.random.default_rng(0), study.space
    table, found = Frobenius().table(space), {}
    while len(found) < count:
        noise = random.choice([0.0, 0.5, 1.0, 2.0])
        drawn = Table(tuple(row * np.exp(noise * random.normal(size=row.shape)) for row in table.values), table.reduction)
        budget = space.budget("macs", space.limit("macs", float(random.uniform(0.08, 0.8))))
        indices = Additive(seconds=0.2).allocate(Problem(space, drawn, {"macs": budget})).indices
        configuration = space.configuration(indices)
        found[configuration.id] = configuration
    return list(found.values())


def tabulated(study: Study, rungs: Sequence[float], count: int, path: Path) -> Tabulated:
    """Measured runs; those that the file has are read. It is written after every run, so that a measurement can be cut short."""
    known: dict[str, dict] = json.loads(path.read_text()) if path.exists() else {}
    evaluate, space = Stepwise(study.evaluator, rungs), study.space
    wanted = [DENSE, *candidates(study, count)]
    for configuration in wanted:
        if configuration.id in known:
            continue
        *_, outcome = evaluate(Request(configuration, study.fidelity, study.seed))
        assert isinstance(outcome, Outcome)
        points = [[p.epochs, dict(p.metrics)] for p in outcome.curve]
        known[configuration.id] = {"curve": points, "metrics": outcome.metrics, "seconds": outcome.seconds, "status": outcome.status}
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(known))
    signs = {name: -1.0 if study.directions[name] == "max" else 1.0 for name in study.objectives}

    def values(configuration: Configuration, metrics: Mapping[str, float]) -> list[float]:
        cost = space.cost(space.indices(configuration))
        return [signs[name] * float(cost[name] if name in cost else metrics[name]) for name in study.objectives]

    runs = []
    for configuration in wanted[1:]:
        entry = known[configuration.id]
        if entry["status"] == "done":
            curve = [*(metrics for _, metrics in entry["curve"]), entry["metrics"]]
            runs.append(Run([values(configuration, metrics) for metrics in curve], entry["seconds"]))
    constant = [name in space.baseline for name in study.objectives]
    return Tabulated(constant, [*rungs, study.fidelity.epochs], values(DENSE, known[DENSE.id]["metrics"]), runs)


def of_bench(bench: RankBench) -> list[Tabulated]:
    """The curves of a tabulated study, for every seed of fine-tuning; accuracies and costs, a second per epoch. The dense
    network is the untrained one, since the table has no curve of it."""
    signs = np.array([-1.0 if DIRECTIONS[name] == "max" else 1.0 for name in OBJECTIVES])
    constant = [name in bench.space.costs for name in OBJECTIVES]
    whole = bench.curves.join(bench.configurations[[name for name in OBJECTIVES if name in bench.space.costs]], on="row")
    dense = bench.evaluate(bench.space.dense)
    epochs = sorted(float(e) for e in whole["epochs"].unique() if e > 0)
    tables = []
    trained = whole.loc[whole["epochs"] > 0].sort_values(by=["row", "epochs"])
    for _, of_seed in trained.groupby("seed"):
        curves = [signs * curve[list(OBJECTIVES)].to_numpy(dtype=np.float64) for _, curve in of_seed.groupby("row")]
        runs = [Run(curve.tolist(), epochs[-1]) for curve in curves]
        tables.append(Tabulated(constant, epochs, (signs * [dense[name] for name in OBJECTIVES]).tolist(), runs))
    return tables


def compared(tables: Sequence[Tabulated], schedulers: Sequence[Scheduler], *, seeds: int, workers: int) -> list[str]:
    """Rows of a markdown table: mean and standard deviation over seeds, which take the tables in turn."""
    lines = [f"| scheduler | stopped | finished | {' | '.join(f'at {share:g} of the time' for share in SHARES)} |"]
    lines.append("| --- | --- | --- |" + " --- |" * len(SHARES))
    for scheduler in schedulers:
        volumes, stops, ends = [], [], []
        for seed in range(seeds):
            table = tables[seed % len(tables)]
            order = np.random.default_rng(seed).permutation(len(table.runs))
            finished, stopped = simulate(table, scheduler, order.tolist(), workers=workers)
            volumes.append([volume(table, finished, share * table.seconds / workers) for share in SHARES])
            stops.append(stopped)
            ends.append(len(finished))
        means, spreads = np.mean(volumes, axis=0), np.std(volumes, axis=0, ddof=1)
        cells = [f"{mean:.4f} ± {spread:.4f}" for mean, spread in zip(means, spreads, strict=True)]
        lines.append(f"| `{scheduler.name}` | {np.mean(stops):.0f} | {np.mean(ends):.0f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file, or rankbench:digits")
    parser.add_argument("--count", type=int, default=100, help="configurations")
    parser.add_argument("--epochs", type=float, default=4.5, help="of fine-tuning")
    parser.add_argument("--first", type=float, help="epochs to the first rung; default: 0.5, of RankBench 1")
    parser.add_argument("--eta", type=float, default=3.0)
    parser.add_argument("--keep", type=Path, help="where measured runs of a study are kept")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    of_table = given.study.startswith("rankbench:")
    first = given.first or (1.0 if of_table else 0.5)
    schedulers: list[Scheduler] = [NoStopping(), *(kind(first=first, eta=given.eta) for kind in (ASHA, ParetoASHA))]
    if of_table:
        name, objectives = given.study, list(OBJECTIVES)
        tables = of_bench(rankbench.load(given.study.removeprefix("rankbench:")))
    else:
        if given.keep is None:
            parser.error("--keep is needed: the fine-tunings of a study are measured, and kept there")
        declared = load(Path(given.study)).create({})
        study = declared.replace(fidelity=replace(declared.fidelity, epochs=given.epochs))
        name, objectives = study.name, list(study.objectives)
        tables = [tabulated(study, schedulers[-1].rungs(given.epochs), given.count, given.keep)]
    missing = set(schedulers[-1].rungs(tables[0].epochs[-1])) - set(tables[0].epochs)
    if missing:
        parser.error(f"--first {first:g} --eta {given.eta:g}: the curves have no epochs {sorted(missing)}")
    told = {"objectives": objectives, "runs": len(tables[0].runs), "epochs": list(tables[0].epochs), "dense": list(tables[0].dense)}
    seconds = np.mean([table.seconds for table in tables])
    print(f"{name}: {told}, {given.workers} workers, {given.seeds} seeds, {seconds:.0f} s of evaluations\n")
    print("\n".join(compared(tables, schedulers, seeds=given.seeds, workers=given.workers)))


if __name__ == "__main__":
    main()
