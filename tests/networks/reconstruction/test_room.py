"""Layers with many inputs are fitted as a whole where the machine has room for their moments, and by their last layer where not."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranksearch.networks.reconstruction import announced, left_out, reconstruct
from ranksearch.networks.reconstruction.regression import LEAST
from ranksearch.networks.reconstruction.room import SHARE, fit_bytes, too_wide
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, named
from ranksearch.space.spectra import Spectra

ROOM = "ranksearch.networks.reconstruction.room."
CHOICE = Configuration({"0": ("svd", (2,)), "2": ("svd", (3,))})
RIDGE = 0.01
CPU = torch.device("cpu")


def two_layers() -> tuple[Spectra, nn.Module, Tensor]:
    """Dense, factorized, inputs: the second layer has 12 inputs, which the first one moves."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 9)).double().eval()
    x = torch.randn(200, 5, dtype=torch.float64)
    spectra = Spectra(net, find_sites(net, x[:1]), named("svd"))
    return spectra, build(spectra, CHOICE).eval(), x


def machine(monkeypatch: pytest.MonkeyPatch, spectra: Spectra, share: float) -> None:
    """Layers of more than 8 inputs are wide, and there is room for this share of what the second one takes."""
    monkeypatch.setattr(ROOM + "LARGEST", 8)
    monkeypatch.setattr(ROOM + "device_memory", lambda device: share * fit_bytes(spectra.sites["2"]) / SHARE)


def oracle(seen: np.ndarray, wanted: np.ndarray, dense: np.ndarray, rank: int) -> np.ndarray:
    """The best weight of a rank: ridge regression towards the dense one, truncated in the metric of inputs and ridge."""
    rows, answers = seen - seen.mean(axis=0), wanted - wanted.mean(axis=0)
    sizes = np.square(rows).mean(axis=0)
    pull = np.diag(np.sqrt(RIDGE * len(seen) * (sizes + LEAST * sizes.mean())))
    every = np.concatenate([rows, pull])
    weight = np.linalg.lstsq(every, np.concatenate([answers, pull @ dense.T]), rcond=None)[0].T
    triangle = np.linalg.qr(every)[1]
    u, s, v = np.linalg.svd(weight @ triangle.T, full_matrices=False)
    return np.linalg.solve(triangle, ((u[:, :rank] * s[:rank]) @ v[:rank]).T).T


def test_a_wide_layer_with_room_is_fitted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    spectra, short, x = two_layers()
    machine(monkeypatch, spectra, 1.0)
    assert left_out(spectra, CHOICE) == {} and too_wide(spectra.sites["2"], CPU) is None
    reconstruct(short, spectra, CHOICE, x.split(50), held_out=0, ridge=RIDGE)
    with torch.no_grad():
        seen, wanted = short[:2](x).numpy(), spectra.model(x).numpy()  # type: ignore[index]
        dense = spectra.model.get_submodule("2").get_parameter("weight").numpy()
        found = (short[2][1].weight @ short[2][0].weight).numpy()  # type: ignore[index]
        bias = short[2][1].bias.numpy()  # type: ignore[index]
    expected = oracle(seen, wanted, dense, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias, wanted.mean(axis=0) - expected @ seen.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_without_room_the_last_of_its_chain_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    spectra, short, x = two_layers()
    machine(monkeypatch, spectra, 0.99)
    assert re.fullmatch(r"12 inputs, whose moments take \d+\.\d GiB while it is fitted, over the \d+\.\d that may be taken",
                        too_wide(spectra.sites["2"], CPU) or "")  # fmt: skip
    before = copy.deepcopy(short.state_dict())
    reconstruct(short, spectra, CHOICE, x.split(50), held_out=0, ridge=RIDGE)
    after = short.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} >= {"0.0.weight", "2.1.weight", "2.1.bias"}
    assert torch.equal(after["2.0.weight"], before["2.0.weight"])


def test_room_is_that_of_the_device_that_a_layer_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU has less memory than its machine, and moments lie there."""
    spectra, _, _ = two_layers()
    machine(monkeypatch, spectra, 1.0)
    memory = {"cpu": fit_bytes(spectra.sites["2"]) / SHARE, "meta": 0.0}
    monkeypatch.setattr(ROOM + "device_memory", lambda device: memory[device.type])
    assert too_wide(spectra.sites["2"], CPU) is None and announced(spectra, CHOICE) is None and left_out(spectra, CHOICE) == {}
    assert too_wide(spectra.sites["2"], torch.device("meta")) is not None
    ring = Spectra(spectra.model, spectra.sites, named("tensor_ring"))
    rings = Configuration({"2": ("tensor_ring", (1, 1, 1))})
    assert left_out(ring, rings) == {}
    spectra.model.to("meta")
    assert "no chain of layers" in left_out(ring, rings)["2"]


def test_memory_is_said_before_where_it_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    spectra, _, _ = two_layers()
    assert announced(spectra, CHOICE) is None
    monkeypatch.setattr(ROOM + "GIB", fit_bytes(spectra.sites["2"]))
    assert announced(spectra, CHOICE) == "fitting 2, of 12 inputs, takes up to 1.0 GiB"
    machine(monkeypatch, spectra, 0.5)
    assert announced(spectra, CHOICE) is None  # the last of its chain is small
