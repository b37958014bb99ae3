"""Does a supernet order networks as fine-tuning does? Rank correlation of supernet accuracy with the accuracy of the
extracted networks after fine-tuning, beside the proxies that need no training.

    python analysis/rank_correlation.py --data FOLDER --weights RESNET20.safetensors --run RUNS/cifar10-sandwich-6-0
        --out docs/figures/rank_correlation.md

``--run`` is the checkpoint folder of a run of `analysis/supernet.py` with the same data and weights. Configurations are drawn
around several budgets of MACs, near the fronts of the proxies and at random in equal parts; each is measured in the supernet,
extracted, and fine-tuned. Table proxies score it in the trained network that the supernet began with. Configurations that the
JSON already has are kept. Writes a table, the rows as JSON, and a scatter plot."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from supernet import prepare

from ranksearch.agreement.measures import agreement
from ranksearch.home import user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.proxies import free_proxies
from ranksearch.space import Configuration, SearchSpace
from ranksearch.supernet import RankSupernet, SupernetProxy, load_trained
from ranksearch.supernet.methods import projecting
from ranksearch.supernet.sampling import FrontGuided, UniformCost
from ranksearch.tasks import Classification
from ranksearch.tasks.images import CropAndFlip, cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

NEAR = 0.03  # of a budget: how far the MACs of its configurations may be
RECALIBRATION = 8  # batches


def drawn(space: SearchSpace, supernet: RankSupernet, budgets: Sequence[float], each: int, seed: int) -> list[Configuration]:
    """``each`` different configurations within ``NEAR`` of every budget: near the fronts and spread over the space in turn."""
    generator = np.random.default_rng(seed)
    types = projecting(supernet)
    found: dict[str, Configuration] = {}
    for budget in budgets:
        low, high = budget * (1 - NEAR), budget * (1 + NEAR)
        near = (
            FrontGuided(space, low=low, high=high, points=4, jitter=0.1, types=types),
            UniformCost(space, low=low, high=high, types=types),
        )
        count = 0
        while count < each:
            configuration = near[count % 2].draw(generator)
            share = space.cost(space.indices(configuration)).macs / space.baseline.macs
            if low <= share <= high and configuration.id not in found:
                found[configuration.id] = configuration
                count += 1
    return list(found.values())


def measured(
    supernet: RankSupernet, proxy: SupernetProxy, task: Classification, configuration: Configuration, epochs: float
) -> dict[str, Any]:
    """One configuration in the supernet, extracted, and fine-tuned."""
    said = proxy.measure(configuration)
    network = supernet.extract(configuration)
    recalibrate(network, task.normalization(RECALIBRATION))
    extracted = task.measure(network)
    task.fine_tune(network, epochs=epochs, seed=0)
    recalibrate(network, task.normalization(RECALIBRATION))
    tuned = task.measure(network)
    return {
        "supernet_accuracy": said["accuracy"], "supernet_loss": said["loss"], "extracted_accuracy": extracted["accuracy"],
        "tuned_accuracy": tuned["accuracy"], "tuned_loss": tuned["loss"],
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]], scores: dict[str, np.ndarray]) -> str:
    """Proxies down, best first; lower is better in every score."""
    value = np.array([-r["tuned_accuracy"] for r in rows])
    macs = np.array([r["macs"] for r in rows])
    found = {name: agreement(score, value, macs, tolerance=2 * NEAR) for name, score in scores.items()}
    lines = ["| proxy | Kendall | Spearman | tau at like MACs | recall of the best 5 | regret | blind |", "|" + "---|" * 7]
    for name, a in sorted(found.items(), key=lambda item: -np.nan_to_num(item[1].kendall, nan=-2)):
        said = (a.kendall, a.spearman, a.kendall_matched, a.recall, 100 * a.regret)
        says = a.kendall == a.kendall  # not one score for all: then there is no order to judge
        cells = [name, *(f"{x:.2f}" if says else "-" for x in said), f"{100 * a.regret_chance:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], scores: dict[str, np.ndarray], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(3.1 * len(scores), 3.2), layout="constrained")
    for axes, (name, score) in zip(figure.subplots(1, len(scores), sharey=True), scores.items(), strict=True):
        x = -100 * score if name == "supernet accuracy" else score
        points = axes.scatter(x, [100 * r["tuned_accuracy"] for r in rows], c=[r["macs"] for r in rows], s=18, cmap="viridis")
        axes.set_xlabel(name + (", %" if name == "supernet accuracy" else ""))
        if name not in ("supernet accuracy", "supernet loss"):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("fine-tuned accuracy, %")
    figure.colorbar(points, ax=figure.axes, label="MACs, share of dense")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=user_path, required=True, help="folder of CIFAR-10 in the parquet layout")
    parser.add_argument("--weights", type=user_path, required=True, help="safetensors of the ResNet-20")
    parser.add_argument("--run", type=user_path, required=True, help="checkpoint folder of a trained supernet")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.15, 0.25, 0.35, 0.5])
    parser.add_argument("--each", type=int, default=6, help="configurations per budget")
    parser.add_argument("--epochs", type=float, default=1.0, help="of fine-tuning")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--statistics", type=int, default=16, help="batches for the second moments, as in the run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=user_path, required=True, help="markdown file; rows (.json) and plot (.png) go beside it")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    task = cifar10(a.data, validation=5000, learning_rate=a.learning_rate, augment=CropAndFlip())
    model = load_weights(cifar_resnet(20), a.weights).eval()
    spectra, space = prepare(model, task, a.statistics)
    supernet = RankSupernet(model, space, spectra=spectra)
    steps = load_trained(supernet, a.run)
    proxy = SupernetProxy(supernet, task, batches=RECALIBRATION)
    path = a.out.with_suffix(".json")
    kept = {row["id"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    rows, configurations = [], drawn(space, supernet, a.budgets, a.each, a.seed)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    for configuration in configurations:
        if configuration.id not in kept:
            share = space.cost(space.indices(configuration)).macs / space.baseline.macs
            found = {"id": configuration.id, "macs": share, "configuration": configuration.to_json()}
            kept[configuration.id] = found | measured(supernet, proxy, task, configuration, a.epochs)
            path.write_text(json.dumps(list(kept.values()), indent=1))
            print(json.dumps({k: v for k, v in kept[configuration.id].items() if k != "configuration"}), flush=True)
        rows.append(kept[configuration.id])
    indices = np.array([space.indices(configuration) for configuration in configurations])
    scores = {"supernet accuracy": np.array([-r["supernet_accuracy"] for r in rows])}
    scores["supernet loss"] = np.array([r["supernet_loss"] for r in rows])
    scores |= {p.name: p.table(space).score(indices) for p in free_proxies()}
    scores["macs"] = -np.array([r["macs"] for r in rows])  # what counting alone says
    text = f"{len(rows)} configurations, supernet trained for {steps} steps, {a.epochs:g} epochs of fine-tuning; validation accuracy.\n\n"
    a.out.write_text(text + table(rows, scores) + "\n")
    plot(rows, {k: v for k, v in scores.items() if k != "macs" and np.ptp(v) > 0}, a.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
