"""The latency of a network from the sum over its layers: fitted to networks that were measured as a whole, each paired with the
dense one."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from ranksearch.latency.table import Correction


def fitted(sums: np.ndarray, measured: np.ndarray) -> Correction:
    """The linear correction of least relative squares with nothing negative in it.

    Args:
        sums: nanoseconds of all sites by the table, the dense network among the configurations, shape: (n,), n at least 3.
        measured: nanoseconds of the whole networks, shape: (n,).
    """
    rest, scale = _fit(sums, measured)
    off = np.empty(len(sums))
    for k in range(len(sums)):
        others = np.arange(len(sums)) != k
        apart_rest, apart_scale = _fit(sums[others], measured[others])
        off[k] = abs((apart_rest + apart_scale * sums[k]) / measured[k] - 1)
    return Correction(rest, scale, len(sums), float(np.median(off)), float(off.max()))


def simple(dense_sum: float, dense_measured: float) -> Correction:
    """Without measured networks: layers count as they are, the rest is what the dense network takes beyond them."""
    return Correction(max(dense_measured - dense_sum, 0.0), 1.0)


def _fit(sums: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """(rest, scale): least squares of (rest + scale * sum) / measured - 1."""
    unit = float(np.median(measured))  # both columns near 1: the solver's tolerance is absolute
    (rest, scale), _ = nnls(np.stack([unit / measured, sums / measured], axis=1), np.ones(len(sums)))
    return float(rest) * unit, float(scale)
