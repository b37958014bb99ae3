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
LEAST = 9  # points of a grid that is one whatever else was measured
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
    least, most = _bounds(values, np.ones(values.shape, dtype=bool))
    return (least + most) / 2


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
    """The curve through measurements of one structure. Pairs that form a grid are interpolated on it; further pairs, measured where
    allocations landed, move what lies in the cells around them."""
    ranks = np.array(list(points), dtype=np.int64)
    widths = ranks[:, decomposition.labels :]
    inside = _grid(widths) if 0 < widths.shape[1] <= GRID else None
    spots = coordinates(decomposition, site, ranks, by_macs=inside is None)
    found = np.array([[i.value, i.low, i.high] for i in points.values()])
    if inside is None or inside.all():
        return _through(spots, found, by_macs=inside is None)
    return _moved(_through(spots[inside], found[inside], by_macs=False), spots[~inside], found[~inside])


def _grid(widths: np.ndarray) -> np.ndarray | None:
    """Which of different widths form a full grid, bool, shape: (n_ranks, n_axes) -> (n_ranks,): lines that the fewest of their points are
    known of are left out, one after the other. None: what is left is no grid to speak of."""
    inside = np.ones(len(widths), dtype=bool)
    while True:
        lines = [np.unique(column[inside], return_counts=True) for column in widths.T]
        sizes = [len(values) for values, _ in lines]
        if inside.sum() == np.prod(sizes):
            break
        known = [(n * sizes[axis], axis, -value) for axis, line in enumerate(lines) for value, n in zip(*line, strict=True)]
        _, axis, value = min(known)  # the share of a line's points that is known, but for a factor that all lines have
        inside &= widths[:, axis] != -value
    spans = all(size >= min(2, len(np.unique(column))) for size, column in zip(sizes, widths.T, strict=True))
    return inside if spans and (2 * inside.sum() > len(widths) or inside.sum() >= LEAST) else None


def _through(spots: np.ndarray, found: np.ndarray, *, by_macs: bool) -> Curve:
    """The curve through points that form a grid, or lie along one axis, where those at one place count as their mean.

    Args:
        spots: coordinates, shape: (n, n_axes).
        found: value, low and high, shape: (n, 3)."""
    axes, place = _axes(spots)
    shape = tuple(len(axis) for axis in axes)
    counts, sums = np.zeros(shape), np.zeros((*shape, 3))
    np.add.at(counts, place, 1)
    np.add.at(sums, place, found)
    return Curve(axes, *(monotone(sums[..., k] / counts) for k in range(3)), by_macs=by_macs)


def _moved(known: Curve, spots: np.ndarray, found: np.ndarray) -> Curve:
    """A curve on the grid of which the coordinates of further points are lines, too: there it is what was measured, at the other places of
    the new lines what it was, as far as that is between what was measured at smaller and at larger ranks."""
    axes, _ = _axes(np.concatenate([spots, np.array(list(itertools.product(*known.axes)))]))
    place = tuple(np.searchsorted(axis, column) for axis, column in zip(axes, spots.T, strict=True))
    every, shape = np.array(list(itertools.product(*axes))), tuple(len(axis) for axis in axes)
    measured = np.zeros(shape, dtype=bool)
    measured[np.ix_(*(np.isin(axis, lines) for axis, lines in zip(axes, known.axes, strict=True)))] = True
    measured[place] = True
    tables = []
    for k, which in enumerate(("value", "low", "high")):
        table = known.at(every, which).reshape(shape)
        table[place] = found[:, k]
        least, most = _bounds(table, measured)
        least, most = _bounds((least + most) / 2, measured)
        tables.append(np.clip(table, least, most))
    return Curve(axes, *tables, by_macs=False)


def _bounds(values: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every place of a grid the largest measured value at or below it, and the least at or above it."""
    below, above = np.where(measured, values, -np.inf), np.where(measured, values, np.inf)
    for axis in range(values.ndim):
        below = np.maximum.accumulate(below, axis=axis)
        above = np.flip(np.minimum.accumulate(np.flip(above, axis), axis=axis), axis)
    return below, above


def _axes(spots: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """The lines of a grid that holds some points, and on which ones each of them is."""
    found = [np.unique(column, return_inverse=True) for column in spots.T]
    return tuple(axis for axis, _ in found), tuple(place for _, place in found)


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
