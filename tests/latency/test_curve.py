"""Interpolation between few measured ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Rank
from ranksearch.latency.curve import MOST, Curve, coordinates, curve, measured_curve, monotone, structures
from ranksearch.latency.timing import Interval
from ranksearch.sites import Site

TYPES = {d.name: d for d in DECOMPOSITIONS}
SITE = Site("layer", "conv2d", 40, 32, (3, 3), padding=(1, 1))


class Times:
    """Measures by a formula, and remembers what it was asked."""

    def __init__(self, ratio: Callable[[Rank], float], width: float = 0.001) -> None:
        self.ratio, self.width = ratio, width
        self.asked: list[Rank] = []

    def __call__(self, ranks: Sequence[Rank]) -> dict[Rank, Interval]:
        self.asked += ranks
        return {r: Interval(self.ratio(r), self.ratio(r) - self.width, self.ratio(r) + self.width) for r in ranks}


def found(name: str, times: Times) -> tuple[Curve, np.ndarray, np.ndarray]:
    """The curve of a type without structures, its options, and what it predicts of them."""
    kind = TYPES[name]
    ranks = kind.options(SITE)
    points = measured_curve(kind, SITE, ranks, times)
    assert len(times.asked) == len(set(times.asked))  # nothing twice
    known = curve(kind, SITE, points)
    return known, ranks, known.at(coordinates(kind, SITE, ranks, by_macs=known.by_macs))


@pytest.mark.parametrize("name", ["svd", "cp", "spatial"])
def test_a_line_takes_five_points(name: str) -> None:
    times = Times(lambda rank: 0.1 + 0.01 * rank[0])
    _, ranks, predicted = found(name, times)
    assert len(times.asked) <= 5
    assert predicted == pytest.approx([times.ratio(tuple(rank)) for rank in ranks.tolist()])


def test_bends_are_refined_where_they_are() -> None:
    def stairs(rank: Rank) -> float:  # flat, then steep
        return 0.3 + 0.02 * max(rank[0] - 24, 0)

    times = Times(stairs)
    _, ranks, predicted = found("svd", times)
    assert 5 < len(times.asked) <= MOST[1]
    truth = np.array([stairs(tuple(rank)) for rank in ranks.tolist()])
    assert np.abs(predicted - truth).max() < 0.06
    bend = [rank for (rank,) in times.asked if 16 <= rank <= 30]
    assert len(bend) > 2


def test_a_middle_within_its_interval_is_not_refined() -> None:
    exact, vague = (Times(lambda rank: (rank[0] / 40) ** 1.5, width=w) for w in (0.0, 0.2))
    found("svd", exact)
    found("svd", vague)
    assert len(vague.asked) == 5 < len(exact.asked)


def test_pairs_of_ranks_lie_on_a_grid() -> None:
    times = Times(lambda rank: 0.1 + 0.01 * rank[0] + 0.02 * rank[1])
    known, ranks, predicted = found("tucker2", times)
    assert len(known.axes) == 2 and not known.by_macs and len(times.asked) <= 9 + 4
    assert predicted == pytest.approx([times.ratio(tuple(rank)) for rank in ranks.tolist()])
    bent = Times(lambda rank: 0.2 + 0.02 * max(rank[0] - 24, 0) + 0.01 * rank[1])
    known, ranks, predicted = found("tucker2", bent)
    assert 3 < len(known.axes[0]) <= MOST[2] and len(known.axes[1]) == 3
    assert np.abs(predicted - [bent.ratio(tuple(rank)) for rank in ranks.tolist()]).max() < 0.05


def test_longer_ranks_are_told_apart_by_macs() -> None:
    kind = TYPES["tensor_train"]
    macs = dict(zip(map(tuple, kind.options(SITE).tolist()), kind.costs(SITE, kind.options(SITE))[1].tolist(), strict=True))
    times = Times(lambda rank: macs[rank] / 1e6)
    known, _, predicted = found("tensor_train", times)
    assert known.by_macs and predicted == pytest.approx([m / 1e6 for m in macs.values()])


def test_scattered_pairs_are_interpolated_by_macs() -> None:
    kind = TYPES["tucker2"]
    ranks = np.array([[2, 3], [9, 5], [20, 30]])
    macs = kind.costs(SITE, ranks)[1]
    points = {tuple(rank): Interval(m / 1e6, m / 1e6, m / 1e6) for rank, m in zip(ranks.tolist(), macs.tolist(), strict=True)}
    known = curve(kind, SITE, points)
    between = np.array([[9, 12]])
    spots = coordinates(kind, SITE, between, by_macs=True)
    assert known.by_macs and known.at(spots)[0] == pytest.approx(kind.costs(SITE, between)[1][0] / 1e6)


def test_structures_have_curves_of_their_own() -> None:
    kind: AnyDecomposition = TYPES["grouped_svd"]
    ranks = kind.options(SITE)
    groups = structures(kind, ranks)
    assert set(groups) == {(g,) for g in np.unique(ranks[:, 0])} and sum(map(len, groups.values())) == len(ranks)
    times = Times(lambda rank: rank[0] / 10 + rank[1] / 100)
    for rows in groups.values():
        known = curve(kind, SITE, measured_curve(kind, SITE, ranks[rows], times))
        predicted = known.at(coordinates(kind, SITE, ranks[rows], by_macs=known.by_macs))
        assert predicted == pytest.approx([times.ratio(tuple(rank)) for rank in ranks[rows].tolist()])


def test_one_option_is_one_point() -> None:
    times = Times(lambda rank: 0.5)
    kind = TYPES["svd"]
    points = measured_curve(kind, SITE, np.array([[7]]), times)
    assert [*points] == [(7,)] and curve(kind, SITE, points).at(np.array([[1.0], [7.0], [90.0]])) == pytest.approx([0.5] * 3)


def test_values_beyond_the_points_are_those_at_the_end() -> None:
    points = {(4,): Interval(0.2, 0.1, 0.3), (8,): Interval(0.4, 0.3, 0.6)}
    known = curve(TYPES["svd"], SITE, points)
    assert known.at(np.array([[1.0], [6.0], [99.0]])) == pytest.approx([0.2, 0.3, 0.4])
    assert known.at(np.array([[6.0]]), "low") == pytest.approx([0.2]) and known.at(np.array([[6.0]]), "high") == pytest.approx([0.45])


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 4, 2)])
def test_monotone_values_nowhere_fall_and_keep_what_rises(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    values = generator.random(shape)
    fixed = monotone(values)
    assert all((np.diff(fixed, axis=axis) >= 0).all() for axis in range(len(shape)))
    assert values.min() <= fixed.min() and fixed.max() <= values.max()
    assert np.array_equal(monotone(fixed), fixed)
    rising = np.cumsum(values.reshape(-1)).reshape(shape) if len(shape) == 1 else sum(np.indices(shape)).astype(float)
    assert np.array_equal(monotone(rising), rising)
