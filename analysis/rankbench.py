"""Makes the tabulated studies of `ranksearch.rankbench`: options, configurations, curves. What is measured is kept in ``--keep`` as it
comes, so that the command goes on where it stopped; it stops by itself after ``--minutes``.

    python analysis/rankbench.py weights --out ranksearch/rankbench/data
    python analysis/rankbench.py digits --keep KEEP --out ranksearch/rankbench/data --rows 10000
    python analysis/rankbench.py resnet20 --keep KEEP --out ranksearch/rankbench/data --rows 2000 --chosen 0
        --data SHARED/data/cifar10 --weights SHARED/models/resnet20_cifar10.safetensors

Configurations are those of the exact fronts of all proxies and rules; then, in turn, some near these (their options moved a little), some
far from them (sites at random places) and some uniform over options, with targets of MACs and of params spread evenly, recombined stage by
stage; the last part are neighbours of the front that was measured by then."""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import ranksearch
from ranksearch.costs import LayerOptions
from ranksearch.errors import InvalidArgument
from ranksearch.home import home, replacing, user_path
from ranksearch.latency import Latency
from ranksearch.latency.timing import Precision
from ranksearch.networks.surgery import build
from ranksearch.proxies import Frobenius, ProxyContext, TableProxy, make_proxies
from ranksearch.rankbench.bench import CHUNKS, RankBench, live, of
from ranksearch.rankbench.composed import Protocol
from ranksearch.rankbench.settings import SHORT_EPOCH, study
from ranksearch.rankbench.tables import COSTS, MEASURED, Tables, options_of, read, write
from ranksearch.results.pareto import non_dominated
from ranksearch.search.portfolio import PUBLISHED
from ranksearch.search.starts import optima
from ranksearch.space import SearchSpace
from ranksearch.study import Study
from ranksearch.supernet.sampling import FrontGuided, UniformCost
from ranksearch.tasks import Classification
from ranksearch.tasks.images import digits
from ranksearch.tasks.networks import digits_net
from ranksearch.tasks.training import trained
from ranksearch.tensors import save

LICENCE = "CC0-1.0"
DRAWN = ("dense", "exact", "near", "far", "uniform", "refined", "searched")
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)  # of a cost: budgets of exact optima
EPOCHS = (0, 1, 2, 4)  # short ones, of the curves
SEEDS = 3
CURVES = {"row": np.int32, "seed": np.uint8, "epochs": np.uint8, "accuracy": np.float32, "loss": np.float32}
PRECISION = Precision(width=0.05, least=7, most=15, seconds=2.0)  # of latency: ratios are medians all the same
REFINED = 0.15  # of the rows: neighbours of the measured front
ROUND = 50  # of these, after which the front is taken anew


def made_weights(out: Path) -> None:
    """Train the digits network as studies/digits.py does, and keep it in 16 bits."""
    schooling = digits(learning_rate=0.1, schedule="one_cycle")
    model = trained(digits_net, schooling, epochs=12.0, seed=0, cache=home() / "cache")
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    with replacing(out / "digits.safetensors") as temporary:
        save(state, temporary)


def made_options(made: Study) -> Tables:
    """The table of options, with every table proxy; latency and configurations are still to come."""
    space = made.space
    context = ProxyContext(space, made.spectra, made.task, calibration=made.spec.calibration, batches=made.fidelity.recalibration)
    proxies, missing = make_proxies(context)
    assert not missing, missing
    tables = {proxy.name: proxy.table(space) for proxy in proxies if isinstance(proxy, TableProxy)}
    options = options_of(space, {name: table.values for name, table in tables.items()})
    options.insert(options.columns.get_loc("macs") + 1, "latency", np.zeros(len(options), dtype=np.int64))  # pyright: ignore[reportArgumentType]
    details = {
        "licence": LICENCE, "ranksearch": ranksearch.__version__, "torch": torch.__version__.split("+")[0], "machine": platform.machine(),
        "fidelity": made.fidelity.key, "metric": made.spec.metric, "fingerprint": made.space.fingerprint, "short_epoch": SHORT_EPOCH,
        "baseline": {"params": made.baseline.params, "macs": made.baseline.macs, "latency": 0},
        "largest": [name for name, table in tables.items() if table.reduction == "max"],
    }  # fmt: skip
    empty = pd.DataFrame()
    return Tables(empty, options, empty, details)


def timed(tables: Tables, made: Study, batch: int) -> Tables:
    """The tables with the latency of every option, measured here."""
    latency = Latency(batch=batch, networks=12, precision=PRECISION).of(made.dense_network, tell=lambda text: print(text, flush=True))
    options = tables.options.assign(latency=np.concatenate(list(_latencies(made, latency))))
    dense = sum(int(rows["latency"].iloc[-1]) for _, rows in options.groupby("site", sort=False))
    table = latency.table
    details = {
        "latency": {"device": table.device, "threads": table.threads, "runtime": table.runtime, "version": table.version, "batch": batch},
        "baseline": {**tables.details["baseline"], "latency": dense + latency.rest(made.dense_network)},
    }  # fmt: skip
    return Tables(tables.configurations, options, tables.curves, {**tables.details, **details})


def _latencies(made: Study, latency: Any) -> Iterator[np.ndarray]:
    for ladder in made.space.ladders:
        found = np.zeros(len(ladder), dtype=np.int64)
        for number, name in enumerate(ladder.decompositions):
            rows = np.flatnonzero(ladder.which == number)
            if len(rows):
                kind = made.spectra.decomposition(name)
                ranks = np.array([ladder.choice(row)[1] for row in rows], dtype=np.int64).reshape(len(rows), -1)
                costs = (ladder.costs["params"][rows], ladder.costs["macs"][rows])
                found[rows] = latency.options(LayerOptions(made.dense_network, ladder.site, kind, ranks, *costs))
        yield found


def exact(space: SearchSpace, proxies: Sequence[TableProxy], shares: Sequence[float]) -> Iterator[tuple[str, np.ndarray]]:
    """The optima of all proxies, and the answers of the published rules."""
    yield "dense", space.dense
    for proxy in proxies:
        for start in optima(space, [proxy], {}, shares=shares, seconds=0.2):
            yield "exact", np.asarray(start.candidate.indices)
    for rule in PUBLISHED:
        try:
            for start in optima(space, [Frobenius()], {}, allocator=rule, shares=shares):
                yield "exact", np.asarray(start.candidate.indices)
        except InvalidArgument:  # a rule that takes no such budget
            continue


def drawn(bench: RankBench, kinds: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Kinds and option indices, without end; exact ones only where nothing is there yet that comes after them."""
    space, random = bench.space, np.random.default_rng(0)
    proxies = [_Known(name, table) for name, table in bench.proxies.items()]
    if not kinds - {"dense", "exact"}:
        yield from exact(space, proxies, SHARES if bench.name == "digits" else SHARES[::2])
    additive = [proxy for proxy in proxies if proxy.table(space).reduction == "sum"]
    near = [FrontGuided(space, low=0.04, points=24, jitter=0.04, cost=cost, proxies=additive) for cost in ("macs", "params")]
    far = [UniformCost(space, low=0.04, spread=spread, cost=cost) for cost in ("macs", "params") for spread in (0.5, 1.5)]
    while True:
        for kind, samplings, count in (("near", near, 24), ("far", far, 12)):
            found = [space.indices(samplings[k % len(samplings)].draw(random)) for k in range(count)]
            yield from ((kind, row) for row in recombined(space, found))
        yield from (("uniform", row) for row in recombined(space, list(space.sample(3, int(random.integers(1 << 30))))))


def recombined(space: SearchSpace, found: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Triples of like MACs, and of each the 27 ways of taking the sites of every stage of the network from one of the three: as many
    configurations of like kind as that are measured in a half to a third of the time, since those that begin alike come together."""
    found.sort(key=lambda row: space.cost(row).macs)
    names = [ladder.site.name for ladder in space.ladders]
    stage = np.array([0 if name.startswith(("conv1", "layer1")) else 1 if name.startswith("layer2") else 2 for name in names])
    for start in range(0, len(found), 3):
        for choice in itertools.product(found[start : start + 3], repeat=3):
            yield np.stack(choice)[stage, np.arange(len(stage))]


class _Known(TableProxy):
    """A proxy whose table is known."""

    def __init__(self, name: str, table: Any) -> None:
        self.name, self._table = name, table

    def table(self, space: SearchSpace) -> Any:
        return self._table


def refined(indices: np.ndarray, values: np.ndarray, shape: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A neighbour of the measured front: up to three sites moved along their ladders."""
    front = np.flatnonzero(non_dominated(values, ["min"] * values.shape[1]))
    row = indices[random.choice(front)].copy()
    sites = random.choice(len(shape), size=int(random.integers(1, 4)), replace=False)
    steps = np.rint(random.normal(0, 0.08 * shape[sites])).astype(np.int64)
    row[sites] = np.clip(row[sites] + np.where(steps == 0, random.choice([-1, 1], size=len(sites)), steps), 0, shape[sites] - 1)
    return row


class Keep:
    """Rows that are measured, in a file."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns
        self.rows: list[list[float]] = []
        if path.exists():
            with np.load(path) as kept:
                assert kept["columns"].tolist() == columns, f"{path} is of another study"
                self.rows = kept["rows"].tolist()
        self.saved = time.monotonic()

    def add(self, row: list[float]) -> None:
        self.rows.append(row)
        if time.monotonic() - self.saved > 30:
            self.save()

    def save(self) -> None:
        with replacing(self.path) as temporary:
            np.savez(temporary, columns=np.array(self.columns), rows=np.array(self.rows, dtype=np.float64).reshape(-1, len(self.columns)))
        self.saved = time.monotonic()


def measure_rows(bench: RankBench, made: Study, keep: Keep, rows: int, end: float) -> None:
    """Measure until there are so many rows, or the time is up. The same rows come whenever it is interrupted."""
    evaluator, composed = live(made, bench.space), keep.path.with_suffix(".pt")
    if composed.exists():
        evaluator.weights.update(torch.load(composed))
    before = len(evaluator.weights)
    sites, shape = len(bench.sites), np.array(bench.space.shape)
    seen = {np.array(row[1 : 1 + sites], dtype=np.uint8).tobytes() for row in keep.rows}
    plain = rows - int(REFINED * rows)
    if sum(row[0] != DRAWN.index("searched") for row in keep.rows) >= rows:
        return

    def take(kind: str, indices: np.ndarray) -> bool:
        if time.monotonic() > end or (key := indices.astype(np.uint8).tobytes()) in seen:
            return False
        seen.add(key)
        found = evaluator(indices)
        keep.add([DRAWN.index(kind), *indices.tolist(), *(found[name] for name in MEASURED)])
        return True

    source = drawn(bench, {DRAWN[int(row[0])] for row in keep.rows})
    while len(keep.rows) < plain and time.monotonic() < end:
        take(*next(source))
    while len(keep.rows) < rows and time.monotonic() < end:
        known = np.array(keep.rows)
        indices, loss = known[:, 1 : 1 + sites].astype(np.int64), known[:, 1 + sites + MEASURED.index("loss")]
        costs = np.stack([bench.space.cost_tables[name].score(indices) for name in ("params", "macs")], axis=1)
        random = np.random.default_rng(len(known))
        values = np.column_stack([loss, costs])
        batch = [refined(indices, values, shape, random) for _ in range(ROUND)]
        tried = sum(take("refined", row) for row in sorted(batch, key=lambda row: row.tolist()))
        if not tried:
            break
    keep.save()
    if len(evaluator.weights) > before:
        with replacing(composed) as temporary:
            torch.save(evaluator.weights, temporary)


def measure_curves(bench: RankBench, made: Study, keep: Keep, chosen: np.ndarray, end: float) -> None:
    """Fine-tune built networks: one training of so many short epochs per configuration and seed, measured on the way."""
    task = made.task
    assert isinstance(task, Classification)
    protocol = Protocol(task, made.fidelity.recalibration, chunk=CHUNKS[bench.name])
    done = {(row[0], row[1]) for row in keep.rows}
    for number in chosen.tolist():
        model = None
        for seed in range(SEEDS):
            if (number, seed) in done:
                continue
            if time.monotonic() > end:
                keep.save()
                return
            model = model or build(made.spectra, bench.configuration(number))
            for epochs, found in fine_tuned(copy.deepcopy(model), task, protocol, seed):
                keep.add([number, seed, epochs, found["accuracy"], found["loss"]])
    keep.save()


def fine_tuned(model: nn.Module, task: Classification, protocol: Protocol, seed: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Short epochs, and what a network measures after them."""
    training = task.training(model, epochs=EPOCHS[-1] * SHORT_EPOCH, seed=seed)
    marks = {round(training.steps * epochs / EPOCHS[-1]): epochs for epochs in EPOCHS}
    for step in range(training.steps + 1):
        if step in marks:
            prepared = protocol.prepared(copy.deepcopy(model))
            prepared.estimate()
            yield marks[step], prepared.measure()
        if step < training.steps:
            model.train()
            inputs, targets = training.batch()
            training.optimizer.zero_grad(set_to_none=True)
            task.loss(model(inputs), targets).backward()
            training.optimizer.step()


def chosen_rows(bench: RankBench, count: int) -> np.ndarray:
    """Rows for curves: spread over costs in equal numbers of every band of MACs, half of them by the best losses of the band."""
    rows = bench.configurations[bench.configurations["drawn"] != "searched"]  # which are there whatever samplers asked for
    macs = rows["macs"].to_numpy() / bench.space.baseline.macs
    bands = np.minimum((macs * 10).astype(int), 9)
    order, random = np.argsort(rows["loss"].to_numpy(), kind="stable"), np.random.default_rng(1)
    parts = []
    for band in range(10):
        members = order[bands[order] == band]
        best = members[: max(len(members) // 10, count // 20)]
        good = random.choice(best, size=min(count // 20, len(best)), replace=False)
        left = np.setdiff1d(members, good)
        parts += [good, random.choice(left, size=min(count // 10 - len(good), len(left)), replace=False)]
    return random.permutation(np.concatenate(parts))  # so that what is measured first is spread too


def tabulated(bench: RankBench, keep: Keep) -> pd.DataFrame:
    """The table of configurations: measured rows with costs and the scores of all proxies."""
    known, sites = np.array(keep.rows).reshape(-1, len(keep.columns)), len(bench.sites)
    indices = known[:, 1 : 1 + sites].astype(np.int64)
    columns: dict[str, Any] = {"drawn": pd.Categorical.from_codes(known[:, 0].astype(int), DRAWN)}  # pyright: ignore[reportArgumentType]
    columns |= {name: indices[:, place].astype(np.uint8) for place, name in enumerate(bench.sites)}
    columns |= {name: bench.timed.cost_tables[name].score(indices).astype(np.int64) for name in COSTS}
    columns |= {name: known[:, 1 + sites + place].astype(np.float32) for place, name in enumerate(MEASURED)}
    columns |= {f"score_{name}": values.to_numpy(dtype=np.float32) for name, values in bench.scores(indices).items()}
    return pd.DataFrame(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["weights", "digits", "resnet20"])
    parser.add_argument("--data", type=user_path, help="folder of CIFAR-10")
    parser.add_argument("--weights", type=user_path, help="safetensors of the ResNet-20")
    parser.add_argument("--keep", type=user_path, help="folder of what is measured")
    parser.add_argument("--out", type=user_path, required=True)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--chosen", type=int, default=300, help="configurations with curves")
    parser.add_argument("--met", type=user_path, help="evaluations of leaderboard.py, which join the table")
    parser.add_argument("--latency", action="store_true", help="measure the latency of options now")
    parser.add_argument("--batch", type=int, default=8, help="of latency")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which it stops; the same command goes on")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.name == "weights":
        made_weights(a.out)
        return
    end = time.monotonic() + 60 * a.minutes
    made = study(a.name, data=a.data, weights=a.weights)
    if not (a.keep / f"{a.name}_options.parquet").exists():
        write(made_options(made), a.keep, a.name)
    if a.latency:
        write(timed(read(a.keep, a.name), made, a.batch), a.keep, a.name)
    tables = read(a.keep, a.name)
    bench = of(a.name, tables)
    assert bench.space.fingerprint == made.space.fingerprint
    keep = Keep(a.keep / f"{a.name}_rows.npz", ["drawn", *bench.sites, *MEASURED])
    measure_rows(bench, made, keep, a.rows, end)
    if a.met is not None:
        join(keep, bench, a.met)
    tables = Tables(tabulated(bench, keep), tables.options, tables.curves, tables.details)
    print(f"{a.name}: {len(tables.configurations)} configurations", flush=True)
    curves = Keep(a.keep / f"{a.name}_curves.npz", [*CURVES])
    if len(keep.rows) >= a.rows and a.chosen:
        bench = of(a.name, tables)
        measure_curves(bench, made, curves, chosen_rows(bench, a.chosen), end)
    frame = pd.DataFrame(np.array(curves.rows).reshape(-1, len(CURVES)), columns=[*CURVES]).astype(CURVES)
    frame = frame[frame.groupby("row")["row"].transform("size") == SEEDS * len(EPOCHS)].reset_index(drop=True)  # of all seeds
    print(f"{a.name}: curves of {frame['row'].nunique()} configurations", flush=True)
    tables = Tables(tables.configurations, tables.options, frame, {**tables.details, "short_epoch": SHORT_EPOCH})
    write(tables, a.out, a.name)


def join(keep: Keep, bench: RankBench, met: Path) -> None:
    """What was measured for samplers, as rows that were searched for."""
    seen = {np.array(row[1 : 1 + len(bench.sites)], dtype=np.uint8).tobytes() for row in keep.rows}
    for key, found in json.loads(met.read_text())["met"].items():
        if (indices := bytes.fromhex(key)) not in seen:
            keep.add([DRAWN.index("searched"), *indices, *(found[name] for name in MEASURED)])
    keep.save()


if __name__ == "__main__":
    main()
