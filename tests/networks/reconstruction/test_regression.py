"""Goals of layers: ridge regression against least squares by NumPy, and the metric against squared errors at all positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions.metric import FlooredMoments
from ranksearch.networks.reconstruction.moments import LayerMoments
from ranksearch.networks.reconstruction.regression import LEAST, Goal, goal
from ranksearch.sites import Site, find_sites

MANY, FEW = (40, 6), (11, 24)  # positions and inputs: of few positions each is kept


def seen(bias: bool, output: Tensor | None = None, shape: tuple[int, int] = MANY) -> tuple[Site, Tensor, Tensor, LayerMoments, Tensor]:
    count, width = shape
    layer = nn.Linear(width, 4, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64) + torch.randn(count, 1, dtype=torch.float64) + 1
    site = find_sites(nn.Sequential(layer).eval(), x[:1])["0"]
    y = torch.randn(count, 4, dtype=torch.float64) + x[:, :4]
    moments = LayerMoments.none(site, output, x.device)
    moments.add(x[:5].float(), y[:5].float())
    moments.add(x[5:].float(), y[5:].float())
    assert (moments.examples is not None) == (shape == FEW)
    return site, x, y, moments, layer.weight.detach().reshape(site.shape)


@pytest.mark.parametrize("shape", [MANY, FEW])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 3.0])
def test_the_goal_is_the_anchored_ridge_regression(bias: bool, ridge: float, shape: tuple[int, int]) -> None:
    site, x, y, moments, dense = seen(bias, shape=shape)
    found = goal(moments, dense, ridge)
    mean_x, mean_y = (x.mean(0), y.mean(0)) if bias else (torch.zeros(shape[1]), torch.zeros(4))
    rows, answers = (x - mean_x).numpy(), (y - mean_y).numpy()
    sizes = (rows**2).mean(0)
    pull = np.diag(np.sqrt(ridge * len(rows) * (sizes + LEAST * sizes.mean())))
    flat = dense.flatten(1).numpy()
    expected = np.linalg.lstsq(np.concatenate([rows, pull]), np.concatenate([answers, pull @ flat.T]), rcond=None)[0].T
    np.testing.assert_allclose(found.weight.flatten(1).numpy(), expected, rtol=1e-4, atol=1e-5)
    best = found.bias(found.weight)
    assert (best is None) == (not bias)
    if best is not None:
        np.testing.assert_allclose(best.numpy(), (y - x @ found.weight.flatten(1).T).mean(0).numpy(), rtol=1e-4, atol=1e-5)
    assert found.weight.shape == site.shape
    moment = found.moments.input
    assert isinstance(moment, Tensor)
    np.testing.assert_allclose(moment[0].numpy(), rows.T @ rows / len(rows) + pull**2 / len(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.gram[0], found.weight.flatten(1) @ moment[0] @ found.weight.flatten(1).T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [MANY, FEW])
def test_the_metric_tells_squared_errors_apart_from_those_of_the_goal(shape: tuple[int, int]) -> None:
    factor = torch.randn(1, 4, 5, dtype=torch.float64)
    output = factor @ factor.mT
    _, x, y, moments, dense = seen(True, output, shape)
    found = goal(moments, dense, 0.0)

    def loss(weight: Tensor) -> float:
        bias = found.bias(weight)
        assert bias is not None
        residual = (x @ weight.flatten(1).T + bias - y).T
        return float((residual * (output[0] @ residual)).sum()) / len(x)

    def metric(weight: Tensor, goal: Goal) -> float:
        away = (weight - goal.weight).flatten(1)
        assert goal.moments.input is not None
        return float((away * (output[0] @ away @ goal.moments.input[0])).sum())

    for _ in range(3):
        weight = torch.randn_like(found.weight)
        assert loss(weight) - loss(found.weight) == pytest.approx(metric(weight, found), rel=1e-4)
        away = (weight - found.weight)[None]
        assert float((away * found.weighing()(away)).sum()) == pytest.approx(metric(weight, found), rel=1e-9)


@pytest.mark.parametrize("shape", [MANY, FEW])
def test_a_large_ridge_leaves_the_dense_weight(shape: tuple[int, int]) -> None:
    _, _, _, moments, dense = seen(True, shape=shape)
    torch.testing.assert_close(goal(moments, dense, 1e9).weight, dense, rtol=1e-6, atol=1e-6)


def test_singular_inputs_take_one_cholesky_factorization(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are fewer than dimensions, and one is dead; the ridge of most inputs is below the floor."""
    monkeypatch.setattr("ranksearch.decompositions.metric.floored", lambda moment: pytest.fail("more than one"))
    layer, x = nn.Linear(40, 4).double(), torch.randn(30, 40, dtype=torch.float64)
    x[:, 5] = 0
    site = find_sites(nn.Sequential(layer).eval(), x[:1])["0"]
    moments = LayerMoments.none(site, None, x.device)
    moments.add(x, layer(x).detach())
    for ridge in (0.0, 1e-9, 1e-3):
        found = goal(moments, layer.weight.detach().reshape(site.shape), ridge)
        assert isinstance(found.moments, FlooredMoments) and found.moments.triangle is not None
        torch.testing.assert_close(found.weight.flatten(1), layer.weight.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ridge", [0.0, 1e-9])
def test_few_positions_come_to_the_same_at_the_floor(ridge: float) -> None:
    site, x, y, _, dense = seen(True, shape=FEW)
    moments = LayerMoments.none(site, None, x.device)
    moments.add(x, y)  # in float64: sums in float32 are not exact to the floor
    found = goal(moments, dense, ridge)
    assert moments.inputs.any()  # the sums are made
    same = goal(replace(moments, examples=None), dense, ridge)
    torch.testing.assert_close(found.weight, same.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.gram, same.gram, rtol=1e-6, atol=1e-6)


def test_few_inputs_that_do_not_vary_leave_the_dense_weight() -> None:
    site, _, _, _, dense = seen(True, shape=FEW)
    moments = LayerMoments.none(site, None, dense.device)
    moments.add(torch.ones(5, FEW[1]), torch.randn(5, 4))
    assert moments.examples is not None
    torch.testing.assert_close(goal(moments, dense, 1e-3).weight, dense, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [MANY, FEW])
def test_directions_that_the_inputs_do_not_have_stay_as_they_are(shape: tuple[int, int]) -> None:
    site, x, y, _, dense = seen(False, shape=shape)
    x[:, 5] = 0
    moments = LayerMoments.none(site, None, x.device)
    moments.add(x.float(), y.float())
    found = goal(moments, dense, 1e-3)
    torch.testing.assert_close(found.weight[:, 5], dense[:, 5], rtol=1e-5, atol=1e-6)
