"""Networks whose layers have decaying spectra, for the rules of several test files."""

from __future__ import annotations

import torch
from torch import nn

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.sites import Cost, Site, find_sites
from ranksearch.space import Ladder, Option, build_space
from ranksearch.space.spectra import Spectra

TYPES = {d.name: d for d in DECOMPOSITIONS}


def make(names, seed=0, widths=(8, 12, 16)):
    """Spectra and space of a small network whose layers have decaying spectra of different steepness."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    c = 4
    for number, width in enumerate(widths):
        layer = nn.Conv2d(c, width, 3, padding=1, stride=2 if number else 1)
        with torch.no_grad():
            u, s, v = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
            s = s[0] * torch.exp(-torch.arange(len(s)) * (0.1 + 0.3 * number)) * (number + 1)
            layer.weight.copy_(((u * s) @ v).reshape(layer.weight.shape))
        layers += [layer, nn.ReLU()]
        c = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))
    sites = find_sites(model, torch.randn(1, 4, 12, 12))
    spectra = Spectra(model, sites, [TYPES[n] for n in names])
    return spectra, build_space(spectra)


SVD = make(("svd",))
ALL = make(("svd", "svd_in", "spatial", "tucker2"))


def ladder_of(choices, *, outputs=30):
    """A ladder of (type, rank, params, frobenius, operator, energy), the dense layer of 100 parameters behind them."""
    options = [Option(kind, rank, Cost(params=p, macs=p), *errors) for kind, rank, p, *errors in choices]
    dense = Option("dense", (), Cost(params=100, macs=100), 0.0, 0.0, 0.0)
    return Ladder.of(Site(f"layer{outputs}", "linear", 50, outputs), [*options, dense])
