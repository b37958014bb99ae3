"""The latency of a network from the sum over its layers: fitted to networks that were measured as a whole, each paired with the
dense one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import nnls

from ranksearch.latency.table import Correction

LEAST, MOST = 1e-3, 2.0  # of the network's time that is taken to be in layers: above 1 it saves more than they do
ENOUGH = 3  # networks that say how far a prediction is off


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


def through_dense(known: Correction, dense_sum: float, sums: np.ndarray, ratios: np.ndarray) -> Correction:
    """The correction of least relative squares among those that leave the dense network at what it takes: what the networks that
    allocations land on are counted by, since of these the budgets are to be true.

    Networks that are slower than their layers let hope make ``scale`` small, at least `LEAST` of the layers' own time. Networks that are
    faster, where a runtime fuses what layers timed alone have to themselves, make it large, at most `MOST`, and ``rest`` negative.

    Args:
        known: the correction so far, which says what the dense network takes.
        dense_sum: nanoseconds of all sites by the table.
        sums: the same of the networks, shape: (n,).
        ratios: what they were measured to take, as a whole, over the dense network, shape: (n,).
    """
    dense = known.rest + known.scale * dense_sum
    saved, apart = 1 - sums / dense_sum, 1 - ratios  # of a layer's time and of the network's

    def share(rows: np.ndarray) -> float:
        """Of the network's time that is in layers."""
        weight = saved[rows] / np.square(ratios[rows])
        return float(np.clip((weight @ apart[rows]) / max(float(weight @ saved[rows]), 1e-300), LEAST, MOST))

    everything = np.arange(len(sums))
    scale = share(everything) * dense / dense_sum
    found = replace(known, rest=dense - scale * dense_sum, scale=scale, networks=len(sums))
    if len(sums) < ENOUGH:  # the deviation of the networks before says more
        return found
    off = np.array([abs((1 - share(everything[everything != k]) * saved[k]) / ratios[k] - 1) for k in everything])
    return replace(found, deviation=float(np.median(off)), worst=float(off.max()))


def simple(dense_sum: float, dense_measured: float) -> Correction:
    """Without measured networks: layers count as they are, the rest is what the dense network takes beyond them."""
    return Correction(max(dense_measured - dense_sum, 0.0), 1.0)


def _fit(sums: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """(rest, scale): least squares of (rest + scale * sum) / measured - 1."""
    unit = float(np.median(measured))  # both columns near 1: the solver's tolerance is absolute
    (rest, scale), _ = nnls(np.stack([unit / measured, sums / measured], axis=1), np.ones(len(sums)))
    return float(rest) * unit, float(scale)
