"""Domination, hypervolume and the knee of a front, on plain arrays. Everything is minimised inside; directions are
converted here, at the edge. Domination and hypervolume are computed by moocore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import moocore
import numpy as np
from numpy.typing import ArrayLike

from ranksearch.errors import InvalidArgument

Direction = Literal["min", "max"]
_BLOCK = 512  # rows that are compared with a front at once


def non_dominated(values: ArrayLike, directions: Sequence[Direction]) -> np.ndarray:
    """Which rows no other row dominates.

    A row dominates another when it is nowhere worse and somewhere better. Equal rows do not dominate each other, so
    all duplicates of a front row are on the front. A row with NaN is never on the front and dominates nothing.

    Args:
        values: one row per point, shape: (n, m).
        directions: "min" or "max" for each of the m columns.

    Returns:
        bool, shape: (n,).

    Raises:
        InvalidArgument: shapes or directions that do not fit.

    O(n log n) for m <= 3, O(n (log n)^(m-2)) beyond (Kung, Luccio & Preparata 1975, "On finding the maxima of a set
    of vectors"; López-Ibáñez, moocore).
    """
    points = _minimised(values, directions)
    sound = np.flatnonzero(~np.isnan(points).any(axis=1))
    mask = np.zeros(len(points), dtype=bool)
    mask[sound[_front(points[sound])]] = True
    return mask


def fronts(values: ArrayLike, directions: Sequence[Direction]) -> np.ndarray:
    """The front that every row is on: 0 for what no row dominates, 1 for what none dominates once those are taken away, and so on.

    Args:
        values: one row per point, of finite numbers, shape: (n, m).
        directions: "min" or "max" for each of the m columns.

    Returns:
        int64, shape: (n,).

    Raises:
        InvalidArgument: shapes or directions that do not fit, or a number that is not finite.

    `non_dominated` once for each front (Deb et al. 2002, NSGA-II, sort the same way).
    """
    points = _minimised(values, directions)
    if not np.isfinite(points).all():
        raise InvalidArgument("values: every entry must be a finite number; leave the other rows out")
    found, left, number = np.zeros(len(points), dtype=np.int64), np.arange(len(points)), 0
    while len(left):
        front = _front(points[left])
        found[left[front]] = number
        left, number = left[~front], number + 1
    return found


def hypervolume(values: ArrayLike, reference: ArrayLike, directions: Sequence[Direction]) -> float:
    """Volume that the rows dominate, up to the reference point, in the product of the columns' units.

    Rows that are not better than the reference in every column, and rows with NaN, add nothing.

    Args:
        values: one row per point, shape: (n, m).
        reference: the worst point of interest, in the same directions, shape: (m,).
        directions: "min" or "max" for each of the m columns.

    Raises:
        InvalidArgument: shapes or directions that do not fit, a reference that is not finite, or a value that is
            infinitely good (the volume would be infinite).

    O(n log n) for m <= 3, O(n^2) for m = 4, O(n^(m-2) log n) beyond (Fonseca, Paquete & López-Ibáñez 2006, "An
    improved dimension-sweep algorithm for the hypervolume indicator"; Guerreiro & Fonseca 2018 for m = 4).
    """
    points = _minimised(values, directions)
    corner = _minimised(np.asarray(reference, dtype=np.float64).reshape(1, -1), directions)[0]
    if not np.isfinite(corner).all():
        raise InvalidArgument(f"reference={np.asarray(reference).tolist()}: every entry must be a finite number")
    points = points[(points < corner).all(axis=1)]  # False for NaN too
    if np.isneginf(points).any():
        raise InvalidArgument("values hold an infinitely good entry, so the hypervolume is infinite; leave that row out")
    if not len(points):
        return 0.0
    if points.shape[1] == 1:
        return float(corner[0] - points.min())
    return float(moocore.hypervolume(points, ref=corner))


def relative_hypervolume(values: ArrayLike, dense: ArrayLike, directions: Sequence[Direction], costs: Sequence[bool]) -> float:
    """The hypervolume of a front relative to the dense network: the share that it dominates of the box between a network of
    no cost and no loss (the ideal) and one of the dense network's costs and worthless metrics (the reference).

    A cost is measured as a share of the dense network's d, value / d; a metric as its loss relative to d, (d - value) / |d|
    where more is better, (value - d) / |d| where less is. In these units the ideal is 0 and the reference is 1 in every
    column, and the dense network by itself has none, since it saves nothing. Metrics above the dense network's add to the box.

    Args:
        values: one row per point, shape: (n, m).
        dense: the dense network's row, shape: (m,). A metric of 0 counts as 1; a cost of 0 takes no part, since there are no
            shares of it.
        directions: "min" or "max" for each of the m columns.
        costs: which columns are costs; shape: (m,).

    Raises:
        InvalidArgument: as `hypervolume`.
    """
    scaled = relative(values, dense, directions, costs)
    minimised: list[Direction] = ["min"] * scaled.shape[1]
    return hypervolume(scaled, np.ones(scaled.shape[1]), minimised) if minimised else 0.0


def relative(values: ArrayLike, dense: ArrayLike, directions: Sequence[Direction], costs: Sequence[bool]) -> np.ndarray:
    """Rows in the units of `relative_hypervolume`: all to be minimised, the ideal at 0, the reference at 1; arguments as there.

    Returns:
        float64, shape: (n, m), less the costs that take no part.

    Raises:
        InvalidArgument: shapes or directions that do not fit.
    """
    points, base = _minimised(values, directions), _minimised(np.asarray(dense, dtype=np.float64).reshape(1, -1), directions)[0]
    of_cost = np.asarray(costs, dtype=bool)
    scale = np.where(base == 0, 1.0, np.abs(base))
    return ((points - np.where(of_cost, 0.0, base)) / scale)[:, ~of_cost | (base != 0)]


def gains(points: ArrayLike) -> np.ndarray:
    """What every row adds to the hypervolume of the rows before it, up to the reference 1 in every column; their sum is the hypervolume of
    all. Rows with NaN add nothing.

    Args:
        points: all columns to be minimised, as `relative` gives them, shape: (n, m).

    Returns:
        float64, shape: (n,).

    The gain of p is the volume of its box less the hypervolume of the others cut to it (While, Bradstreet & Barone 2012, "A fast way of
    calculating exact hypervolumes"); only rows that no earlier one weakly dominates have any, and they alone cost a call.
    """
    points = np.array(points, dtype=np.float64)
    found = np.zeros(len(points))
    if not points.size:
        return found
    within, reference = np.flatnonzero((points < 1.0).all(axis=1)), np.ones(points.shape[1])
    directions: list[Direction] = ["min"] * points.shape[1]
    front = np.zeros((0, points.shape[1]))
    for start in range(0, len(within), _BLOCK):
        block = within[start : start + _BLOCK]
        beaten = np.logical_and.reduce(front[None] <= points[block][:, None], axis=2)  # shape: (rows, rows of the front)
        fresh = block[~np.logical_or.reduce(beaten, axis=1)]
        for row in fresh:
            point = points[row]
            if (front <= point).all(axis=1).any():
                continue
            found[row] = np.prod(1.0 - point) - hypervolume(np.maximum(front, point), reference, directions)
            front = np.vstack([front[~(point <= front).all(axis=1)], point])
    return found


def growths(front: ArrayLike, candidates: ArrayLike) -> np.ndarray:
    """What every candidate by itself would add to the hypervolume of a front, up to the reference 1 in every column.

    Args:
        front: all columns to be minimised, dominated rows allowed, shape: (n, m).
        candidates: shape: (k, m).

    Returns:
        float64, shape: (k,).

    With two columns all are computed at once, as the areas between each candidate's box and the steps of the front, O(n k); with others
    each costs a hypervolume.
    """
    candidates = np.array(candidates, dtype=np.float64)
    size = candidates.shape[1]
    points = np.array(front, dtype=np.float64).reshape(-1, size)
    points = points[(points < 1.0).all(axis=1)]
    points = points[_front(points)]
    if size != 2:
        reference, directions = np.ones(size), ["min"] * size
        volume = hypervolume(points, reference, directions)  # type: ignore[arg-type]
        volumes = [hypervolume(np.vstack([points, row]), reference, directions) for row in candidates]  # type: ignore[arg-type]
        return np.array(volumes) - volume
    steps = points[np.lexsort((points[:, 1], points[:, 0]))]
    left, right = np.append(-np.inf, steps[:, 0]), np.append(steps[:, 0], 1.0)
    height = np.append(1.0, steps[:, 1])  # of what is not dominated, from left to right
    widths = np.clip(right - np.maximum(left, candidates[:, [0]]), 0.0, None)
    return (widths * np.clip(height - candidates[:, [1]], 0.0, None)).sum(axis=1)


def knee(values: ArrayLike, directions: Sequence[Direction]) -> int:
    """Index of the knee: the row of the front that lies farthest from the hyperplane through the front's extremes,
    on the side of the ideal point, with every objective scaled to [0, 1] over the front.

    A front without a bulge towards the ideal (concave, or of one or two rows) has its knee at an extreme: the first
    such row. Objectives that are constant on the front take no part. If the m best rows of the m objectives do not
    span a hyperplane with positive intercepts, sum(x) = 1 takes its place.

    Args:
        values: one row per point, dominated ones allowed, shape: (n, m).
        directions: "min" or "max" for each of the m columns.

    Raises:
        InvalidArgument: shapes or directions that do not fit, or no row of finite numbers.

    O(n m + m^3) beside finding the front (Das 1999, "On characterizing the 'knee' of the Pareto curve based on
    normal-boundary intersection", Structural Optimization 18).
    """
    points = _minimised(values, directions)
    candidates = np.flatnonzero(np.isfinite(points).all(axis=1))
    if not len(candidates):
        raise InvalidArgument(f"values of shape {points.shape} hold no row of finite numbers, so there is no knee")
    candidates = candidates[_front(points[candidates])]
    front = points[candidates]
    low, span = front.min(axis=0), np.ptp(front, axis=0)
    if not (span > 0).any():
        return int(candidates[0])
    scaled = ((front - low) / np.where(span > 0, span, 1.0))[:, span > 0]
    normal = _normal(scaled)
    distance = (1.0 - scaled @ normal) / np.linalg.norm(normal)
    # the first of those that rounding cannot tell from the best
    return int(candidates[np.flatnonzero(distance >= distance.max() - 1e-12)[0]])


def _normal(scaled: np.ndarray) -> np.ndarray:
    """Normal a of the hyperplane a x = 1 through the best row of each objective."""
    size = scaled.shape[1]
    # ties in one objective go to the row that is best in the others
    extremes = np.stack([scaled[np.lexsort((scaled.sum(axis=1), scaled[:, j]))[0]] for j in range(size)])
    if np.linalg.matrix_rank(extremes) == size:
        normal = np.linalg.solve(extremes, np.ones(size))
        if (normal > 0).all():
            return normal
    return np.ones(size)


def _front(points: np.ndarray) -> np.ndarray:
    if not len(points):
        return np.zeros(0, dtype=bool)
    if points.shape[1] == 1:
        return points[:, 0] == points[:, 0].min()
    if not np.isfinite(points).all():  # which moocore does not take; their order is all that matters
        points = np.stack([np.unique(column, return_inverse=True)[1] for column in points.T], axis=1).astype(np.float64)
    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=bool)


def _minimised(values: ArrayLike, directions: Sequence[Direction]) -> np.ndarray:
    """A float64 copy with the columns to maximise negated, shape: (n, m)."""
    if isinstance(directions, str) or not directions or any(d not in ("min", "max") for d in directions):
        raise InvalidArgument(f'directions={directions!r}: give "min" or "max" for every column')
    points = np.array(values, dtype=np.float64)
    if points.size == 0:
        points = points.reshape(0, len(directions))
    if points.ndim != 2 or points.shape[1] != len(directions):
        raise InvalidArgument(f"values of shape {points.shape} do not fit {len(directions)} directions; the shape must be (n, m)")
    return points * np.array([1.0 if d == "min" else -1.0 for d in directions])


def spread_front(values: Sequence[Sequence[float]], count: int) -> list[int]:
    """At most ``count`` rows of the front of ``values`` (all minimised), best first: each adds the most hypervolume to
    those before it, so that they spread over the whole front. Columns are scaled to [0, 1] over the front."""
    points = np.array(values, dtype=np.float64)
    if not len(points):
        return []
    directions = ["min"] * points.shape[1]
    front = np.flatnonzero(non_dominated(points, directions))  # type: ignore[arg-type]
    _, first = np.unique(points[front], axis=0, return_index=True)
    front = front[np.sort(first)]
    low, high = points[front].min(axis=0), points[front].max(axis=0)
    scaled = (points[front] - low) / np.where(high > low, high - low, 1.0)
    reference = np.full(points.shape[1], 1.1)
    chosen: list[int] = []
    while len(chosen) < min(count, len(front)):
        rest = [i for i in range(len(front)) if i not in chosen]
        volumes = [hypervolume(scaled[[*chosen, i]], reference, directions) for i in rest]  # type: ignore[arg-type]
        chosen.append(rest[int(np.argmax(volumes))])
    return [int(front[i]) for i in chosen]
