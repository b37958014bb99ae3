"""How near to its goal a layer without a closed form comes, and in what time: alternating least squares, one factor after the other,
against descent over all factors together: with the factors' curvature for a preconditioner, or a number for each, and its steps made in
float32 or in float64. The goals are those of the layers of one reconstructed network, whose types and ranks are the exact optimum of the
Fisher error. Prints a markdown table: the error that is left, relative to that before, and processor seconds, both as means over the
layers.

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
from ranksearch.decompositions import Moments
from ranksearch.decompositions.refinement import refine
from ranksearch.networks.descent import Weighing, descend
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy
from ranksearch.study import Study

Layer = tuple[Callable[..., Tensor], Sequence[Tensor], Tensor, Weighing]  # compose, factors, goal, metric
Axes = Sequence[str] | None
SWEEPS = ((4, 8), (16, 16), (64, 16))  # over the factors, and conjugate gradients in each
STEPS = ((5, 6), (5, 10), (12, 10), (8, 30), (20, 30), (60, 60))  # of descent, and conjugate gradients in each


def layers(given: argparse.Namespace) -> list[tuple[Layer, Axes]]:
    """What the layers of a network are to come near to when it is reconstructed."""
    model, task = subject(given)
    study = Study("descent", model=model, task=task, space=SPACES[given.space]().replace(metric="fisher"))
    found = Additive().allocate(Problem(study.space, Energy().table(study.space), {given.cost: given.budget}))
    configuration = study.space.configuration(found.indices)
    seen: list[tuple[Layer, Axes]] = []

    def noted(*layer: Any, axes: Axes, **effort: Any) -> tuple[Tensor, ...]:
        seen.append((layer, axes))
        return descend(*layer, axes=axes, **effort)

    with patch("ranksearch.networks.reconstruction.refit.descend", noted):
        network = build(study.spectra, configuration)
        reconstruct(network, study.spectra, configuration, task.calibration(given.batches), held_out=0)
    return seen


def measured(layer: Layer, axes: Axes, fit: Callable[..., Sequence[Tensor]], **effort: int) -> tuple[float, float]:
    """The error that a fit leaves, relative to that before, and its seconds."""
    compose, factors, weight, weighing = layer
    start = time.process_time()
    found = fit(compose, factors, weight, weighing, axes=axes, **effort)
    seconds = time.process_time() - start
    residuals = [weight - compose(parts) for parts in (list(factors), found)]
    before, after = (float((residual * weighing(residual)).sum()) for residual in residuals)
    return after / before, seconds


def alternating(
    compose: Callable[..., Tensor], factors: Sequence[Tensor], weight: Tensor, weighing: Weighing, axes: Axes, **effort: int
) -> Any:  # fmt: skip
    """`refine`, which takes moments as they are."""
    del axes
    moments, few = weighing.moments, weighing.spanned
    if few is not None:
        assert few.pull is not None, "ridges are added"
        moments = Moments(few.x @ few.x.mT + torch.diag_embed(few.pull), moments.output)
    return refine(compose, factors, weight, moments, **effort)


def in_float64(*layer: Any, **options: Any) -> tuple[Tensor, ...]:
    """`descend`, its steps made in float64."""
    with patch.object(Weighing, "rough", lambda self: self):
        return descend(*layer, **options)


def by_numbers(*layer: Any, axes: Axes, **effort: int) -> tuple[Tensor, ...]:
    """`descend`, knowing nothing of the factors' axes."""
    del axes
    return descend(*layer, **effort)


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
    ways = [(f"{a} sweeps of {b}", alternating, {"sweeps": a, "steps": b}) for a, b in SWEEPS]
    ways += [(f"{a} steps of {b}", descend, {"steps": a, "inner": b}) for a, b in STEPS]
    ways += [(f"{a} steps of {b}, by numbers", by_numbers, {"steps": a, "inner": b}) for a, b in STEPS]
    ways += [(f"{a} steps of {b}, in float64", in_float64, {"steps": a, "inner": b}) for a, b in STEPS]
    for name, fit, effort in ways:
        error, seconds = np.mean([measured(*layer, fit, **effort) for layer in seen], axis=0)
        print(f"| {name} | {error:.3f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
