"""Rates of factors: together they change a layer's weight by at most the dense layer's step, however its scale is divided among them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ranksearch.decompositions import KNOWN
from ranksearch.errors import InvalidArgument
from ranksearch.networks.recovery import factor_rates
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

LOW = Configuration({"0": ("svd", (2,)), "3": ("spatial", (3,))})


def _pair() -> tuple[Spectra, nn.Module]:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 4)).double()
    spectra = Spectra(dense.eval(), find_sites(dense, torch.randn(1, 3, 6, 6).double()))
    return spectra, build(spectra, LOW).eval()


def _factors(network: nn.Module, path: str) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if name.startswith(f"{path}.") and p.ndim > 1}


def test_rates_of_a_product_are_spectral_norms_of_the_other_factor() -> None:
    spectra, short = _pair()
    rates = factor_rates(short, spectra, LOW)
    assert set(rates) == {*_factors(short, "0"), *_factors(short, "3")}  # biases, norms and dense layers have rate 1
    (first, a), (second, b) = _factors(short, "0").items()
    for name, other in ((first, b), (second, a)):
        assert rates[name] == pytest.approx(1 / (2 * float(torch.linalg.matrix_norm(other.detach()[:, :, 0, 0], 2)) ** 2), rel=0.05)


def test_how_scale_is_divided_makes_no_difference() -> None:
    spectra, short = _pair()
    other = copy.deepcopy(short)
    (first, a), (second, b) = _factors(other, "0").items()
    with torch.no_grad():
        a.mul_(8)
        b.div_(8)
    plain, scaled = factor_rates(short, spectra, LOW), factor_rates(other, spectra, LOW)
    assert scaled[first] == pytest.approx(64 * plain[first], rel=1e-9)
    assert scaled[second] == pytest.approx(plain[second] / 64, rel=1e-9)


def test_what_does_not_learn_has_no_rate() -> None:
    spectra, short = _pair()
    first, second = _factors(short, "0")
    short.get_parameter(second).requires_grad_(False)
    assert first in factor_rates(short, spectra, LOW) and second not in factor_rates(short, spectra, LOW)
    with torch.no_grad():  # the first factor's steps change nothing where the other is 0
        short.get_parameter(second).zero_()
    assert first not in factor_rates(short, spectra, LOW)


def test_the_network_stays_as_it_is() -> None:
    spectra, short = _pair()
    before = copy.deepcopy(short.state_dict())
    factor_rates(short, spectra, LOW)
    assert all(torch.equal(value, before[name]) for name, value in short.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in short.parameters())
    assert factor_rates(copy.deepcopy(spectra.model), spectra, Configuration()) == {}


@pytest.mark.parametrize("other", [{"0": ("svd", (1,))}, {"5": ("svd", (1,))}])
def test_another_configuration_is_refused(other: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    spectra, short = _pair()
    with pytest.raises(InvalidArgument, match="is no svd of rank"):
        factor_rates(short, spectra, Configuration(other))


def test_weights_of_few_bits_and_orders_of_channels_do_not_learn() -> None:
    dense = _pair()[0].model
    spectra = Spectra(dense, find_sites(dense, torch.randn(1, 3, 6, 6).double()), KNOWN)
    configuration = Configuration({"0": ("svd@int8", (2,)), "3": ("grouped_svd_learned", (2, 2))})
    short = build(spectra, configuration)
    rates = factor_rates(short, spectra, configuration)
    assert set(rates) == set(_factors(short, "3")) and len(rates) == 2
    # what the second layer multiplies by does not depend on the order of the first one's inputs
    kernel = short.get_parameter("3.1.weight").detach().flatten(1)
    norm = max(float(torch.linalg.matrix_norm(part, 2)) for part in kernel.chunk(2))
    assert rates["3.2.weight"] == pytest.approx(1 / (2 * norm**2), rel=0.05)
