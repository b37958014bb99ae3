"""How near to its goal a layer without a closed form comes, and in what time: alternating least squares, one factor after the other,
against descent over all factors together. The goals are those of the layers of one reconstructed network, whose types and ranks are the
exact optimum of the Fisher error. Prints a markdown table: the error that is left, relative to that before, and processor seconds, both
as means over the layers.

    python analysis/descent.py --network resnet20 --space all --budget 0.2 --shared SHARED"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from subjects import SPACES, add_arguments, add_budget, subject
from torch import Tensor

from ranksearch.allocators import Additive, Problem
from ranksearch.decompositions.levenberg_marquardt import descend
from ranksearch.decompositions.metric import residual_energy
from ranksearch.decompositions.refinement import refine
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy
from ranksearch.study import Study

Layer = tuple[Callable[..., Tensor], Sequence[Tensor], Tensor, Any]  # compose, factors, goal, metric
SWEEPS = ((4, 8), (16, 16), (64, 16))  # over the factors, and conjugate gradients in each
STEPS = ((5, 10), (8, 10), (8, 30), (20, 30), (60, 60))  # of descent, and conjugate gradients in each


def layers(given: argparse.Namespace) -> list[Layer]:
    """What the layers of a network are to come near to when it is reconstructed."""
    model, task = subject(given)
    study = Study("descent", model=model, task=task, space=SPACES[given.space]().replace(metric="fisher"))
    found = Additive().allocate(Problem(study.space, Energy().table(study.space), {given.cost: given.budget}))
    configuration = study.space.configuration(found.indices)
    seen: list[Layer] = []

    def noted(*layer: Any, **effort: int) -> tuple[Tensor, ...]:
        seen.append(layer)
        return descend(*layer, **effort)

    with patch("ranksearch.networks.reconstruction.refit.descend", noted):
        network = build(study.spectra, configuration)
        reconstruct(network, study.spectra, configuration, task.calibration(given.batches), held_out=0)
    return seen


def measured(layer: Layer, fit: Callable[..., Sequence[Tensor]], **effort: int) -> tuple[float, float]:
    """The error that a fit leaves, relative to that before, and its seconds."""
    compose, factors, weight, moments = layer
    start = time.process_time()
    found = fit(compose, factors, weight, moments, **effort)
    seconds = time.process_time() - start
    before, after = (residual_energy(weight - compose(parts), moments) for parts in (list(factors), found))
    return after / before, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, images=5000, required=True)
    add_budget(parser, cost="macs", budget=0.2)
    parser.add_argument("--batches", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    seen = layers(given)
    print(f"{len(seen)} layers of {given.network}, {given.space}, {given.cost} {given.budget:g}\n")
    print("| fit | error left | seconds |\n|---|---|---|")
    ways = [(f"{a} sweeps of {b}", refine, {"sweeps": a, "steps": b}) for a, b in SWEEPS]
    ways += [(f"{a} steps of {b}", descend, {"steps": a, "inner": b}) for a, b in STEPS]
    for name, fit, effort in ways:
        error, seconds = np.mean([measured(layer, fit, **effort) for layer in seen], axis=0)
        print(f"| {name} | {error:.3f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
