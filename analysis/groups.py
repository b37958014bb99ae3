"""What learned groups are worth: the least error of ``grouped_svd`` within shares of a layer's params, in the Fisher metric, without and
with learned groups beside the given ones, and accuracies of networks of groups alone within shares of the MACs, refitted. Prints two
markdown tables, means over calibration seeds and their spread.

    python analysis/groups.py --data SHARED/data/cifar10 --weights SHARED/models/resnet20_cifar10.safetensors"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from spread import spread

from ranksearch.allocators import Additive, Problem
from ranksearch.home import user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy
from ranksearch.space import SpaceSpec, build_space, named
from ranksearch.study import Study
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

KINDS = {"given groups": ("grouped_svd",), "with learned groups": ("grouped_svd", "grouped_svd_learned")}


class Subject:
    """A network and its layers in groups, for one calibration seed."""

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        self.given = given
        self.model = load_weights(cifar_resnet(given.depth), given.weights).eval()
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        task = cifar10(given.data, validation=given.images)
        # calibration batches are drawn from all training images: of fewer, others are drawn
        self.task = task.cut(train=task.sizes()["train"] - seed, test=given.images)

    @cached_property
    def study(self) -> Study:
        return Study("groups", model=self.model, task=self.task, space=SpaceSpec(named(*KINDS["with learned groups"]), metric="fisher"))

    def errors(self, share: float) -> list[float]:
        """Without and with learned groups, the root mean square over layers of the least relative error within a share of each layer's
        params; of layers that have such options."""
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for site in self.study.sites:
            least: dict[str, float] = {}
            for name in KINDS["with learned groups"]:
                profile = self.study.spectra.profile(site, name)
                within = np.zeros(0) if profile is None else profile.frobenius[profile.params <= share * site.cost.params]
                least[name] = float(within.min()) if len(within) else math.inf
            if math.isfinite(least["grouped_svd"]):
                for kind, names in KINDS.items():
                    found[kind].append(min(least[name] for name in names))
        return [float(np.sqrt(np.mean(np.square(values)))) for values in found.values()]

    def accuracy(self, kind: str, budget: float) -> float:
        """Of the exact optimum of the Fisher error among networks of groups, refitted, on test images."""
        spectra = self.study.spectra
        space = build_space(spectra, types=KINDS[kind])
        found = Additive().allocate(Problem(space, Energy().table(space), {"macs": budget}))
        configuration = space.configuration(found.indices)
        network = build(spectra, configuration).eval()
        reconstruct(network, spectra, configuration, self.task.calibration(self.given.batches))
        recalibrate(network, self.task.normalization(16))
        return self.task.measure(network, "test")["accuracy"]


def table(head: str, budgets: Sequence[float], cells: dict[tuple[float, str], list[float]]) -> str:
    """One line per budget: mean and spread of every kind, in %."""
    lines = [f"| {head} | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
    for budget in budgets:
        row = [spread([100 * value for value in cells[budget, kind]]) for kind in KINDS]
        lines.append(f"| {budget:g} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=user_path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--weights", type=user_path, required=True, help="safetensors of the ResNet")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.3, 0.2, 0.1], help="of a layer's params, for errors")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.5, 0.3], help="shares of the MACs, for accuracies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of calibration")
    parser.add_argument("--batches", type=int, default=4, help="that factors are fitted to")
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    given = parser.parse_args()
    torch.set_num_threads(1)
    errors: dict[tuple[float, str], list[float]] = {}
    accuracies: dict[tuple[float, str], list[float]] = {}
    for seed in given.seeds:
        subject = Subject(given, seed)
        for share in given.shares:
            for kind, error in zip(KINDS, subject.errors(share), strict=True):
                errors.setdefault((share, kind), []).append(error)
        for budget in given.budgets:
            for kind in KINDS:
                accuracies.setdefault((budget, kind), []).append(subject.accuracy(kind, budget))
    print(table("error at params", given.shares, errors), flush=True)
    if given.budgets:
        print("\n" + table("accuracy at MACs", given.budgets, accuracies))


if __name__ == "__main__":
    main()
