"""Reconstruction on inputs whose moments are singular or badly scaled."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import SVD
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

CONFIGURATION = Configuration({"0": ("svd", (3,))})


def networks() -> tuple[nn.Module, Spectra, nn.Module]:
    dense = nn.Sequential(nn.Linear(8, 6, bias=False)).double()
    spectra = Spectra(dense, find_sites(dense, torch.zeros(1, 8, dtype=torch.float64)), [SVD()])
    return dense, spectra, build(spectra, CONFIGURATION)


def least(x: Tensor, y: Tensor) -> float:
    """The least squared error of a layer of rank 3, by NumPy: of the regression's values, all but three directions."""
    values = x.numpy() @ np.linalg.lstsq(x.numpy(), y.numpy(), rcond=1e-9)[0]
    return float((y.numpy() ** 2).sum() - (np.linalg.svd(values, compute_uv=False)[:3] ** 2).sum())


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_few_inputs_of_any_scale_are_fitted_as_well_as_can_be(count: int, scale: float) -> None:
    dense, spectra, network = networks()
    x = scale * torch.randn(count, 8, dtype=torch.float64)
    with torch.no_grad():
        y = dense(x)
        (report,) = reconstruct(network, spectra, CONFIGURATION, [x], ridge=1e-6, held_out=0)
        left = float((network(x) - y).square().sum())
    assert all(torch.isfinite(p).all() for p in network.parameters())
    assert 0 <= report.after <= report.before * (1 + 1e-6) + 1e-9
    assert left <= least(x, y) + 1e-3 * float(y.square().sum())


def test_copies_of_an_input_do_no_harm() -> None:
    dense, spectra, network = networks()
    x = torch.randn(60, 8, dtype=torch.float64)
    x[:, 4:] = x[:, :4]
    with torch.no_grad():
        y = dense(x)
        reconstruct(network, spectra, CONFIGURATION, [x], ridge=1e-6, held_out=0)
        assert float((network(x) - y).square().sum()) <= least(x, y) + 1e-3 * float(y.square().sum())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_not_finite_teach_nothing(value: float) -> None:
    _, spectra, network = networks()
    kept = copy.deepcopy(network.state_dict())
    x = torch.randn(4, 8, dtype=torch.float64)
    x[0, 0] = value
    reconstruct(network, spectra, CONFIGURATION, [x])
    reconstruct(network, spectra, CONFIGURATION, [x], held_out=0)
    assert all(torch.equal(kept[name], now) for name, now in network.state_dict().items())
