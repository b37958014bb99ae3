"""An additive Gaussian process over options: what is modelled where nothing is known but how many options every site has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

LENGTH = 0.3  # over which neighbouring options are alike, as a share of all options of a site
NOISES = (0.01, 0.1, 0.5)  # standard deviations of the noise to choose from, relative to that of the values


@dataclass(frozen=True)
class AdditiveProcess:
    """The sum over sites of one function of the option, each a Gaussian process: exp(-|i - j| / length) for options in an order,
    independent values for others.

    Attributes:
        kernels: covariance of the options of every site, float64, shape: (n_options, n_options).
        indices: what was observed, int64, shape: (n, n_sites).
        values: standardised, float64, shape: (n,).
        factor: of the covariance of the values.
        noise: its standard deviation.
    """

    kernels: tuple[np.ndarray, ...]
    indices: np.ndarray
    values: np.ndarray
    factor: tuple[np.ndarray, bool]
    noise: float

    def draw(self, random: np.random.Generator) -> list[np.ndarray]:
        """One function drawn from the posterior, by Matheron's rule: its values at the options of every site, shape: (n_options,) each."""
        prior = [_root(kernel) @ random.standard_normal(len(kernel)) for kernel in self.kernels]
        at = np.sum([f[self.indices[:, s]] for s, f in enumerate(prior)], axis=0) if len(self.indices) else np.zeros(0)
        weights = self._solve(self.values - at - self.noise * random.standard_normal(len(self.values)))
        return [f + k[:, self.indices[:, s]] @ weights for s, (f, k) in enumerate(zip(prior, self.kernels, strict=True))]

    def mean(self) -> list[np.ndarray]:
        """The expected function, shape: (n_options,) per site."""
        weights = self._solve(self.values)
        return [k[:, self.indices[:, s]] @ weights for s, k in enumerate(self.kernels)]

    def _solve(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(cho_solve(self.factor, values)) if len(values) else np.zeros(0)


def additive_process(
    shape: Sequence[int], indices: np.ndarray, values: np.ndarray, *, ordered: Sequence[bool] | None = None
) -> AdditiveProcess:
    """The posterior given observations, its noise chosen by the evidence. O(n^3 + n^2 sites).

    Args:
        shape: options per site.
        indices: int64, shape: (n, n_sites).
        values: float64, shape: (n,), in any unit.
        ordered: whether the options of a site have an order; default: all have.
    """
    ordered = [True for _ in shape] if ordered is None else ordered
    kernels = tuple(_kernel(n, in_order) / len(shape) for n, in_order in zip(shape, ordered, strict=True))
    centred = values - values.mean() if len(values) else values
    scaled = centred / max(float(centred.std()), 1e-12) if len(values) else centred
    covariance = np.sum([k[np.ix_(indices[:, s], indices[:, s])] for s, k in enumerate(kernels)], axis=0)
    best: tuple[float, float, tuple[np.ndarray, bool]] | None = None
    for noise in NOISES:
        factor = cho_factor(covariance + noise**2 * np.eye(len(values)), lower=True) if len(values) else (np.zeros((0, 0)), True)
        surprise = float(scaled @ cho_solve(factor, scaled) / 2 + np.log(np.diag(factor[0])).sum()) if len(values) else 0.0
        if best is None or surprise < best[0]:
            best = (surprise, noise, factor)
    assert best is not None
    return AdditiveProcess(kernels, indices, scaled, best[2], best[1])


def least_of_draws(
    shape: Sequence[int], indices: np.ndarray, values: np.ndarray, random: np.random.Generator, *, ordered: Sequence[bool] | None = None
) -> np.ndarray:
    """The least of a randomly weighted sum of functions, one drawn for every objective: Thompson sampling of a front.

    Args:
        values: float64, shape: (n, n_objectives), minimised.

    Returns:
        option of every site, int64, shape: (n_sites,).
    """
    total = [np.zeros(n) for n in shape]
    for number, weight in enumerate(random.dirichlet(np.ones(values.shape[1]))):
        drawn = additive_process(shape, indices, values[:, number], ordered=ordered).draw(random)
        total = [t + weight * d for t, d in zip(total, drawn, strict=True)]
    return np.array([int(t.argmin()) for t in total], dtype=np.int64)


def _kernel(options: int, in_order: bool) -> np.ndarray:
    if not in_order:
        return np.eye(options)
    places = np.arange(options) / max(options - 1, 1)
    return np.exp(-np.abs(places[:, None] - places[None]) / LENGTH)


def _root(kernel: np.ndarray) -> np.ndarray:
    return np.linalg.cholesky(kernel + 1e-9 * np.eye(len(kernel)))
