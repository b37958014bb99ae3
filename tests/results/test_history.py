"""What every evaluation added to the hypervolume, against the hypervolume of all so far."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ranksearch.errors import InvalidArgument
from ranksearch.results.frames import DENSE_ID, typed
from ranksearch.results.history import finder, history
from ranksearch.results.pareto import gains, hypervolume, non_dominated, relative_hypervolume

OBJECTIVES: Any = {"accuracy": "max", "macs": "min"}


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_gains_add_up_to_the_hypervolume_of_every_beginning(columns: int) -> None:
    points = np.random.default_rng(columns).random((1200, columns)) * 1.3  # more than one block; some beyond the reference
    points[::50] = points[3]
    points[7] = np.nan
    found = gains(points)
    assert (found >= 0).all()
    for count in (1, 8, 60, 700, 1200):
        expected = hypervolume(points[:count], np.ones(columns), ["min"] * columns)
        assert found[:count].sum() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert gains(np.zeros((0, columns))).shape == (0,)


def frame(rows: list[tuple]) -> pd.DataFrame:
    columns = ("id", "fidelity", "seed", "status", "macs", "accuracy", "origin", "seconds", "created")
    values = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    found: dict[str, Any] = {name: typed(name, column) for name, column in values.items()}
    return pd.DataFrame(found | {"macs_rel": np.array(values["macs"]) / 100.0, "accuracy_delta": 0.0})


def at(second: int) -> str:
    return f"2026-01-01T00:00:{second:02d}+00:00"


def test_history() -> None:
    rows = [
        (DENSE_ID, "full", 0, "done", 100, 0.9, "dense", 2.0, at(2)),
        ("a", "full", 0, "done", 50, 0.8, "additive:energy:macs<=0.5", 1.0, at(4)),
        ("b", "full", 1, "done", 50, 0.1, "nsga2", 1.0, at(5)),  # another seed, without a dense network
        ("c", "full", 0, "failed", 10, math.nan, "nsga2", 1.0, at(6)),
        ("d", "full", 0, "done", 60, 0.7, "nsga2", 1.0, at(7)),  # beaten by a
        ("e", "full", 0, "done", 20, 0.6, "additive:energy:macs<=0.2", 1.0, at(8)),
    ]  # fmt: skip
    every = frame(rows)
    found = history(every, OBJECTIVES)
    assert found["number"].tolist() == [1, 2, 1, 3, 4, 5]
    assert found["elapsed"].tolist() == [2, 4, 1, 6, 7, 8]  # from when the first began
    mine = found[found["seed"] == 0]
    values = every.loc[every["seed"] == 0, ["accuracy", "macs"]].to_numpy()
    for count in range(1, 6):
        expected = relative_hypervolume(values[:count], values[0], ["max", "min"], [False, True])
        assert mine["hypervolume"].iloc[count - 1] == pytest.approx(expected, abs=1e-12)
    assert mine["gain"].tolist()[0] == mine["gain"].tolist()[2] == mine["gain"].tolist()[3] == 0 < mine["gain"].iloc[4]
    assert found.loc[found["seed"] == 1, ["hypervolume", "gain"]].isna().all(axis=None)
    by_finder = mine.groupby("finder", observed=True)["gain"].sum()
    assert by_finder["additive:energy"] == pytest.approx(mine["hypervolume"].iloc[-1]) and by_finder["nsga2"] == 0
    assert mine["on_front"].tolist() == non_dominated(values, ["max", "min"]).tolist() and found["on_front"].iloc[2]


def test_no_evaluations_and_no_objectives() -> None:
    one = history(frame([(DENSE_ID, "f", 0, "done", 1, 1, "", 1, at(1))]), OBJECTIVES)
    assert list(history(frame([]), OBJECTIVES).columns) == list(one.columns) and len(one) == 1
    for wrong in ({}, {"f1": "max"}):
        with pytest.raises(InvalidArgument, match="known are: accuracy, macs"):
            history(frame([]), wrong)


@pytest.mark.parametrize(
    ("origin", "name"),
    [("additive:energy:macs<=0.5", "additive:energy"), ("nsga2", "nsga2"), ("", ""), ("supernet-joint-0f", "supernet-joint-0f")],
)
def test_finder(origin: str, name: str) -> None:
    assert finder(origin) == name
