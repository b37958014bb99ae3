"""Scale and shift of batch norms against least squares by NumPy, channel by channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch import tensors
from ranksearch.networks.reconstruction.norms import affine_norms, fit_norm


@pytest.mark.parametrize("cached", [tensors.CACHED, 100])  # all at once, and two examples at a time
def test_scale_and_shift_are_those_of_least_squares_on_normalized_inputs(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "CACHED", cached)
    norm, x, y = nn.BatchNorm2d(3), 3 * torch.randn(10, 3, 5, 4) + 1, torch.randn(10, 3, 5, 4)
    y = y + 0.7 * x
    fit_norm(norm, [(0, x[:4], y[:4]), (1, x[4:], y[4:]), (2, x, None)])
    for channel in range(3):
        rows, wanted = (value[:, channel].flatten().double().numpy() for value in (x, y))
        normal = (rows - rows.mean()) / np.sqrt(rows.var() + norm.eps)
        scale, shift = np.linalg.lstsq(np.stack([normal, np.ones_like(normal)], axis=1), wanted, rcond=None)[0]
        np.testing.assert_allclose([norm.weight[channel].item(), norm.bias[channel].item()], [scale, shift], rtol=1e-4)


def test_noise_is_not_brought_to_the_variance_of_what_it_hides() -> None:
    norm, y = nn.BatchNorm1d(2), torch.randn(400, 2)
    x = y + 2 * torch.randn(400, 2)
    fit_norm(norm, [(0, x, y)])
    with torch.no_grad():
        fitted, plain = norm(x), nn.BatchNorm1d(2)(x)
    assert (fitted - y).square().mean() < 0.9 * (plain - y).square().mean()


def test_channels_without_variance_and_inputs_that_are_not_finite_keep_their_scale() -> None:
    norm, x = nn.BatchNorm1d(2), torch.randn(20, 2)
    x[:, 0] = 5
    fit_norm(norm, [(0, x, torch.randn(20, 2))])
    assert norm.weight[0] == 1 and norm.weight[1] != 1
    before = norm.weight.clone()
    fit_norm(norm, [(0, x * float("nan"), x)])
    fit_norm(norm, [])
    assert torch.equal(norm.weight, before)
    plain = nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2))
    assert list(affine_norms(plain)) == ["1"]
