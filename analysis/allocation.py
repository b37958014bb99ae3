"""Allocation without fine-tuning: uniform, best single type, additive and minimax over all types, at the same budget of
params. Accuracy on the validation images, plain and with batch norm re-estimated, as a markdown table.

    python analysis/allocation.py --data CIFAR10_FOLDER --weights RESNET20.safetensors [--metric fisher] [--out TABLE.md]

Errors are taken, and factors fitted, in one metric for all rows: of the weights alone, or of second moments from
training images. The value that additive and uniform allocation use is chosen among three by the validation loss of
additive allocation over all types with batch norm re-estimated; every candidate is in the table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ranksearch.allocators import Additive, Allocator, Minimax, Problem, Uniform
from ranksearch.decompositions import DECOMPOSITIONS, Moments
from ranksearch.home import user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Ladder, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table
from ranksearch.statistics import metric as space_metric
from ranksearch.tasks.classification import Classification
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

VALUES: dict[str, Callable[[Ladder], np.ndarray]] = {
    "squared relative": lambda ladder: np.square(ladder.column("frobenius")),
    "squared absolute": lambda ladder: ladder.column("energy"),
    "log of kept energy": lambda ladder: -np.log1p(-np.minimum(np.square(ladder.column("frobenius")), 1 - 1e-12)),
}


@dataclass(frozen=True)
class Row:
    """One measured allocation."""

    rule: str
    types: str
    value: str
    params: float  # share of dense
    macs: float
    plain: float  # validation accuracy
    recalibrated: float
    loss: float  # of validation, re-estimated


def measure(
    rule: str, types: str, value: str, *, spectra: Spectra, space: SearchSpace, indices: np.ndarray, task: Classification, batches: int
) -> Row:
    """Build the network of an allocation and measure it, first as it is, then with batch norm re-estimated."""
    model = build(spectra, space.configuration(indices)).eval()
    cost = space.cost(indices)
    plain = task.measure(model)["accuracy"]
    recalibrate(model, task.calibration(batches))
    after = task.measure(model)
    params, macs = cost.params / space.baseline.params, cost.macs / space.baseline.macs
    row = Row(rule, types, value, params, macs, plain, after["accuracy"], after["loss"])
    print(row, file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=user_path, required=True)
    parser.add_argument("--weights", type=user_path, required=True)
    parser.add_argument("--budget", type=float, default=0.5, help="of params, as a share of the dense network's")
    parser.add_argument("--types", default="svd,svd_in,spatial,spatial_t,tucker2,cp", help="decompositions, separated by commas")
    parser.add_argument("--metric", choices=("weight", "activation", "fisher"), default="fisher")
    parser.add_argument("--statistics", type=int, default=16, help="batches of training images for the metric")
    parser.add_argument("--batches", type=int, default=16, help="of training images, for batch-norm re-estimation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=user_path, help="write the table here too")
    given = parser.parse_args()
    torch.manual_seed(given.seed)

    task = cifar10(given.data)
    model = load_weights(cifar_resnet(20), given.weights).eval()
    sites = find_sites(model, task.example())
    names = given.types.split(",")
    known = {d.name: d for d in DECOMPOSITIONS}
    if unknown := set(names) - set(known):
        parser.error(f"--types: {', '.join(sorted(unknown))}: not among {', '.join(known)}")
    moments: dict[str, Moments] = {}
    if given.metric != "weight":
        fisher = given.metric == "fisher"
        statistics = space_metric.statistics(model, sites, task, calibration=given.statistics, gradients=fisher)
        moments = space_metric.moments(statistics, given.metric)
    spectra = Spectra(model, sites, [known[name] for name in names], moments=moments)
    spaces = {"all": build_space(spectra)}
    spaces |= {name: build_space(spectra, types=[name]) for name in names}

    rows: list[Row] = []

    def measured(rule: str, types: str, value: str, indices: np.ndarray) -> Row:
        space = spaces[types]
        return measure(rule, types, value, spectra=spectra, space=space, indices=indices, task=task, batches=given.batches)

    def add(rule: Allocator, types: str, value: str) -> Row:
        space = spaces[types]
        columns = tuple(VALUES[value](ladder) for ladder in space.ladders)
        allocation = rule.allocate(Problem(space, Table(columns, "max" if rule.name == "minimax" else "sum"), {"params": given.budget}))
        rows.append(measured(rule.name, types, value, allocation.indices))
        return rows[-1]

    rows.append(measured("dense", "all", "", spaces["all"].dense))
    chosen = min((add(Additive(), "all", value) for value in VALUES), key=lambda row: row.loss).value
    single = min((add(Additive(), name, chosen) for name in names), key=lambda row: row.loss)
    best = next(row for row in rows if (row.rule, row.types, row.value) == ("additive", "all", chosen))
    uniform = [add(Uniform(), types, chosen) for types in ("svd", "all")]
    add(Minimax(), "all", "squared relative")  # a maximum compares layers, so it needs a relative error (as ALDS has)

    lines = [
        f"ResNet-20, CIFAR-10, at most {given.budget:g} of params, no fine-tuning, {given.metric} metric; "
        f"{task.sizes()['validation']:,} validation images. Value chosen: {chosen}.", "",
        "| rule | types | value | params | MACs | accuracy, plain | accuracy, re-estimated | loss, re-estimated |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in rows:
        lines.append(
            f"| {row.rule} | {row.types} | {row.value} | {row.params:.3f} | {row.macs:.3f} "
            f"| {100 * row.plain:.2f} | {100 * row.recalibrated:.2f} | {row.loss:.3f} |"
        )
    for label, column in (("plain", "plain"), ("re-estimated", "recalibrated")):
        ours, one, flat = getattr(best, column), getattr(single, column), max(getattr(row, column) for row in uniform)
        compared = f"all types {100 * ours:.2f}, best single type ({single.types}) {100 * one:.2f}, uniform {100 * flat:.2f}"
        lines += ["", f"Accuracy, {label}: {compared}."]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text)


if __name__ == "__main__":
    main()
