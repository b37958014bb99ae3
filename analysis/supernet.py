"""One training run per method, then every size of the network without retraining: accuracy over MACs.

    python analysis/supernet.py --dataset cifar10 --data FOLDER --weights RESNET20.safetensors --epochs 4 --folder RUNS
        --out docs/figures/supernet_cifar10.md [--test]
    python analysis/supernet.py --dataset digits --epochs 6 --seeds 0 1 2 --folder RUNS --out docs/figures/supernet_digits.md

Every method starts from the same trained network and sees the same batches at the same learning rates; ``control`` is plain
fine-tuning. Afterwards all are treated alike: second moments of the trained network, the space of all types in the Fisher
metric, the exact additive optimum at each budget, batch norm re-estimated on training data, measured; at ``--reconstructed``
budgets also after the fit to calibration batches that `ranksearch.compress` ends with, and after ``--recover`` epochs. ``--alone`` sets
networks beside them that were trained for one budget only, in as many epochs. A second table takes SVD alone and the rule of
Decomposable-Net, as that paper does. Runs and cells that exist are kept; a stopped run goes on from its last checkpoint.
Writes both tables, their rows as JSON, and a plot."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.allocators.decomposable_net import DecomposableNet
from ranksearch.decompositions import DECOMPOSITIONS, Moments
from ranksearch.home import home, user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.recovery import recover
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy, Frobenius
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import SampledLabels, collect
from ranksearch.supernet import RankSupernet, train
from ranksearch.supernet.methods import METHODS, Joint, Method, Sandwich, projecting
from ranksearch.supernet.sampling import FrontGuided, Sampling, SmallRank, UniformCost
from ranksearch.tasks import Classification
from ranksearch.tasks.images import CropAndFlip, cifar10, digits
from ranksearch.tasks.networks import cifar_resnet, digits_net, load_weights
from ranksearch.tasks.training import trained

TYPES = ("svd", "svd_in", "spatial", "spatial_t", "tucker2", "cp")
TEMPERATURE = 3.0
HIGH = 0.6  # share of the MACs up to which configurations are drawn
Make = Callable[[RankSupernet, Classification, int, int], Method]


def _front(net: RankSupernet) -> Sampling:
    """Near the exact fronts of the value that budgets are met with afterwards, up to where networks are as good as dense."""
    return FrontGuided(net.space, high=HIGH, proxies=[Energy()], types=projecting(net))


def _joint(sampling: Callable[[RankSupernet], Sampling]) -> Make:
    """Low-rank gradients at their own size: those of a trained network's dense pass are near zero, and so would the
    rescaled ones be."""
    return lambda net, task, seed, _: Joint(net, task.loss, seed=seed, rescale=False, sampling=sampling(net))


def _target(net: RankSupernet, share: float) -> Configuration:
    """The exact optimum at a share of the MACs, which `distortion` distorts to."""
    found = Additive().allocate(Problem(net.space, Energy().table(net.space), {"macs": share}))
    return net.space.configuration(found.indices)


RUNS: dict[str, Make] = {
    "control": lambda net, task, seed, _: METHODS["plain"](net, task.loss, seed=seed),
    "joint": lambda net, task, seed, _: METHODS["joint"](net, task.loss, seed=seed),
    "joint_ratio": lambda net, task, seed, _: Joint(net, task.loss, seed=seed, rescale=False),
    "joint_front": _joint(_front),
    "joint_uniform_cost": _joint(lambda net: UniformCost(net.space, high=HIGH, types=projecting(net))),
    "joint_small_rank": _joint(lambda net: SmallRank(net.space, types=projecting(net))),
    "sandwich": lambda net, task, seed, _: Sandwich(net, task.loss, seed=seed, random=1, weight=0.5, sampling=_front(net)),
    "sandwich_soft": lambda net, task, seed, _: Sandwich(
        net, task.loss, seed=seed, random=1, weight=0.5, temperature=3.0, sampling=_front(net)
    ),
    "trp": lambda net, task, seed, _: METHODS["trp"](net, task.loss, seed=seed),
    "distortion": lambda net, task, seed, steps: METHODS["distortion"](
        net, task.loss, seed=seed, target=_target(net, 0.4), period=max(5, min(200, steps // 10))
    ),
    "regularized": lambda net, task, seed, _: METHODS["regularized"](net, task.loss, seed=seed),
}


@dataclass(frozen=True)
class Subject:
    """The network that all runs begin with, and the task."""

    model: nn.Module
    task: Classification
    spectra: Spectra
    space: SearchSpace


def subject(arguments: argparse.Namespace, seed: int) -> Subject:
    if arguments.dataset == "digits":
        schooling = digits(learning_rate=0.1, schedule="one_cycle")
        model = trained(digits_net, schooling, epochs=12, seed=seed, cache=home() / "cache")
        task = digits(learning_rate=arguments.learning_rate)
        return Subject(model.to(arguments.device), task, *prepare(model, task, arguments))
    task = cifar10(
        arguments.data, validation=5000, learning_rate=arguments.learning_rate, augment=CropAndFlip() if arguments.augment else None
    )
    model = load_weights(cifar_resnet(20), arguments.weights).eval().to(arguments.device)
    return Subject(model, task, *prepare(model, task, arguments))


def prepare(model: nn.Module, task: Classification, arguments: argparse.Namespace) -> tuple[Spectra, SearchSpace]:
    """Spectra and space of the mixture in the Fisher metric of a network as it is now."""
    sites = find_sites(model, task.example())
    statistics = collect(model, sites, task.calibration(arguments.statistics), labels=SampledLabels(samples=2, temperature=TEMPERATURE))
    moments: dict[str, Moments] = statistics.moments("fisher")
    types = [d for d in DECOMPOSITIONS if d.name in TYPES]
    spectra = Spectra(model, sites, types, moments=moments, device=arguments.prepare)
    return spectra, build_space(spectra)


def trained_network(name: str, start: Subject, seed: int, arguments: argparse.Namespace) -> nn.Module:
    """The dense network after one run of a method; from its file, if that is there."""
    path = arguments.folder / f"{arguments.dataset}-{name}-{arguments.epochs:g}-{seed}.safetensors"
    model = start.model
    if not path.exists():
        supernet = RankSupernet(model, start.space, spectra=start.spectra)
        if arguments.channels_last:
            supernet.to(memory_format=torch.channels_last)
        steps = round(arguments.epochs * (start.task.sizes()["train"] // start.task.batch_size))
        method = RUNS[name](supernet, start.task, seed, steps)
        folder = arguments.folder / f"{arguments.dataset}-{name}-{arguments.epochs:g}-{seed}"
        train(supernet, start.task, method, epochs=arguments.epochs, seed=seed, folder=folder, every=100)
        network = supernet.extract(Configuration()).to(memory_format=torch.contiguous_format)
        save_file({key: tensor.contiguous().cpu() for key, tensor in network.state_dict().items()}, path)
    fresh = cifar_resnet(20) if arguments.dataset == "cifar10" else digits_net()
    fresh.load_state_dict(load_file(path))
    return fresh.eval().to(arguments.device)


def cells(network: nn.Module, task: Classification, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per budget, selection and split, the dense network first."""
    splits = arguments.splits

    def measured(model: nn.Module) -> dict[Any, float]:
        recalibrate(model, task.normalization(arguments.recalibration))
        return {split: task.measure(model, split)["accuracy"] for split in splits}

    spectra, space = prepare(network, task, arguments)
    plain = Spectra(network, spectra.sites, [d for d in DECOMPOSITIONS if d.name == "svd"])
    svd_space = build_space(plain)
    dense = {split: task.measure(network, split)["accuracy"] for split in splits}
    rows = [{"budget": 1.0, "selection": "dense", "macs": 1.0, "split": split, "accuracy": dense[split]} for split in splits]
    for budget in arguments.budgets:
        for selection, (s, sp) in {"exact": (spectra, space), "svd": (plain, svd_space)}.items():
            if sp.smallest("macs") > budget * sp.baseline.macs:
                continue
            if selection == "exact":
                indices = Additive().allocate(Problem(sp, Energy().table(sp), {"macs": budget})).indices
            else:
                indices = DecomposableNet(decompositions=None).allocate(Problem(sp, Frobenius().table(sp), {"macs": budget})).indices
            common = {"budget": budget, "selection": selection, "macs": sp.cost(indices).macs / sp.baseline.macs}
            found = measured(build(s, sp.configuration(indices)))
            rows += [common | {"split": split, "accuracy": accuracy} for split, accuracy in found.items()]
            if selection == "exact" and budget in arguments.reconstructed:
                for kind, accuracies in refined(s, sp.configuration(indices), task, arguments):
                    rows += [common | {"selection": kind, "split": split, "accuracy": accuracy} for split, accuracy in accuracies.items()]
    return rows


def refined(
    spectra: Spectra, configuration: Configuration, task: Classification, arguments: argparse.Namespace
) -> Iterator[tuple[str, dict[Any, float]]]:
    """Accuracies of a network that is reconstructed as `ranksearch.compress` does last, with statistics of the plain images of that, and
    of the same after some epochs of `recover`."""
    network = build(spectra, configuration)
    reconstruct(network, spectra, configuration, task.calibration(arguments.statistics), thorough=True)
    recalibrate(network, task.calibration(arguments.recalibration))
    yield "reconstructed", {split: task.measure(network, split)["accuracy"] for split in arguments.splits}
    if arguments.recover:
        faster = copy.copy(task)
        faster.learning_rate = arguments.recovery_rate
        recover(network, spectra, configuration, faster, epochs=arguments.recover, recalibration=arguments.recalibration)
        yield "recovered", {split: task.measure(network, split)["accuracy"] for split in arguments.splits}


def alone(start: Subject, budget: float, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What retraining for one budget gives in as many epochs: the network of the exact optimum, fine-tuned by itself."""
    indices = Additive().allocate(Problem(start.space, Energy().table(start.space), {"macs": budget})).indices
    network = build(start.spectra, start.space.configuration(indices))
    start.task.fine_tune(network, epochs=arguments.epochs, seed=seed)
    recalibrate(network, start.task.normalization(arguments.recalibration))
    common = {"budget": budget, "selection": "exact", "macs": start.space.cost(indices).macs / start.space.baseline.macs}
    return [common | {"split": split, "accuracy": start.task.measure(network, split)["accuracy"]} for split in arguments.splits]


def table(rows: Sequence[dict[str, Any]], selection: str, budgets: Sequence[float]) -> str:
    """Methods down, budgets across; mean and, over several seeds, standard deviation."""
    lines = ["| method | dense | " + " | ".join(f"{b:g}" for b in budgets) + " |", "|" + "---|" * (len(budgets) + 2)]
    for method in dict.fromkeys(row["method"] for row in rows if row["selection"] == selection):
        texts = []
        for budget, kind in ((1.0, "dense"), *((b, selection) for b in budgets)):
            found = [100 * r["accuracy"] for r in rows if (r["method"], r["budget"], r["selection"]) == (method, budget, kind)]
            spread = f" ± {np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
            texts.append(f"{np.mean(found):.1f}{spread}" if found else "-")
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over MACs, one line per method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = [r for r in rows if r["method"] == method and r["selection"] in ("exact", "dense")]
        budgets = sorted({r["budget"] for r in mine})
        means = [100 * np.mean([r["accuracy"] for r in mine if r["budget"] == b]) for b in budgets]
        style = {"linestyle": "none", "marker": "x"} if method == "alone" else {"marker": "o", "markersize": 4}
        axes.plot(budgets, means, color=f"C{number}", linewidth=2 if method == "control" else 1.3, label=method, **style)
    axes.set_xlabel("MACs, share of dense")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("cifar10", "digits"), default="cifar10")
    parser.add_argument("--data", type=user_path, help="folder of CIFAR-10 in the parquet layout")
    parser.add_argument("--weights", type=user_path, help="safetensors of the ResNet-20")
    default = ["control", "joint", "sandwich", "trp", "distortion", "regularized"]
    parser.add_argument("--methods", nargs="+", default=default, choices=list(RUNS))
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.1, 0.2, 0.27, 0.3, 0.4, 0.5, 0.6, 0.8])
    parser.add_argument("--alone", type=float, nargs="*", default=[], help="budgets that a network is also trained for by itself")
    parser.add_argument("--reconstructed", type=float, nargs="*", default=[], help="budgets whose networks are reconstructed, too")
    parser.add_argument("--recover", type=float, default=0.0, help="epochs that these are trained for afterwards")
    parser.add_argument("--recovery-rate", type=float, default=0.1, help="peak of the learning rate of that")
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--device", default="cpu", help="where networks train and run")
    parser.add_argument("--prepare", help="where layers are factorized: small ones fastest on a CPU (default: where networks run)")
    parser.add_argument("--augment", action="store_true", help="random crops and mirroring (CIFAR-10)")
    parser.add_argument("--channels-last", action="store_true", help="memory layout in training: faster on some CPUs")
    parser.add_argument("--statistics", type=int, default=16, help="batches for the second moments")
    parser.add_argument("--recalibration", type=int, default=16, help="batches for batch norm")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test", action="store_true", help="measure on the test split too: for final numbers only")
    parser.add_argument("--folder", type=user_path, required=True, help="where trained networks and checkpoints go")
    parser.add_argument("--out", type=user_path, required=True, help="markdown file; rows (.json) and plot (.png) go beside it")
    arguments = parser.parse_args()
    if arguments.dataset == "cifar10" and not (arguments.data and arguments.weights):
        parser.error("--data and --weights are needed for cifar10")
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.out.with_suffix(".json")
    arguments.splits = ("validation", "test") if arguments.test else ("validation",)
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    done = {(row["method"], row["seed"], row["split"], row["epochs"]) for row in rows}
    for seed in arguments.seeds:
        start = subject(arguments, seed)
        for name in arguments.methods:
            if all((name, seed, split, arguments.epochs) in done for split in arguments.splits):
                continue
            network = trained_network(name, start, seed, arguments)
            keys = {"method": name, "seed": seed, "epochs": arguments.epochs}
            rows = [row for row in rows if (row["method"], row["seed"], row["epochs"]) != (name, seed, arguments.epochs)]
            rows += [keys | row for row in cells(network, start.task, arguments)]
            print(json.dumps(rows[-1]), flush=True)
            write(rows, arguments)
        for budget in arguments.alone:
            keys = {"method": "alone", "seed": seed, "epochs": arguments.epochs}
            if not any(all(row[k] == v for k, v in {**keys, "budget": budget}.items()) for row in rows):
                rows += [keys | row for row in alone(start, budget, seed, arguments)]
                print(json.dumps(rows[-1]), flush=True)
                write(rows, arguments)
    write(rows, arguments)


def write(rows: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The tables of the last split, its plot, and the rows of all."""
    out = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(list(rows), indent=1))
    split = arguments.splits[-1]
    mine = [row for row in rows if (row["split"], row["epochs"]) == (split, arguments.epochs)]
    parts = [f"Accuracy on {split}, {arguments.epochs:g} epochs; budgets of MACs across.\n"]
    parts += ["All types, Fisher metric, exact allocation:\n", table(mine, "exact", arguments.budgets), ""]
    for kind in ("reconstructed", "recovered"):
        if any(row["selection"] == kind for row in mine):
            parts += [f"All types, {kind}:\n", table(mine, kind, arguments.reconstructed), ""]
    parts += ["SVD alone, the rule of Decomposable-Net:\n", table(mine, "svd", arguments.budgets), ""]
    out.write_text("\n".join(parts))
    plot(mine, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
