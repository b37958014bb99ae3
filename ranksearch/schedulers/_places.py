"""Places in an order, whatever the scale: bands of cost, and how many come before a newcomer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ranksearch.results.pareto import fronts


def bands(costs: np.ndarray, *, least: int, most: int) -> np.ndarray:
    """The band of every row, counted from the cheapest: neighbours in cost, about as many in each. Rows of one cost are in one band.

    Args:
        costs: shape: (n, k); rows are sorted by the sum over the costs of their places in each.
        least: members of a band, about.
        most: bands.

    Returns:
        int64, shape: (n,).
    """
    count = len(costs)
    place = _places(np.sum(_places(costs), axis=1)[:, None])[:, 0] if costs.shape[1] else np.zeros(count, dtype=np.int64)
    below = np.searchsorted(np.sort(place), place)  # how many are cheaper; the same for those of one cost
    number = max(1, min(most, count // least))
    return below * number // count


def places_before(levels: Sequence[np.ndarray]) -> int:
    """How many rows come before the last one in the order by fronts of the first of ``levels``, ties by those of the next, ties that are
    left by coverage in the last one. What is still tied comes behind the last row.

    Args:
        levels: values of the same rows, to be minimised, each of shape (n, m).
    """
    before, tied = 0, np.arange(len(levels[0]))
    for values in levels:
        front = fronts(values[tied], ["min"] * values.shape[1])
        before += int((front < front[-1]).sum())
        tied = tied[front == front[-1]]
    return before + _covered_before(_places(levels[-1])[tied].astype(np.float64))


def _covered_before(points: np.ndarray) -> int:
    """How many points are taken before the last one, farthest first: each is the one that is farthest from all that were taken, the
    first the most balanced one, of the least sum. Among those that are equally far the earlier coordinates decide, the lesser first;
    among equal points the last one is taken first. O(n^2 m)."""
    order = np.lexsort((np.arange(len(points))[::-1], *points.T[::-1]))
    points, mine = points[order], int(np.flatnonzero(order == len(points) - 1)[0])
    distance = -points.sum(axis=1)
    for taken in range(len(points)):
        chosen = int(distance.argmax())
        if chosen == mine:
            return taken
        away = np.square(points - points[chosen]).sum(axis=1)
        distance = away if taken == 0 else np.minimum(distance, away)
        distance[chosen] = -np.inf
    raise AssertionError("the last point is taken in one of the rounds")


def _places(values: np.ndarray) -> np.ndarray:
    """The place of every entry among the different ones of its column, from 0 for the least; shape as ``values``."""
    found = [np.unique(column, return_inverse=True)[1] for column in values.T]
    return np.stack(found, axis=1) if found else np.zeros(values.shape, dtype=np.int64)
