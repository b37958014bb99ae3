"""Latency of a type at every rank from measurements at a few: monotone interpolation between them, and which ranks are to be
measured next."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ranksearch.decompositions import AnyDecomposition, Rank
from ranksearch.latency.timing import Interval
from ranksearch.sites import Site

Points = Mapping[Rank, Interval]  # ratios to the dense layer, by rank
Measure = Callable[[Sequence[Rank]], Points]
ENOUGH = 0.02  # a middle that is off by less, relative to itself, needs no point of its own
MOST = {1: 9, 2: 5}  # points along an axis, by the number of axes
GRID = 2  # axes that are interpolated between; ranks of more entries are told apart by their MACs alone


@dataclass(frozen=True)
class Curve:
    """Ratio to the dense layer as a monotone function of the rank, within one structure (`Decomposition.labels`).

    Between points it is linear in every entry of the rank, or, for ranks of more than two entries and for points that are no grid, in
    the MACs; beyond them constant."""

    axes: tuple[np.ndarray, ...]  # increasing coordinates, float64
    value: np.ndarray  # shape: (len(axis) for axis in axes); nowhere falling
    low: np.ndarray
    high: np.ndarray
    by_macs: bool

    def at(self, coordinates: np.ndarray, which: str = "value") -> np.ndarray:
        """The ``value``, ``low`` or ``high`` end at coordinates, shape: (n, n_axes) -> (n,)."""
        table = getattr(self, which)
        cells = [_cell(axis, column) for axis, column in zip(self.axes, coordinates.T, strict=True)]
        total = np.zeros(len(coordinates))
        for corner in itertools.product((0, 1), repeat=len(self.axes)):
            weight = np.prod([share if side else 1 - share for side, (_, _, share) in zip(corner, cells, strict=True)], axis=0)
            total += weight * table[tuple(after if side else before for side, (before, after, _) in zip(corner, cells, strict=True))]
        return total


def _cell(axis: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the points before and after, and how far between them, of values along an axis."""
    before = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, max(len(axis) - 2, 0))
    after = np.minimum(before + 1, len(axis) - 1)
    span = axis[after] - axis[before]
    share = np.divide(x - axis[before], span, out=np.zeros(len(x)), where=span > 0)
    return before, after, np.clip(share, 0.0, 1.0)


def monotone(values: np.ndarray) -> np.ndarray:
    """Values on a grid as ones that nowhere fall along any axis: the mean of the least such array above and the largest below.
    Values that are so already stay as they are."""
    above, below = values, values
    for axis in range(values.ndim):
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    return (above + below) / 2


def structures(decomposition: AnyDecomposition, ranks: np.ndarray) -> dict[Rank, np.ndarray]:
    """Rows of ranks by the leading entries that name a structure, shape of each: (n_rows,)."""
    labels = decomposition.labels
    names = [tuple(int(entry) for entry in row[:labels]) for row in ranks]
    return {name: np.array([k for k, other in enumerate(names) if other == name]) for name in dict.fromkeys(names)}


def coordinates(decomposition: AnyDecomposition, site: Site, ranks: np.ndarray, *, by_macs: bool) -> np.ndarray:
    """What curves are functions of, float64, shape: (n_ranks, n_axes)."""
    if by_macs:
        return decomposition.costs(site, ranks)[1][:, None].astype(np.float64)
    return ranks[:, decomposition.labels :].astype(np.float64)


def curve(decomposition: AnyDecomposition, site: Site, points: Points) -> Curve:
    """The curve through measurements of one structure."""
    ranks = np.array(list(points), dtype=np.int64)
    widths = ranks[:, decomposition.labels :]
    axes = tuple(np.unique(column) for column in widths.T)
    by_macs = not 0 < len(axes) <= GRID or len(points) != np.prod([len(axis) for axis in axes])
    spots = coordinates(decomposition, site, ranks, by_macs=by_macs)
    axes = tuple(np.unique(column) for column in spots.T)
    shape = tuple(len(axis) for axis in axes)
    place = tuple(np.searchsorted(axis, column) for axis, column in zip(axes, spots.T, strict=True))
    counts = np.zeros(shape)
    np.add.at(counts, place, 1)  # ranks of equal MACs are one point

    def on_grid(values: Sequence[float]) -> np.ndarray:
        sums = np.zeros(shape)
        np.add.at(sums, place, values)
        return monotone(sums / counts)

    found = points.values()
    return Curve(axes, on_grid([i.value for i in found]), on_grid([i.low for i in found]), on_grid([i.high for i in found]), by_macs)


def measured_curve(decomposition: AnyDecomposition, site: Site, ranks: np.ndarray, measure: Measure) -> dict[Rank, Interval]:
    """Measure the ranks that interpolation needs for the options of one structure: the ends and the middle, then the middle of
    every gap whose measured middle lies neither within its interval of, nor near, what was interpolated there.

    Args:
        ranks: the options, int64, shape: (n_ranks, rank_length), at least one.
        measure: measures ranks; is never asked twice for one.
    """
    widths = ranks[:, decomposition.labels :]
    first = tuple(int(entry) for entry in ranks[0])
    if widths.shape[1] == GRID and decomposition.empty_factors(site, first) is not None:  # any pair can be built
        return _on_grid(decomposition, site, ranks, measure)
    order = np.argsort(coordinates(decomposition, site, ranks, by_macs=widths.shape[1] != 1)[:, 0], kind="stable")
    rows = [tuple(int(entry) for entry in row) for row in ranks[order]]
    x = coordinates(decomposition, site, ranks[order], by_macs=widths.shape[1] != 1)[:, 0]
    ends = sorted({0, _middle(x, 0, len(x) - 1), len(x) - 1})
    points = dict(measure([rows[k] for k in ends]))
    gaps = list(itertools.pairwise(ends)) if len(ends) > 2 else []
    while gaps and len(points) < MOST[1]:
        begin, end = gaps.pop(0)
        middle = _middle(x, begin, end)
        if middle in (begin, end):
            continue
        share = (x[middle] - x[begin]) / max(x[end] - x[begin], 1e-300)
        expected = (1 - share) * points[rows[begin]].value + share * points[rows[end]].value
        points |= measure([rows[middle]])
        if not _agrees(points[rows[middle]], expected):
            gaps += [(begin, middle), (middle, end)]
    return points


def _on_grid(decomposition: AnyDecomposition, site: Site, ranks: np.ndarray, measure: Measure) -> dict[Rank, Interval]:
    """For ranks of two entries: a grid, to which a line is added where the middle of a gap, on the middle line of the other axis, is
    not as interpolated."""
    label = tuple(int(entry) for entry in ranks[0, : decomposition.labels])
    every = [np.unique(column) for column in ranks[:, decomposition.labels :].T]
    axes = [sorted({0, _middle(values, 0, len(values) - 1), len(values) - 1}) for values in every]
    points: dict[Rank, Interval] = {}

    def rank(place: Sequence[int]) -> Rank:
        return (*label, *(int(values[k]) for values, k in zip(every, place, strict=True)))

    def fill() -> None:
        wanted = [rank(place) for place in itertools.product(*axes)]
        points.update(measure([r for r in wanted if r not in points]))

    fill()
    for axis in (0, 1):
        gaps = list(itertools.pairwise(axes[axis]))
        while gaps and len(axes[axis]) < MOST[GRID]:
            begin, end = gaps.pop(0)
            middle, across = _middle(every[axis], begin, end), axes[1 - axis][len(axes[1 - axis]) // 2]
            if middle in (begin, end):
                continue
            probe = rank((middle, across) if axis == 0 else (across, middle))
            known = curve(decomposition, site, {r: points[r] for r in map(rank, itertools.product(*axes))})
            expected = known.at(coordinates(decomposition, site, np.array([probe]), by_macs=known.by_macs))[0]
            found = measure([probe])[probe]
            if not _agrees(found, float(expected)):
                points[probe] = found
                axes[axis] = sorted([*axes[axis], middle])
                fill()
                gaps += [(begin, middle), (middle, end)]
    return {r: points[r] for r in map(rank, itertools.product(*axes))}


def _agrees(found: Interval, expected: float) -> bool:
    return found.low <= expected <= found.high or abs(found.value - expected) <= ENOUGH * found.value


def _middle(x: np.ndarray, begin: int, end: int) -> int:
    """Position of the value nearest to the middle between two positions."""
    target = (float(x[begin]) + float(x[end])) / 2
    return begin + int(np.argmin(np.abs(x[begin : end + 1] - target)))
