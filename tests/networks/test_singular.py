"""Reconstruction on inputs whose moments are singular or badly scaled, against least squares by numpy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.decompositions import SVD
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra


def networks(rank: int = 3) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Linear(8, 6, bias=False)).double()
    sites = find_sites(dense, torch.zeros(1, 8, dtype=torch.float64))
    network = build(Spectra(dense, sites, [SVD()]), Configuration({"0": ("svd", (rank,))}))
    return dense, network


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_few_inputs_of_any_scale(count: int, scale: float, ridge: float) -> None:
    """Without a ridge what the inputs do tell is fitted as well as least squares can, and the factor stays in all other directions."""
    dense, network = networks()
    last = network[0][1]
    before = last.weight.detach().clone()
    x = scale * torch.randn(count, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted, seen = dense(x).detach().numpy(), network[0][0](x).detach().numpy()
    (report,) = reconstruct(network, dense, [x], ridge=ridge)
    assert torch.isfinite(last.weight).all() and 0 <= report.after <= report.before * (1 + 1e-6) + 1e-12
    if ridge:
        return
    found = last.weight.detach().numpy()
    least = wanted - seen @ np.linalg.lstsq(seen, wanted, rcond=None)[0]
    assert np.linalg.norm(wanted - seen @ found.T) <= np.linalg.norm(least) + 1e-3 * np.linalg.norm(wanted)
    unseen = np.eye(3) - np.linalg.pinv(seen, rcond=1e-6) @ seen
    assert np.linalg.norm((found - before.numpy()) @ unseen) <= 1e-3 * np.linalg.norm(before)


def test_a_dead_unit_keeps_its_weights() -> None:
    """The inputs of one unit of the last factor are zero on all data."""
    dense, network = networks()
    with torch.no_grad():
        network[0][0].weight[1] = 0
    before = network[0][1].weight.detach().clone()
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (report,) = reconstruct(network, dense, [x], ridge=0.0)
    after = network[0][1].weight.detach()
    assert report.after < report.before
    torch.testing.assert_close(after[:, 1], before[:, 1], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_not_finite_teach_nothing(value: float) -> None:
    dense, network = networks()
    kept = copy.deepcopy(network.state_dict())
    x = torch.randn(4, 8, dtype=torch.float64)
    x[0, 0] = value
    reconstruct(network, dense, [x])
    assert all(torch.equal(kept[name], now) for name, now in network.state_dict().items())
