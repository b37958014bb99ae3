"""Factorized without any training: every rule of choosing types and ranks, at the same budgets, on held-out data.
Writes a markdown table and the rows as JSON; cells that the JSON already has, made with the same settings, are kept, so
that a long run can be stopped and widened. Rules: published ones on weight (or, as their papers say, whitened)
spectra; ours solve their proxy's problem exactly, ``polish`` goes on from the best of them with measured moves;
``RULE_reconstructed`` refits the rule's network layer by layer to the dense network's answers."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ranksearch.allocators import Additive, Allocator, Problem, Uniform
from ranksearch.allocators.alds import ALDS, ALDSHeuristic
from ranksearch.allocators.balf import BALF
from ranksearch.allocators.decomposable_net import DecomposableNet, DecomposableNetRaw
from ranksearch.allocators.energy import EnergyThreshold
from ranksearch.allocators.evbmf import EVBMF
from ranksearch.allocators.stn_storage import STNStorage
from ranksearch.decompositions import DECOMPOSITIONS, Moments
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.home import home, user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import (
    Calibrated,
    CalibrationLoss,
    DiagonalFisher,
    Energy,
    Frobenius,
    LastFeature,
    SingleSiteLoss,
    TableProxy,
)
from ranksearch.search.local_search import polish
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table
from ranksearch.statistics import SampledLabels, Statistics, collect
from ranksearch.tasks import Classification
from ranksearch.tasks.images import cifar10, fashion_mnist
from ranksearch.tasks.networks import cifar_resnet, load_weights
from ranksearch.tasks.text import SentenceClassifier, fit_probe, pretrained_encoder, sentences

TYPES = {
    "svd": ("svd",),
    "all": ("svd", "svd_in", "spatial", "spatial_t", "tucker2", "grouped_svd", "cp"),
}
PUBLISHED: dict[str, tuple[str, Allocator | None]] = {  # name -> (metric, allocator)
    "uniform": ("weight", Uniform()),
    "energy": ("weight", EnergyThreshold()),
    "alds": ("weight", ALDS()),
    "alds_heuristic": ("weight", ALDSHeuristic()),
    "decomposable_net": ("weight", DecomposableNet(decompositions=None)),
    "decomposable_net_raw": ("weight", DecomposableNetRaw()),
    "evbmf": ("weight", None),  # needs the spectra
    "stn_storage": ("weight", STNStorage()),
    "balf": ("activation", BALF()),
}
CELL = ("types", "cost", "budget", "rule")
PROXIES = {  # name -> metric of the space whose additive problem is solved for the proxy's table
    "frobenius": "weight",
    "energy_weight": "weight",
    "fwsvd": "weight",
    "activation": "activation",
    "fisher": "fisher",
    "fisher_centred": "fisher_centred",
    "last_feature": "fisher",
    "single_site_loss": "fisher",
    "calibrated": "fisher",
}
RECONSTRUCTED = {f"{rule}_reconstructed": rule for rule in ("balf", "fisher")}  # refitted layer by layer
OURS = (*PROXIES, "polish")
RULES = (*PUBLISHED, *OURS, *RECONSTRUCTED)

TEMPERATURE = 3.0  # of the softmax, for statistics and measured losses


def _soft_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs / TEMPERATURE, targets)


def _dense_only(values: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(values)) == len(values) - 1, 0.0, 1e9)


@dataclass(frozen=True)
class Setting:
    """Everything that is the same for all rules."""

    model: nn.Module
    task: Classification
    statistics: Statistics
    names: tuple[str, ...]  # of decompositions
    batches: int  # for batch-norm re-estimation
    measured: int  # batches that `polish` and `calibrated` measure the loss on, and factors are fitted to
    evaluations: int
    sample: int  # measurements for `calibrated`
    max_options: int | None
    seed: int
    plain: bool = True  # measure without re-estimation too

    @cached_property
    def spaces(self) -> dict[str, tuple[Spectra, SearchSpace]]:
        return {}

    def space(self, metric: str) -> tuple[Spectra, SearchSpace]:
        """Spectra and space in one metric, built once."""
        if metric not in self.spaces:
            sites = find_sites(self.model, self.task.example())
            moments: dict[str, Moments] | None = None
            if metric != "weight":
                base = "fisher" if metric.startswith("fisher") else "activation"
                moments = self.statistics.moments(base, center=metric.endswith("centred"))
            chosen = [d for d in DECOMPOSITIONS if d.name in self.names]
            spectra = Spectra(self.model, sites, chosen, moments=moments)
            self.spaces[metric] = spectra, build_space(spectra, max_options=self.max_options)
        return self.spaces[metric]

    @cached_property
    def loss(self) -> CalibrationLoss:
        """Cross entropy to the dense network's softened answers on calibration images, under batch statistics, of
        networks with Fisher factors: less noisy than the loss to the labels, and needs none."""
        spectra, _ = self.space("fisher")
        with torch.no_grad():
            batches = [(x, (self.model(x) / TEMPERATURE).softmax(1)) for x in self.task.calibration(self.measured)]
        return CalibrationLoss(spectra, batches, _soft_loss, normalization="batch")

    def table(self, rule: str) -> Table:
        """The additive table of a proxy, computed once; the measured ones site by site."""
        if rule not in self.tables:
            spectra, space = self.space(PROXIES.get(rule, "fisher"))
            proxy: TableProxy = Energy()
            if rule in ("frobenius", "activation"):
                proxy = Frobenius()
            elif rule == "fwsvd":
                proxy = DiagonalFisher(spectra, self.statistics)
            elif rule == "single_site_loss":
                proxy = SingleSiteLoss(self.loss)
            elif rule == "last_feature":
                batches = list(self.task.calibration(self.measured))
                feature = LastFeature(self.model, lambda configuration: build(spectra, configuration), batches)
                proxy = SingleSiteLoss(lambda configuration: float(feature.score(space, space.indices(configuration)[None])[0]))
            table = proxy.table(space)
            if rule == "last_feature":  # what comes after the feature has no error in it: it stays dense
                unseen = feature.uncovered(space)
                columns = zip(space.ladders, table.values, strict=True)
                table = Table(tuple(_dense_only(v) if l.site.name in unseen else v for l, v in columns), "sum")
            self.tables[rule] = table
        return self.tables[rule]

    @cached_property
    def tables(self) -> dict[str, Table]:
        return {}

    @cached_property
    def fitted(self) -> dict[tuple[str, float], Table]:
        return {}


def choose(rule: str, setting: Setting, cost: str, budget: float) -> tuple[Spectra, Configuration, dict[str, Any]]:
    """The configuration of a rule at a budget, the spectra its factors come from, and notes."""
    budgets: dict[str, float] = {cost: budget}
    if rule in PUBLISHED:
        metric, allocator = PUBLISHED[rule]
        spectra, space = setting.space(metric)
        allocator = allocator or EVBMF(spectra)
        found = allocator.allocate(Problem(space, Frobenius().table(space), budgets))
        return spectra, space.configuration(found.indices), {}
    spectra, space = setting.space(PROXIES.get(rule, "fisher"))
    table, notes = (calibrated(setting, space, cost, budget) if rule == "calibrated" else (setting.table(rule), {}))
    found = Additive().allocate(Problem(space, table, budgets))
    notes["gap"] = found.gap
    if rule == "polish":
        done = polish(
            space, found.indices, lambda i: setting.loss(space.configuration(i)), budgets, evaluations=setting.evaluations, table=table
        )
        notes |= {"start": done.start, "loss": done.value, "evaluations": done.evaluations, "accepted": done.accepted}
        return spectra, space.configuration(done.indices), notes
    return spectra, space.configuration(found.indices), notes


def calibrated(setting: Setting, space: SearchSpace, cost: str, budget: float) -> tuple[Table, dict[str, Any]]:
    """The proxy's table with per-site weights fitted to measured losses around its optimum at the budget."""
    base = setting.table("polish")
    key = (cost, budget)
    notes: dict[str, Any] = {}
    if key not in setting.fitted:
        rng = np.random.default_rng(setting.seed)
        sample = []
        for _ in range(setting.sample):  # optima of randomly reweighted tables: near the front, yet different
            weights = np.exp(rng.normal(0.0, 0.8, len(space.ladders)))
            table = Table(tuple(w * v for w, v in zip(weights, base.values, strict=True)), "sum")
            sample.append(Additive().allocate(Problem(space, table, {cost: budget})).indices)
        proxy = Calibrated(Energy(), setting.loss, space, np.array(sample))
        setting.fitted[key] = proxy.table(space)
        fit = proxy.fit
        notes = {"held_out_spearman": fit.held_out, "before": fit.before, "measurements": fit.measurements}
    return setting.fitted[key], notes


def evaluate(setting: Setting, spectra: Spectra, configuration: Configuration, split: Any, fit: bool) -> dict[str, float]:
    """Accuracy as it is, and with batch norm re-estimated on training images; ``fit``: refitted layer by layer before."""
    model = build(spectra, configuration).eval()
    if fit:
        reconstruct(model, spectra, configuration, setting.task.calibration(setting.measured))
    found = {"plain": setting.task.measure(model, split)["accuracy"]} if setting.plain else {}
    recalibrate(model, setting.task.calibration(setting.batches))
    again = setting.task.measure(model, split)
    return found | {"reestimated": again["accuracy"], "loss_reestimated": again["loss"]}


def markdown(rows: Sequence[dict[str, Any]], column: str) -> str:
    """Rules down, budgets across."""
    heads = list(dict.fromkeys((r["cost"], r["budget"]) for r in rows))
    lines = ["| rule | types | " + " | ".join(f"{c} {b:g}" for c, b in heads) + " |", "|" + "---|" * (len(heads) + 2)]
    for rule, types in dict.fromkeys((r["rule"], r["types"]) for r in rows):
        cells = []
        for head in heads:
            found = [r for r in rows if (r["rule"], r["types"], r["cost"], r["budget"]) == (rule, types, *head)]
            cells.append(f"{100 * found[0][column]:.1f}" if found and column in found[0] else "-")
        lines.append(f"| {rule} | {types} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=user_path, required=True, help="folder of the images (parquet or idx.gz) or sentences (parquet)")
    parser.add_argument("--dataset", choices=("cifar10", "fashion_mnist", "tweets", "movies"), default="cifar10")
    parser.add_argument("--weights", type=user_path, required=True, help="safetensors of the ResNet, or folder of the encoder")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5, 0.4, 0.3])
    parser.add_argument("--costs", nargs="+", default=["params", "macs"], choices=["params", "macs"])
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--images", type=int, default=5000, help="held-out images")
    parser.add_argument("--test", action="store_true", help="measure on the test split: for final numbers only")
    parser.add_argument("--test-images", type=int, default=None, help="only the first so many of the test split")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, default=True, help="measure without re-estimation too")
    parser.add_argument("--statistics", type=int, default=16, help="batches of 128 for the second moments")
    parser.add_argument("--recalibration", type=int, default=16, help="batches for batch norm")
    parser.add_argument("--measured", type=int, default=4, help="batches for measured losses")
    parser.add_argument("--evaluations", type=int, default=100, help="measurements of polish")
    parser.add_argument("--sample", type=int, default=48, help="measurements of the calibrated proxy")
    parser.add_argument("--max-options", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=user_path, default=None, help="folder for statistics")
    parser.add_argument("--out", type=user_path, default=None, help="markdown file; rows go beside it as .json")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    split = "test" if a.test else "validation"
    model, task = subject(a.dataset, a.data, a.weights, a.depth, a.images)
    task = task if a.test_images is None else task.cut(test=a.test_images)
    start = time.perf_counter()
    batches = list(task.calibration(a.statistics))
    labels = SampledLabels(samples=2, temperature=TEMPERATURE, seed=a.seed)
    sites = find_sites(model, task.example())
    statistics = collect(model, sites, batches, labels=labels, diagonal="fwsvd" in a.rules, cache=a.cache)
    print(f"statistics: {time.perf_counter() - start:.1f} s", flush=True)
    dense = task.measure(model, split)["accuracy"]
    print(f"dense on {split}: {100 * dense:.2f}", flush=True)
    rows = finished(a.out, vars(a))
    done = {tuple(row[key] for key in CELL) for row in rows}
    for types in a.types:
        setting = Setting(
            model, task, statistics, TYPES[types], a.recalibration, a.measured, a.evaluations, a.sample, a.max_options, a.seed, a.plain
        )
        for cost in a.costs:
            for budget in a.budgets:
                for rule in a.rules:
                    if (types, cost, budget, rule) in done:
                        continue
                    row = one(rule, setting, cost, budget, split) | {"types": types}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                    if a.out:
                        write(a.out, rows, dense, split, vars(a))


def subject(dataset: str, data: Path, weights: Path, depth: int, images: int) -> tuple[nn.Module, Classification]:
    """The network and the task that it is measured on."""
    if dataset in ("tweets", "movies"):
        encoder, tokenizer = pretrained_encoder(weights)
        task = sentences(data / f"{dataset}.parquet", tokenizer)
        model = SentenceClassifier(encoder, task.classes).eval()
        fit_probe(model, task, cache=home() / "cache")
        return model, task
    read, channels = (cifar10, 3) if dataset == "cifar10" else (fashion_mnist, 1)
    model = load_weights(cifar_resnet(depth, in_channels=channels), weights).eval()
    return model.to(memory_format=torch.channels_last), read(data, validation=images)  # thin layers run twice as fast so


def finished(out: Path | None, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that ``out`` already has.

    Raises:
        InvalidArgument: they were made with other settings.
    """
    path = None if out is None else out.with_suffix(".json")
    if path is None or not path.exists():
        return []
    kept = json.loads(path.read_text())
    different = [key for key, value in settings(options).items() if kept["options"].get(key) != value]
    if different:
        was = ", ".join(f"{key}={kept['options'].get(key)}" for key in different)
        raise InvalidArgument(f"out={str(out)!r} was made with {was}: give the same options, or another file")
    return kept["rows"]


def settings(options: dict[str, Any]) -> dict[str, Any]:
    """What every cell depends on."""
    free = ("out", "budgets", "costs", "rules", "types", "cache", "threads")
    return {key: str(value) if isinstance(value, Path) else value for key, value in options.items() if key not in free}


def one(rule: str, setting: Setting, cost: str, budget: float, split: str) -> dict[str, Any]:
    """One cell of the table."""
    row: dict[str, Any] = {"rule": rule, "cost": cost, "budget": budget, "split": split}
    start = time.perf_counter()
    try:
        spectra, configuration, notes = choose(RECONSTRUCTED.get(rule, rule), setting, cost, budget)
    except (InfeasibleBudget, InvalidArgument) as error:
        return row | {"error": str(error)}
    row["seconds"] = round(time.perf_counter() - start, 1)
    space = next(s for sp, s in setting.spaces.values() if sp is spectra)
    total = space.cost(space.indices(configuration))
    row |= {"params": total.params / space.baseline.params, "macs": total.macs / space.baseline.macs}
    used: dict[str, int] = {}
    for _, decomposition, _ in configuration.choices:
        used[decomposition] = used.get(decomposition, 0) + 1
    row |= evaluate(setting, spectra, configuration, split, rule in RECONSTRUCTED)
    return row | notes | {"used": used, "configuration": configuration.to_json()}


def write(out: Path, rows: Sequence[dict[str, Any]], dense: float, split: str, options: dict[str, Any]) -> None:
    """The tables and, beside them, the rows."""
    text = f"Dense: {100 * dense:.2f} % on {split}.\n\nBatch norm re-estimated:\n\n{markdown(rows, 'reestimated')}\n\n"
    text += f"As it is:\n\n{markdown(rows, 'plain')}\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    out.with_suffix(".json").write_text(json.dumps({"options": settings(options), "dense": dense, "rows": list(rows)}, indent=1))


if __name__ == "__main__":
    main()
