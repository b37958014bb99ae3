"""The additive Gaussian process against the dense formulas."""

from __future__ import annotations

import numpy as np
import pytest

from ranksearch.surrogate import additive_process, least_of_draws
from ranksearch.surrogate.additive import AdditiveProcess, _kernel

SHAPE = (4, 1, 6, 3)


def observed(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Configurations and values: a sum over sites."""
    random = np.random.default_rng(seed)
    indices = random.integers(0, np.array(SHAPE), size=(count, len(SHAPE)))
    functions = [random.normal(0, 1, n) for n in SHAPE]
    return indices, np.sum([f[indices[:, s]] for s, f in enumerate(functions)], axis=0)


def all_configurations() -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1).reshape(-1, len(SHAPE))


def score(functions: list[np.ndarray], indices: np.ndarray) -> np.ndarray:
    return np.sum([f[indices[:, s]] for s, f in enumerate(functions)], axis=0)


def dense(process: AdditiveProcess, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the posterior at configurations, by inverting the whole covariance."""

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sum([k[np.ix_(a[:, s], b[:, s])] for s, k in enumerate(process.kernels)], axis=0)

    inverse = np.linalg.inv(covariance(process.indices, process.indices) + process.noise**2 * np.eye(len(process.values)))
    cross = covariance(at, process.indices)
    return cross @ inverse @ process.values, covariance(at, at) - cross @ inverse @ cross.T


@pytest.mark.parametrize("ordered", [None, (True, True, False, False)])
def test_mean_and_draws_are_those_of_the_dense_posterior(ordered: tuple[bool, ...] | None) -> None:
    indices, values = observed(14, 0)
    process = additive_process(SHAPE, indices, values, ordered=ordered)
    at = all_configurations()[::5]
    mean, covariance = dense(process, at)
    np.testing.assert_allclose(score(process.mean(), at), mean, atol=1e-8)
    random = np.random.default_rng(0)
    drawn = np.array([score(process.draw(random), at) for _ in range(4000)])
    deviations = np.sqrt(np.diag(covariance))
    assert np.abs(drawn.mean(axis=0) - mean).max() < 0.1 * deviations.max() + 0.02
    np.testing.assert_allclose(drawn.std(axis=0), deviations, rtol=0.15, atol=0.01)


def test_what_was_seen_is_met_and_its_unit_does_not_matter() -> None:
    indices, values = observed(40, 1)
    process = additive_process(SHAPE, indices, values)
    scaled = (values - values.mean()) / values.std()
    assert np.abs(score(process.mean(), indices) - scaled).max() < 0.3
    other = additive_process(SHAPE, indices, 1e6 * values + 7)
    np.testing.assert_allclose(other.values, process.values, atol=1e-8)
    noisy = additive_process(SHAPE, indices, np.random.default_rng(0).standard_normal(40))
    assert noisy.noise > process.noise


def test_options_in_an_order_teach_their_neighbours() -> None:
    indices = np.array([[0], [9]])
    near, apart = (additive_process((10,), indices, np.array([-1.0, 1.0]), ordered=[o]).mean()[0] for o in (True, False))
    assert (np.diff(near) > 0).all() and np.abs(apart[1:9]).max() == 0
    np.testing.assert_allclose(_kernel(3, False), np.eye(3))


def test_nothing_seen_is_the_prior_and_draws_find_the_least() -> None:
    nothing = additive_process(SHAPE, np.zeros((0, 4), dtype=np.int64), np.zeros(0))
    assert [f.shape for f in nothing.draw(np.random.default_rng(0))] == [(n,) for n in SHAPE]
    assert all((f == 0).all() for f in nothing.mean())
    indices = all_configurations()
    values = score([np.arange(n, dtype=np.float64) for n in SHAPE], indices)
    found = [least_of_draws(SHAPE, indices, values[:, None], np.random.default_rng(seed)) for seed in range(5)]
    assert all(row.dtype == np.int64 and (row == 0).all() for row in found)
