"""Comparisons of runs, against counts by hand and scipy's own interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from ranksearch.errors import InvalidArgument
from ranksearch.results.compare import Run, comparison, interval, runs
from ranksearch.results.frames import DENSE_ID, evaluations
from ranksearch.results.pareto import relative_hypervolume

OBJECTIVES: Any = {"accuracy": "max", "macs": "min"}


def run(seed: int, *points: tuple[float, float]) -> Run:
    values = np.array([(1.0, 100.0), *points])
    return Run(seed, values, values[0], values[:, 0], values[:, 1] / 100)


def compared(a: list[Run], b: list[Run], budgets: tuple[float, ...] = (0.5, 0.05)) -> dict[Any, dict[str, Any]]:
    frame = comparison(a, b, OBJECTIVES, ["macs"], metric="accuracy", direction="max", budgets=budgets)
    return {row["measure"] if math.isnan(row["budget"]) else row["budget"]: row for row in frame.to_dict("records")}


def test_one_seed_each() -> None:
    a, b = run(0, (0.9, 50), (0.6, 20)), run(0, (0.8, 50), (0.6, 10))
    found = compared([a], [b])
    for side, one in (("a", a), ("b", b)):
        assert found["hypervolume"][side] == relative_hypervolume(one.values, one.dense, ["max", "min"], [False, True])
    # a's front has something as good for the dense network and (0.8, 50), not for (0.6, 10); b's for the dense one and (0.6, 20)
    assert (found["coverage"]["a"], found["coverage"]["b"]) == pytest.approx((2 / 3, 2 / 3))
    assert (found[0.5]["a"], found[0.5]["b"], found[0.5]["seeds_a"]) == (0.9, 0.8, 1)
    assert found[0.5]["difference"] == pytest.approx(0.1) and math.isnan(found[0.5]["low"])
    assert math.isnan(found[0.05]["a"]) and found[0.05]["seeds_b"] == 0


def test_measures_are_categories_and_the_rest_are_numbers() -> None:
    frame = comparison([run(0, (0.9, 50))], [run(0, (0.8, 50))], OBJECTIVES, ["macs"], metric="accuracy", direction="max", budgets=(0.5,))
    assert [name for name, kind in frame.dtypes.items() if kind == "category"] == ["measure"]
    assert all(kind.kind in "if" for name, kind in frame.dtypes.items() if name != "measure")


def test_intervals_are_welchs_over_seeds() -> None:
    rng = np.random.default_rng(0)
    a, b = ([run(seed, (float(value), 40.0)) for seed, value in enumerate(0.8 + 0.1 * rng.random(n))] for n in (3, 5))
    row = compared(a, b)[0.5]
    left, right = ([one.metric[1] for one in side] for side in (a, b))
    expected = stats.ttest_ind(left, right, equal_var=False).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["a"] == pytest.approx(np.mean(left)) and (row["seeds_a"], row["seeds_b"]) == (3, 5)
    assert interval([1.0, 1.0], [0.5, 0.5]) == (0.5, 0.5) and all(map(math.isnan, interval([1.0], [0.5, 0.6])))


def test_the_best_of_a_metric_of_which_less_is_better_is_the_least() -> None:
    sides = [[run(0, (first, 40), (0.25, 45), (0.1, 90))] for first in (0.5, 0.125)]
    frame = comparison(*sides, {"loss": "min", "macs": "min"}, ["macs"], metric="loss", direction="min", budgets=(0.5,))
    (row,) = frame[frame["measure"] == "loss"].to_dict("records")
    assert (row["a"], row["b"], row["difference"]) == (0.25, 0.125, 0.125)


def test_nothing_covers_what_has_no_objective_left() -> None:
    """The dense network has none of the only cost, so that there are no shares of it."""
    none = Run(0, np.zeros((2, 1)), np.zeros(1), np.ones(2), np.ones(2))
    frame = comparison([none], [none], {"launches": "min"}, ["launches"], metric="loss", direction="min", budgets=())
    (row,) = frame[frame["measure"] == "coverage"].to_dict("records")
    assert math.isnan(row["a"]) and math.isnan(row["b"])


def test_runs_are_the_seeds_of_a_frame() -> None:
    ids = [DENSE_ID, "a", DENSE_ID, "b", "c", "d"]
    facts = {
        "configuration_id": ids, "fidelity": ["f"] * 6, "seed": [0, 0, 1, 1, 2, 2], "status": ["done"] * 5 + ["failed"],
        "metrics": [f'{{"accuracy": {value}}}' for value in (0.9, 0.8, 0.7, 0.6, 0.5)] + ["{}"], "params": [1] * 6,
        "macs": [100, 50, 100, 40, 30, 20], "costs": [None] * 6, "seconds": [1.0] * 6, "origin": ["x"] * 6,
    }  # fmt: skip
    frame = evaluations(facts, {"params": 1, "macs": 100}, [("accuracy", "max")])
    found = runs(frame, ["accuracy", "macs"], "accuracy", "macs")
    assert [one.seed for one in found] == [0, 1, 2] and found[1].share.tolist() == [1.0, 0.4]
    assert [one.dense.tolist() for one in found] == [[0.9, 100], [0.7, 100], pytest.approx([0.8, 100])]  # a seed without it: the mean
    assert len(found[2].values) == 1
    with pytest.raises(InvalidArgument, match="dense network has no finished"):
        runs(frame[frame["id"] != DENSE_ID], ["accuracy"], "accuracy", "macs")
