"""Weighted least squares of one factor after the other, against normal equations solved by NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from ranksearch.decompositions import Moments
from ranksearch.decompositions.refinement import refine

OUT, RANK, D = 5, 2, 6


def compose(factors: Sequence[Tensor]) -> Tensor:
    left, right = factors
    return (left @ right).reshape(1, OUT, D, 1, 1)


@pytest.fixture
def case() -> tuple[Tensor, Moments, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    a, g = drawn(1, D, 2 * D), drawn(1, OUT, 2 * OUT)
    return drawn(1, OUT, D, 1, 1), Moments(a @ a.mT, g @ g.mT), [drawn(OUT, RANK), drawn(RANK, D)]


def best(weight: np.ndarray, moments: Moments, factors: Sequence[np.ndarray], k: int) -> np.ndarray:
    """The factor at ``k`` of the least squared error in the metric, the other being as it is."""
    assert isinstance(moments.input, Tensor) and moments.output is not None
    left, right = factors
    a, g = (np.linalg.cholesky(m[0].numpy()) for m in (moments.input, moments.output))
    whitened = g.T @ weight @ a
    if k == 0:
        return np.linalg.solve(g.T, np.linalg.lstsq((right @ a).T, whitened.T, rcond=None)[0].T)
    return np.linalg.lstsq(g.T @ left, whitened, rcond=None)[0] @ np.linalg.inv(a)


def test_every_factor_in_turn_is_the_best_for_the_others(case: tuple[Tensor, Moments, list[Tensor]]) -> None:
    """With as many steps as a factor has entries, conjugate gradients come to the end. The second sweep meets other factors."""
    weight, moments, start = case
    expected = [factor.numpy() for factor in start]
    for k in (0, 1, 0, 1):
        expected[k] = best(weight.reshape(OUT, D).numpy(), moments, expected, k)
    kept = [factor.clone() for factor in start]
    found = refine(compose, start, weight, moments, sweeps=2, steps=60)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-6, atol=1e-8)
    assert all(torch.equal(one, other) for one, other in zip(start, kept, strict=True))
    assert not any(factor.requires_grad for factor in found)


def test_steps_without_a_graph_of_the_caller(case: tuple[Tensor, Moments, list[Tensor]]) -> None:
    weight, moments, start = case
    with torch.no_grad():
        found = refine(compose, start, weight, moments, sweeps=1, steps=3)
    again = refine(compose, start, weight, moments, sweeps=1, steps=3)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
