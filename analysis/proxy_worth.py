"""What each proxy is worth, over networks of two modalities: configurations in three bands of cost, half near the fronts of the cheap
proxies and half spread over the space, each built and measured, as it is or after training; every proxy's rank correlation in each band,
and the accuracy that trusting it loses. One process measures one network and writes each row when it has it; what is there is not measured
again.

    python analysis/proxy_worth.py --network fashion --space svd --shared SHARED --out FOLDER
    python analysis/proxy_worth.py --table --out FOLDER

Networks, spaces and data are those of `analysis/frontier.py`. Nothing looks at a test set: networks are measured on validation examples,
which no proxy has seen (the public weights of CIFAR-10 have: only orders and differences count). Intervals are the 2.5 and 97.5 %
quantiles of a bootstrap over the configurations of a band."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from subjects import SPACES, add_arguments, resumed, rows_of, subject
from torch import nn

from ranksearch.home import home, user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.surgery import build
from ranksearch.proxies import ProxyContext, ScoreProxy, TableProxy, make_proxies, tables
from ranksearch.space import Configuration, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import metric as metrics
from ranksearch.supernet.sampling import FrontGuided, UniformCost
from ranksearch.tasks import Classification

BANDS = ((0.15, 0.3), (0.3, 0.5), (0.5, 0.75))  # shares of the cost
RECALIBRATION = 8  # batches for batch norm
RESAMPLES = 1000
COST = "cost itself"  # what counting alone says


def drawn(space: SearchSpace, cost: str, each: int, seed: int) -> list[tuple[int, Configuration]]:
    """``each`` different configurations of every band, those of all bands in turn: near fronts and spread over the space."""
    generator, found = np.random.default_rng(seed), list[list[Configuration]]()
    for low, high in BANDS:
        ways = FrontGuided(space, low=low, high=high, points=4, jitter=0.1, cost=cost), UniformCost(space, low=low, high=high, cost=cost)
        band: dict[str, Configuration] = {}
        for _ in range(100 * each):
            configuration = ways[len(band) % 2].draw(generator)
            share = space.cost(space.indices(configuration)).share(cost, space.baseline)
            if low < share <= high:
                band[configuration.id] = configuration
            if len(band) == each:
                break
        found.append([*band.values()])
    return [(number, band[k]) for k in range(each) for number, band in enumerate(found) if k < len(band)]


def run(given: argparse.Namespace) -> None:
    """Measure the configurations of one network that are not measured yet, until the time is over."""
    begin = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    model, task = subject(given)
    task.batch_size = given.batch_size or task.batch_size
    schooling = task.cut(train=given.examples, seed=given.seed if given.drawn else None) if given.examples else task
    spec = SPACES[given.space]()
    sites = spec.sites(model, task.example())
    seen = metrics.statistics(model, sites, task, calibration=given.calibration, gradients=True, diagonal=True)
    spectra = Spectra(model, sites, spec.decompositions, moments=metrics.moments(seen, "fisher"), cache=home() / "cache" / "spectra")
    space = spec.build(spectra, example=task.example())
    made, missing = make_proxies(ProxyContext(space, spectra, task, given.calibration, given.batches))
    print(f"{given.network}: {len(made)} proxies after {time.monotonic() - begin:.0f} s, without {missing or 'none'}", flush=True)
    files = {length: Rows(given, length, schooling.sizes()["train"] if length else 0) for length in given.epochs}
    chosen = drawn(space, given.cost, given.each, given.seed)
    scored = scores(made, space, np.array([space.indices(configuration) for _, configuration in chosen]))
    print(f"{given.network}: {len(chosen)} configurations scored after {time.monotonic() - begin:.0f} s", flush=True)
    for number, (band, configuration) in enumerate(chosen):
        if time.monotonic() - begin > 60 * given.minutes:
            break
        share = space.cost(space.indices(configuration)).share(given.cost, space.baseline)
        said = {name: float(values[number]) for name, values in scored.items()} | {COST: -share}
        row = {"id": configuration.id, "band": band, "share": share, "scores": said}
        for length in (length for length, rows in files.items() if configuration.id not in rows.known):
            files[length].add(row | measured(build(spectra, configuration).eval(), task, schooling, length))
    for rows in files.values():
        print(f"{rows.path.name}: {len(rows.known)} rows after {time.monotonic() - begin:.0f} s", flush=True)


def scores(proxies: Sequence[TableProxy | ScoreProxy], space: SearchSpace, indices: np.ndarray) -> dict[str, np.ndarray]:
    """What every proxy says of configurations; tables are made once, and share the factors that they take."""
    listed = [proxy for proxy in proxies if isinstance(proxy, TableProxy)]
    found = {proxy.name: table.score(indices) for proxy, table in zip(listed, tables(listed, space), strict=True)}
    return found | {proxy.name: proxy.score(space, indices) for proxy in proxies if isinstance(proxy, ScoreProxy)}


def measured(network: nn.Module, task: Classification, schooling: Classification, epochs: float) -> dict[str, Any]:
    """What a network comes to on validation examples, after ``epochs`` of fine-tuning on those of ``schooling``."""
    start = time.monotonic()
    if epochs:
        schooling.fine_tune(network, epochs=epochs, seed=0)
    recalibrate(network, task.normalization(RECALIBRATION))
    return {"measured": task.measure(network), "seconds": round(time.monotonic() - start, 2)}


class Rows:
    """The file of one length of training: what is known, and what is added to it.

    Args:
        examples: that networks are trained on; 0 without training.
    """

    def __init__(self, given: argparse.Namespace, epochs: float, examples: int) -> None:
        self.common = {"network": given.network, "space": given.space, "cost": given.cost, "epochs": epochs, "examples": examples}
        self.path: Path = given.out / f"{given.network}-{given.space}-{given.cost}-{epochs:g}-{examples}.jsonl"
        self.known = {row["id"] for row in resumed(self.path)}

    def add(self, row: dict[str, Any]) -> None:
        """Write a row at once."""
        with self.path.open("a") as file:
            file.write(json.dumps(self.common | row) + "\n")
        self.known.add(row["id"])


# -- the table -----------------------------------------------------------------------------------------------------------


def tau(scores: np.ndarray, loss: np.ndarray, accuracy: np.ndarray) -> float:
    """Kendall's tau-b of a score and the measured loss; NaN where one of them is the same for all."""
    del accuracy
    return float(kendalltau(scores, loss).statistic) if np.ptp(scores) > 0 and np.ptp(loss) > 0 else float("nan")


def regret(scores: np.ndarray, loss: np.ndarray, accuracy: np.ndarray) -> float:
    """Points of accuracy that the best scored of a band is behind the best measured one; of equal scores the mean is taken."""
    del loss
    return 100 * float(accuracy.max() - accuracy[scores == scores.min()].mean())


Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def with_interval(measure: Measure, *columns: np.ndarray, digits: int) -> str:
    """A measure of configurations, and its bootstrap interval over them."""
    random, count, found = np.random.default_rng(0), len(columns[0]), []
    for _ in range(RESAMPLES):
        chosen = random.integers(0, count, count)
        found.append(measure(*(column[chosen] for column in columns)))
    value = measure(*columns)
    if np.isnan(value):
        return "-"
    low, high = np.nanquantile(found, [0.025, 0.975])
    value, low, high = (round(float(number), digits) + 0.0 for number in (value, low, high))  # no minus before a zero
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Proxies down, best mean tau first, bands across; one table per network, space, cost and training."""
    lines: list[str] = []
    places = [tuple(r[key] for key in ("network", "space", "cost", "epochs", "examples")) for r in rows]
    for place in dict.fromkeys(places):
        here = [r for r, other in zip(rows, places, strict=True) if other == place]
        bands = [[r for r in here if r["band"] == number] for number in range(len(BANDS))]
        network, space, cost, epochs, examples = place
        how = f"{epochs:g} epochs of fine-tuning on {examples} examples" if epochs else "without training"
        counts = ", ".join(str(len(band)) for band in bands)
        lines += [f"\n{network}, types of `{space}`, {how}; configurations in the bands: {counts}.\n"]
        heads = [f"{what} {low:g}-{high:g}" for what in ("tau", "regret") for low, high in BANDS]
        lines += [f"| proxy, {cost} | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
        found: list[tuple[float, str]] = []
        for name in here[0]["scores"]:
            columns = [[np.array(c) for c in _columns(band, name)] for band in bands if len(band) > 1]
            taus = [tau(*c) for c in columns]
            cells = [with_interval(tau, *c, digits=2) for c in columns] + [with_interval(regret, *c, digits=1) for c in columns]
            found.append((-float(np.nan_to_num(np.mean(taus), nan=-2.0)), f"| {name} | {' | '.join(cells)} |"))
        lines += [line for _, line in sorted(found)]
    return lines


def _columns(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float], list[float]]:
    return [r["scores"][name] for r in rows], [r["measured"]["loss"] for r in rows], [r["measured"]["accuracy"] for r in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, required=True, help="folder of the rows")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    add_arguments(parser, images=1000)
    parser.add_argument("--space", choices=list(SPACES), default="svd")
    parser.add_argument("--cost", default="macs")
    parser.add_argument("--each", type=int, default=20, help="configurations per band")
    parser.add_argument("--epochs", type=float, nargs="+", default=[0.0], help="of fine-tuning, a table for each")
    parser.add_argument("--examples", type=int, help="of fine-tuning, the first so many (default: all training examples)")
    parser.add_argument("--drawn", action="store_true", help="these are drawn: of texts, which are sorted by class, the first have one")
    parser.add_argument("--calibration", type=int, default=8, help="batches of statistics")
    parser.add_argument("--batches", type=int, default=2, help="labelled batches for proxies that run networks")
    parser.add_argument("--batch-size", type=int, help="another one than the task's")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no further configuration is begun after these")
    parser.add_argument("--seed", type=int, default=0, help="of the configurations")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.table:
        print("\n".join(table([row for path in sorted(given.out.glob("*.jsonl")) for row in rows_of(path)])))
        return
    torch.set_num_threads(given.threads)
    run(given)


if __name__ == "__main__":
    main()
