"""What people ask of networks, on frames of a few rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from ranksearch.errors import InvalidArgument
from ranksearch.results.questions import best_row, diff, knee_row, spared, swept


def test_the_best_row_is_the_cheapest_of_those_that_are_best() -> None:
    rows = pd.DataFrame({"loss": [0.3, 0.1, 0.1, np.nan], "macs": [1, 5, 4, 0]})
    assert best_row(rows, "loss", "min", "macs") == 2 and best_row(rows, "loss", "max", "macs") == 0
    assert best_row(rows.iloc[3:], "loss", "min", "macs") is None and best_row(rows.iloc[:0], "loss", "min", "macs") is None


def test_the_knee_row_bulges_most_whatever_the_directions() -> None:
    rows = pd.DataFrame({"accuracy": [0.1, 0.9, 1.0, np.nan], "macs": [0, 2, 10, 1]})
    assert knee_row(rows, {"accuracy": "max", "macs": "min"}) == 1
    with pytest.raises(InvalidArgument):
        knee_row(rows.iloc[3:], {"accuracy": "max", "macs": "min"})


def test_swept_rows_are_missing_where_there_is_none() -> None:
    front = pd.DataFrame({"id": ["a", "b"], "macs": [10, 20], "accuracy": [0.5, 0.75], "on_front": [True, False]}, index=[7, 9])
    found = swept(front, [("macs", 0.5), ("macs", 0.1), ("params", 0.9)], [1, None, 0])
    assert found.columns.tolist() == ["cost", "budget", "id", "macs", "accuracy", "on_front"] and found.index.tolist() == [0, 1, 2]
    assert found["cost"].tolist() == ["macs", "macs", "params"] and found["budget"].tolist() == [0.5, 0.1, 0.9]
    assert found.loc[[0, 2], "id"].tolist() == ["b", "a"] and found.loc[[0, 2], "macs"].tolist() == [20, 10]
    assert found.loc[[0, 2], "on_front"].tolist() == [False, True] and found.loc[1, "id":"on_front"].isna().all()  # type: ignore[misc]
    assert (found["macs"].dtype, found["on_front"].dtype) == ("Int64", "boolean")
    nothing = swept(front.iloc[:0], [("macs", 0.5)], [None])
    assert nothing.columns.tolist() == found.columns.tolist() and len(nothing) == 1 and nothing.loc[0, "id":"on_front"].isna().all()  # type: ignore[misc]


def layers(decomposition: list[str], rank: list[str], params: list[int], error: list[float], *, sites: tuple[str, ...] = ("b", "a")) -> Any:
    count = len(decomposition)
    return pd.DataFrame(
        {
            "site": pd.Categorical([sites[i % len(sites)] for i in range(count)], categories=list(sites)), "decomposition": decomposition,
            "rank": rank, "description": [f"of {each}" for each in rank], "params": params, "params_rel": np.array(params) / 100,
            "relative_error": error,
        }
    )  # fmt: skip


def test_diff_says_what_changed_of_every_site() -> None:
    before = layers(["dense", "svd"], ["", "3"], [100, 60], [0.0, 0.25])
    found = diff(before, layers(["svd", "svd"], ["4", "3"], [40, 60], [0.5, 0.25]))
    assert found["site"].tolist() == ["b", "a"] and found["changed"].tolist() == [True, False]
    assert found["decomposition_before"].tolist() == ["dense", "svd"] and found["decomposition_after"].tolist() == ["svd", "svd"]
    assert found["description_after"].tolist() == ["of 4", "of 3"] and found["params_before"].tolist() == [100, 60]
    assert found["params_change"].tolist() == [-60, 0] and found["relative_error_change"].tolist() == [0.5, 0.0]
    assert found["rank_before"].dtype == found["site"].dtype == "string"
    again = diff(before, layers(["dense", "svd"], ["", "2"], [100, 60], [0.0, 0.25]))
    assert again["changed"].tolist() == [False, True], "the same type at another rank is another choice"


def test_spared_counts_how_networks_treat_every_site() -> None:
    """Three networks of two sites, and a third site of none; of types that are as frequent the first of the alphabet is named."""
    found = spared(
        layers(
            ["dense", "svd", "dense", "spatial", "dense", "svd"], ["", "1", "", "2", "", "3"], [100, 10, 100, 20, 100, 30],
            [0.0, 0.3, 0.0, 0.1, 0.0, 0.2],
        ).astype({"site": pd.CategoricalDtype(["b", "a", "c"])})
    )  # fmt: skip
    assert found["site"].tolist() == ["b", "a", "c"] and found["networks"].tolist() == [3, 3, 0]
    assert found["spared"].tolist()[:2] == [1.0, 0.0] and found["always"].tolist() == [True, False, False]
    assert found["params_rel"].tolist()[:2] == pytest.approx([1.0, 0.2])
    assert found["relative_error"].tolist()[:2] == pytest.approx([0.0, 0.2])
    assert found["decomposition"].isna().tolist() == [True, False, True] and found["decomposition"].iloc[1] == "svd"
    tied = spared(layers(["dense", "svd", "dense", "spatial"], ["", "1", "", "2"], [100, 10, 100, 20], [0.0, 0.3, 0.0, 0.1]))
    assert tied["decomposition"].iloc[1] == "spatial"
