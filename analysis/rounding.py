"""What balancing factors and cutting rows take off the error that rounding adds: of types that have layers of their own, on three layers
of a ResNet at two ranks each, in the metric that factors are made for. Prints a markdown table of the root of the difference of squared
relative errors, after and before rounding, means over layers and ranks.

    python analysis/rounding.py --weights SHARED/models/resnet20_cifar10.safetensors --data SHARED/data/cifar10 --metric fisher

Every type has at each layer the ranks whose parameters are nearest to a half and a quarter of the dense layer's."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import get_args
from unittest.mock import patch

import numpy as np
import torch

from ranksearch.decompositions import BITS, AnyDecomposition
from ranksearch.decompositions import rounding as rounds
from ranksearch.decompositions.folding import split_groups
from ranksearch.decompositions.metric import conditioned, residual_energy
from ranksearch.home import user_path
from ranksearch.sites import Site, canonical_weight, find_sites
from ranksearch.space.specs import named
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import metric as metrics
from ranksearch.statistics.metric import MetricName
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

LAYERS = ("layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1")
TYPES = ("dense", "svd", "svd_in", "spatial", "tucker2", "cp")
SHARES = (0.5, 0.25)  # of the dense layer's parameters
WAYS = {"as they come": (False, False), "balanced": (True, False), "cut": (False, True), "both": (True, True)}


def ranks(decomposition: AnyDecomposition, site: Site) -> list[tuple[int, ...]]:
    """The ranks whose parameters are nearest to each of ``SHARES``; the dense layer has one."""
    if decomposition.name == "dense":
        return [()]
    every = decomposition.ranks(site)
    params, _ = decomposition.costs(site, every)
    dense = site.cost.params
    return [tuple(every[int(np.argmin(np.abs(params - share * dense)))].tolist()) for share in SHARES]


def added(spectra: Spectra, site: Site, name: str, bits: int) -> Iterator[list[float]]:
    """Per rank what rounding adds, one number for each of ``WAYS``."""
    decomposition = spectra.decomposition(name)
    weight = canonical_weight(spectra.model.get_submodule(site.name), site).double()
    metric = conditioned(spectra.moments.get(site.name), weight)
    for rank in ranks(decomposition, site):
        made = (weight,) if name == "dense" else tuple(f.double() for f in spectra.factors(site, name, rank))
        held = rounds.layout(decomposition, site, made)

        def squared(factors: Sequence[torch.Tensor], decomposition: AnyDecomposition = decomposition) -> float:
            lost = decomposition.compose(site, tuple(factors)).reshape(weight.shape) - weight
            energy = (residual_energy(split_groups(site, matrix), metric) for matrix in (lost, weight))
            return next(energy) / next(energy)

        before, row = squared(made), []
        for balance, cut in WAYS.values():
            with patch.dict(rounds.SHARES, {} if cut else {bits: (1.0,)}):
                after = squared(rounds.round_factors(held, rounds.balanced(held, made) if balance else made, bits))
            row.append(max(after - before, 0.0) ** 0.5)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=user_path, required=True, help="safetensors of the ResNet")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--metric", default="weight", choices=get_args(MetricName))
    parser.add_argument("--data", type=user_path, help="folder with train.parquet and test.parquet, for the other metrics")
    parser.add_argument("--calibration", type=int, default=4, help="batches that they are collected on")
    parser.add_argument("--bits", type=int, nargs="+", default=[*BITS], choices=BITS)
    parser.add_argument("--types", nargs="+", default=TYPES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_weights(cifar_resnet(given.depth), given.weights).eval()
    sites = find_sites(model, torch.zeros(1, 3, 32, 32), include=LAYERS)
    moments = None
    if given.metric != "weight":
        if given.data is None:
            parser.error(f"--metric {given.metric} needs --data")
        found = metrics.statistics(model, sites, cifar10(given.data), calibration=given.calibration, gradients=given.metric == "fisher")
        moments = metrics.moments(found, given.metric)
    spectra = Spectra(model, sites, named(*given.types), moments=moments)
    for bits in given.bits:
        print(f"\n| type, int{bits} | " + " | ".join(WAYS) + " |\n" + "|---" * (len(WAYS) + 1) + "|", flush=True)
        for name in given.types:
            rows = [row for site in sites for row in added(spectra, site, name, bits)]
            print(f"| `{name}` | " + " | ".join(f"{value:.4f}" for value in np.mean(rows, axis=0)) + " |", flush=True)


if __name__ == "__main__":
    main()
