"""The leaderboard of docs/rankbench.md, from the tables of `ranksearch.rankbench`: how well every proxy orders configurations of like cost,
and what every sampler finds in equal evaluations.

    python analysis/leaderboard.py proxies digits --write docs/rankbench.md
    python analysis/leaderboard.py samplers digits --write docs/rankbench.md [--met SEARCHED.json]
    python analysis/leaderboard.py samplers resnet20 --data FOLDER --weights FILE --met SEARCHED.json --trials 40 --seeds 3

Proxies: within bands of MACs, Kendall's tau with the loss, and regret: the points of accuracy that the best-scored configuration of a band
lies below the best measured, both with 95 % intervals of the bootstrap over families of configurations; without training over all that were
drawn without measuring, and after fine-tuning (four short epochs, mean of the seeds) over those with curves. Samplers: see `samplers.py`.
What they ask for that is not in the table is measured and kept in ``--met``; ``rankbench.py --met`` adds that to the table."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from samplers import Case, drawn, reached, search, spread
from samplers import Kept as Shared
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import kendalltau

from ranksearch import rankbench
from ranksearch.home import replacing, user_path
from ranksearch.rankbench import RankBench

BANDS = ((0.0, 0.1), (0.1, 0.2), (0.2, 0.35), (0.35, 0.55), (0.55, 1.0))  # of MACs, as shares of the dense network's
RESAMPLES = 200
FEWEST = 100  # configurations with curves, of which orders say something
RECOMBINED = ("near", "far", "uniform")  # rows that come in families
STAGES = (("conv1", "layer1"), ("layer2",), ("layer3", "linear"))  # that are recombined, see `rankbench.py`
BY_MEASURING = ("refined", "searched")  # rows that were chosen by what others had measured
SAMPLERS = ("surrogate", "nsga2", "nsga3", "tpe", "gp", "random", "starts", "surrogate alone", "nsga2 alone", "random alone")


def scores_of(bench: RankBench) -> dict[str, pd.Series]:
    """Columns that score configurations, by name; lower is better."""
    found = {c.removeprefix("score_"): bench.configurations[c] for c in bench.configurations if c.startswith("score_")}
    return found | {name: bench.configurations[name] for name in ("calibration_loss", "last_feature")}


def fine_tuned(bench: RankBench) -> pd.DataFrame:
    """Mean accuracy and loss over seeds after the most short epochs, by row of the table."""
    last = bench.curves[bench.curves["epochs"] == bench.curves["epochs"].max()]
    return last.groupby("row")[["accuracy", "loss"]].mean()


def families(bench: RankBench) -> np.ndarray:
    """A number per configuration, equal where some were recombined of the same draws: those that share a stage, directly or by way of
    others; int64, shape: (n,)."""
    count = len(bench.configurations)
    together = np.flatnonzero(bench.configurations["drawn"].isin(RECOMBINED))
    links = []
    for prefixes in STAGES:
        sites = [place for place, name in enumerate(bench.sites) if name.startswith(prefixes)]
        owner = np.unique(bench.indices[np.ix_(together, sites)], axis=0, return_inverse=True)[1].ravel()
        first = np.full(owner.max(initial=0) + 1, -1)
        first[owner[::-1]] = together[::-1]
        links.append(np.stack([together, first[owner]]))
    rows, others = np.concatenate(links, axis=1)
    graph = coo_matrix((np.ones(len(rows)), (rows, others)), shape=(count, count))
    return connected_components(graph, directed=False)[1]


def resampled(score: np.ndarray, loss: np.ndarray, accuracy: np.ndarray, family: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Kendall's tau and regret in points, of the configurations and of resamples of their families; shape: (1 + RESAMPLES, 2)."""
    members = [np.flatnonzero(family == number) for number in np.unique(family)]
    found = []
    for number in range(1 + RESAMPLES):
        drawn = random.integers(0, len(members), len(members))
        chosen = np.concatenate([members[k] for k in drawn]) if number else np.arange(len(score))
        regret = 100 * (accuracy[chosen].max() - accuracy[chosen][np.argmin(score[chosen])])
        found.append([kendalltau(score[chosen], loss[chosen]).statistic, regret])
    return np.array(found)


def proxies_table(bench: RankBench, measured: pd.DataFrame) -> list[str]:
    """Markdown: proxies down, best first, bands across.

    Args:
        measured: accuracy and loss, by row of the table."""
    rows = measured.index.to_numpy()
    macs = bench.configurations["macs"].to_numpy()[rows] / bench.space.baseline.macs
    bands = [np.flatnonzero((macs > low) & (macs <= high)) for low, high in BANDS]
    columns = [measured[name].to_numpy(dtype=np.float64) for name in ("loss", "accuracy")]
    family = families(bench)[rows]
    lines: list[tuple[float, str]] = []
    for name, score in scores_of(bench).items():
        score, random = score.to_numpy(dtype=np.float64)[rows], np.random.default_rng(0)
        found = [resampled(score[band], columns[0][band], columns[1][band], family[band], random) for band in bands]
        cells = [f"{f[0, 0]:.2f} ({_interval(f[1:, 0], 2)})" for f in found] + [f"{f[0, 1]:.1f} ({_interval(f[1:, 1], 1)})" for f in found]
        lines.append((-float(np.mean([f[0, 0] for f in found])), f"| {name} | {' | '.join(cells)} |"))
    heads = [f"{what} {low:g}-{high:g}" for what in ("tau", "regret") for low, high in BANDS]
    counts = ", ".join(str(len(band)) for band in bands)
    table = [f"| proxy | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|", *(line for _, line in sorted(lines))]
    groups = ", ".join(str(len(np.unique(family[band]))) for band in bands)
    return [*table, "", f"Configurations in the bands: {counts}; families: {groups}."]


def _interval(values: np.ndarray, digits: int) -> str:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return f"{low:.{digits}f} to {high:.{digits}f}"


class Kept:
    """What was measured outside the table, and the hypervolumes of searches, in a file, so that the command goes on where it stopped."""

    def __init__(self, path: Path | None, bench: RankBench) -> None:
        self.path, self.bench = path, bench
        self.curves: dict[str, list[list[float]]] = {}
        if path is not None and path.exists():
            known = json.loads(path.read_text())
            self.curves = known["curves"]
            bench.met.update({bytes.fromhex(key): found for key, found in known["met"].items()})

    def save(self) -> None:
        """Write it."""
        if self.path is not None:
            met = {key.hex(): found for key, found in self.bench.met.items()}
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps({"met": met, "curves": self.curves}))


def samplers_table(
    kept: Kept, names: Sequence[str], *, trials: int, seeds: int, end: float, figure: Path | None = None
) -> list[str]:  # fmt: skip
    """Markdown: samplers down, evaluations across; and a figure of that. Ends the program where the time is up before all are done."""
    marks = sorted({trials // 8, trials // 4, trials // 3, trials // 2, 3 * trials // 4, trials})
    heads = ["sampler", *map(str, marks), "down to half", "seeds"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    curves: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(Path(folder) / "kept.json", Case.of_bench(kept.bench))
        for asked in names:
            name, _, fewer = asked.partition(":")
            count = 1 if name == "starts" else int(fewer or seeds)
            for seed in range(count):
                if (key := f"{name}, {trials} trials, seed {seed}") not in kept.curves:
                    if time.monotonic() > end:
                        raise SystemExit(f"the time is up at {key}: run the same command again")
                    whole, half, _ = search(shared, name, trials=trials, seed=seed, where=())
                    kept.curves[key] = [whole.tolist(), half.tolist()]
                    kept.save()
            found = np.array([kept.curves[f"{name}, {trials} trials, seed {seed}"] for seed in range(count)])
            curves[name] = found[:, 0]
            cells = [*(spread(curves[name][:, mark - 1]) for mark in marks), spread(found[:, 1, -1]), str(count)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if figure is not None:
        drawn(curves, figure, f"RankBench {kept.bench.name}")
    return [*lines, "", *(f"* {line}." for line in reached(curves))]


def written(path: Path, mark: str, lines: Sequence[str]) -> None:
    """Put lines between ``<!-- MARK -->`` and ``<!-- end -->`` of a page."""
    text = path.read_text()
    start = f"<!-- {mark} -->\n"
    before, _, rest = text.partition(start)
    _, end, after = rest.partition("<!-- end -->")
    assert end, f"{path} has no {start!r} with an end"
    path.write_text(f"{before}{start}\n" + "\n".join(lines) + f"\n\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("of", choices=["proxies", "samplers"])
    parser.add_argument("name", choices=rankbench.NAMES)
    parser.add_argument("--data", type=user_path, help="folder of CIFAR-10")
    parser.add_argument("--weights", type=user_path, help="safetensors of the ResNet-20")
    parser.add_argument("--tables", type=user_path, help="folder of the tables; default: those that come with ranksearch")
    parser.add_argument("--met", type=user_path, help="file of what was measured outside the table, made if it is not there")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), metavar="NAME[:SEEDS]", help="slow ones with fewer seeds, as gp:2")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which it stops; the same command goes on")
    parser.add_argument("--figure", type=user_path, help="file of a figure of samplers' curves")
    parser.add_argument("--write", type=user_path, help="page whose tables are exchanged; else they are printed")
    a = parser.parse_args()
    torch.set_num_threads(1)
    bench = rankbench.load(a.name, data=a.data, weights=a.weights, tables=a.tables)
    kept = Kept(a.met, bench)
    parts: dict[str, list[str]] = {}
    if a.of == "proxies":
        drawn = bench.configurations[~bench.configurations["drawn"].isin(BY_MEASURING)]
        parts[f"proxies {a.name}"] = proxies_table(bench, drawn[["accuracy", "loss"]])
        if bench.curves["row"].nunique() >= FEWEST:
            parts[f"proxies {a.name} fine-tuned"] = proxies_table(bench, fine_tuned(bench))
    else:
        parts[f"samplers {a.name}"] = samplers_table(
            kept, a.samplers, trials=a.trials, seeds=a.seeds, end=time.monotonic() + 60 * a.minutes, figure=a.figure
        )
    for mark, lines in parts.items():
        if a.write:
            written(a.write, mark, lines)
        else:
            print(f"\n{mark}\n\n" + "\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
