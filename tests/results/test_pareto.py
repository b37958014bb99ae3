"""Domination, hypervolume and knee against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranksearch.errors import InvalidArgument
from ranksearch.results.pareto import fronts, growths, hypervolume, knee, non_dominated, relative_hypervolume, spread_front

# small integers, so that ties and duplicates are common
points = st.integers(1, 4).flatmap(
    lambda m: st.tuples(
        st.lists(st.lists(st.one_of(st.integers(0, 5), st.just(math.nan)), min_size=m, max_size=m), max_size=12),
        st.lists(st.sampled_from(["min", "max"]), min_size=m, max_size=m),
    )
)


def dominates(a, b, directions) -> bool:
    signs = [1 if d == "min" else -1 for d in directions]
    pairs = [(s * x, s * y) for s, x, y in zip(signs, a, b, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


@given(points)
@settings(max_examples=200, deadline=None)
def test_non_dominated_is_the_definition(case) -> None:
    rows, directions = case
    sound = [not any(math.isnan(x) for x in row) for row in rows]
    expected = [
        ok and not any(dominates(other, row, directions) for other, fine in zip(rows, sound, strict=True) if fine)
        for row, ok in zip(rows, sound, strict=True)
    ]
    assert non_dominated(rows, directions).tolist() == expected


@given(points)
@settings(max_examples=100, deadline=None)
def test_hypervolume_counts_unit_cells(case) -> None:
    rows, directions = case
    m = len(directions)
    worst = [5 if d == "min" else 0 for d in directions]
    cells = 0
    for cell in itertools.product(range(5), repeat=m):  # the unit cell [c, c+1] in every column
        corner = [c if d == "min" else c + 1 for c, d in zip(cell, directions, strict=True)]
        cells += any(
            all(x <= c if d == "min" else x >= c for x, c, d in zip(row, corner, directions, strict=True)) for row in rows
        )
    assert hypervolume(rows, worst, directions) == pytest.approx(cells, abs=1e-9)


def test_duplicates_are_kept_and_inputs_untouched() -> None:
    values = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0], [0.0, 9.0]])
    before = values.copy()
    assert non_dominated(values, ["min", "min"]).tolist() == [True, True, False, True]
    hypervolume(values, [10, 10], ["min", "min"])
    knee(values, ["min", "min"])
    assert (values == before).all()


def test_infinities() -> None:
    assert non_dominated([[math.inf, 1], [0, 2], [-math.inf, 3]], ["min", "min"]).tolist() == [True, True, True]
    assert non_dominated([[5, math.inf, 5], [2, 1, 1]], ["min", "max", "min"]).tolist() == [True, True]
    rows = [[0, 1e-320, math.inf, 1e300], [0, 1e-320, math.inf, math.inf], [2, 0, 0, 1e-320]]
    assert non_dominated(rows, ["min"] * 4).tolist() == [True, False, True]
    assert hypervolume([[math.inf, 0], [1, 1]], [2, 2], ["min", "min"]) == 1
    with pytest.raises(InvalidArgument, match="infinite"):
        hypervolume([[-math.inf, 0]], [2, 2], ["min", "min"])


def test_empty() -> None:
    assert non_dominated([], ["min", "max"]).shape == (0,)
    assert hypervolume([], [1, 1], ["min", "max"]) == 0.0
    with pytest.raises(InvalidArgument, match="no knee"):
        knee([], ["min", "max"])


@pytest.mark.parametrize("directions", [[], "min", ["min"], ["min", "less"], ["min", "min", "min"]])
def test_directions_that_do_not_fit(directions) -> None:
    with pytest.raises(InvalidArgument, match="direction"):
        non_dominated([[1, 2]], directions)


@pytest.mark.parametrize("reference", [[1], [1, 2, 3], [math.nan, 1], [math.inf, 1]])
def test_reference_that_does_not_fit(reference) -> None:
    with pytest.raises(InvalidArgument):
        hypervolume([[0, 0]], reference, ["min", "min"])


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=15))
@settings(max_examples=200, deadline=None)
def test_knee_of_two_objectives_is_farthest_from_the_chord(rows) -> None:
    front = [r for r in rows if not any(dominates(o, r, ["min", "min"]) for o in rows)]
    index = knee(rows, ["min", "min"])
    assert rows[index] in front
    (x0, y0), (x1, y1) = min(front), max(front)
    if x0 == x1 or y0 == y1:
        return

    def depth(row) -> float:  # below the chord, in the scaled picture where both spans are 1
        return 1 - (row[0] - x0) / (x1 - x0) - (row[1] - y1) / (y0 - y1)

    assert depth(rows[index]) == pytest.approx(max(map(depth, front)), abs=1e-9)


def test_knee_of_known_fronts() -> None:
    # accuracy against macs: the gain flattens after the third row; the last row is dominated
    values = [[0.1, 0.50], [0.2, 0.80], [0.3, 0.93], [0.6, 0.95], [1.0, 0.96], [0.9, 0.10]]
    assert knee(values, ["min", "max"]) == 2
    assert knee([[1, 5], [2, 4]], ["min", "min"]) == 0  # no bulge: the first extreme
    assert knee([[3, 3], [3, 3]], ["min", "min"]) == 0
    assert knee([[math.nan, 0], [2, 2]], ["min", "min"]) == 1
    ball = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.3, 0.3, 0.3]]
    assert knee(ball, ["min"] * 3) == 3


def test_a_hyperplane_that_falls_with_an_objective_is_no_measure_of_a_bulge() -> None:
    """The best rows of the objectives span one with intercepts of both signs; by the sum of what is scaled the second row is least."""
    assert knee([[0, 9, 4], [1, 6, 1], [8, 3, 1], [5, 1, 8], [6, 3, 6]], ["min"] * 3) == 1


def test_knee_ignores_units() -> None:
    values = np.array([[1.0, 9.0], [2.0, 4.0], [5.0, 2.0], [9.0, 1.0]])
    assert knee(values, ["min", "min"]) == knee(values * [1e9, 1e-3], ["min", "min"]) == 1
    flipped = values * [1, -1]
    assert knee(flipped, ["min", "max"]) == 1


def test_knee_does_not_depend_on_where_the_units_begin() -> None:
    """The third row lies behind the plane through the other three, the best of each objective: no bulge, so the first extreme."""
    values = np.array([[1.0, 9.0, 11.0], [8.0, 3.0, 10.0], [5.0, 11.0, 9.0], [11.0, 4.0, 6.0]])
    scaled = (values - values.min(axis=0)) / np.ptp(values, axis=0)
    normal = np.linalg.solve(scaled[[0, 1, 3]], np.ones(3))
    assert (normal > 0.3).all() and scaled[2] @ normal > 1.1
    for shift in ([0.0, 0.0, 0.0], [-14.0, -14.0, -14.0], [100.0, -3.0, 0.5]):
        assert knee(values + shift, ["min"] * 3) == 0
    assert knee(np.column_stack([values, np.full(4, 7.0)]), ["min"] * 4) == 0  # an objective that is constant takes no part


@given(st.lists(st.tuples(st.floats(0.01, 2), st.floats(0.01, 2), st.floats(0.01, 2)), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_relative_hypervolume_is_the_share_of_the_dense_networks_box(rows) -> None:
    """Against a count of points: accuracy, loss and MACs of dense are 0.8, 0.5 and 2000."""
    dense = np.array([0.8, 0.5, 2000.0])
    values = np.array([[0.8 * a, 0.5 * l, 2000.0 * m] for a, l, m in rows])
    found = relative_hypervolume(values, dense, ["max", "min", "min"], [False, False, True])
    # the same by inclusion and exclusion over the boxes, in units of the dense network's values
    boxes = np.array([[a, 2 - l, 1 - m] for a, l, m in rows])  # from the reference: accuracy 0, twice the loss, all the costs
    boxes = boxes[(boxes > 0).all(axis=1)]
    expected = 0.0
    for size in range(1, len(boxes) + 1):
        expected += sum((-1) ** (size + 1) * math.prod(np.min(chosen, axis=0)) for chosen in itertools.combinations(boxes, size))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_relative_hypervolume_of_dense_alone_is_nothing_and_no_loss_at_no_cost_is_all() -> None:
    assert relative_hypervolume([[0.9, 10.0]], [0.9, 10.0], ["max", "min"], [False, True]) == 0.0
    assert relative_hypervolume([[0.9, 0.0]], [0.9, 10.0], ["max", "min"], [False, True]) == pytest.approx(1.0)
    assert relative_hypervolume([[-0.5, 5.0]], [-1.0, 10.0], ["max", "min"], [False, True]) == pytest.approx(0.75)  # a negative metric
    assert relative_hypervolume([[0.5, 5.0]], [0.0, 10.0], ["max", "min"], [False, True]) == pytest.approx(0.75)  # one of 0


def test_a_spread_front_begins_with_the_most_hypervolume_and_has_no_row_twice() -> None:
    assert spread_front([], 3) == []
    # scaled to [0, 1]: the middle of the front dominates most, then the ends; the last two rows are beaten or a copy
    values = [[0.0, 10.0], [4.0, 3.0], [4.2, 2.9], [10.0, 0.0], [6.0, 9.0], [4.0, 3.0]]
    assert spread_front(values, 1) == [1]
    assert spread_front(values, 3)[0] == 1 and set(spread_front(values, 3)) == {0, 1, 3}
    assert sorted(spread_front(values, 9)) == [0, 1, 2, 3]
    assert spread_front([[2.0, 7.0]], 2) == [0]  # one row has no range to be scaled by
    assert spread_front([[1.0, 0.0], [0.0, 1.0]], 1) == [0]  # of rows that add the same, the first
    assert sorted(spread_front([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], 3)) == [0, 1, 2]  # equal in one objective alone
    assert spread_front([[0.0, 1.0], [0.6, 0.6], [1.0, 0.0]], 1) == [1]  # the reference is a tenth beyond the ends, which count little


@pytest.mark.parametrize("size", [1, 2, 3])
def test_growths_are_differences_of_hypervolumes(size: int) -> None:
    rng, directions = np.random.default_rng(0), ["min"] * size
    for count in (0, 1, 2, 12):
        front, candidates = rng.uniform(-0.2, 1.3, (count, size)), rng.uniform(-0.2, 1.3, (30, size))
        candidates[:count] = front  # equal rows add nothing
        before = hypervolume(front, np.ones(size), directions)
        found = growths(front, candidates)
        expected = [hypervolume(np.vstack([front, row]), np.ones(size), directions) - before for row in candidates]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        assert (found[:count] <= 1e-12).all() and (found >= -1e-12).all() and (count == 12 or found.max() > 0)


def test_fronts_are_what_nothing_dominates_once_those_before_are_gone() -> None:
    values = np.array([[0.0, 3.0], [1.0, 1.0], [2.0, 2.0], [0.0, 3.0], [3.0, 3.0], [1.0, 2.0]])
    assert fronts(values, ["min", "min"]).tolist() == [0, 0, 2, 0, 3, 1]
    assert fronts(-values, ["max", "max"]).tolist() == [0, 0, 2, 0, 3, 1]
    assert fronts(values[:0], ["min", "min"]).tolist() == []
    with pytest.raises(InvalidArgument, match="finite"):
        fronts([[0.0, np.nan]], ["min", "min"])
