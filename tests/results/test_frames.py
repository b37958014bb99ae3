"""Evaluations, fronts and layers as tidy frames."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from ranksearch.errors import InvalidArgument
from ranksearch.results import frames
from ranksearch.results.conditions import Condition
from ranksearch.sites import Cost
from ranksearch.space import DENSE, Configuration
from ranksearch.store import Record

BASELINE = Cost(params=100, macs=1000)
METRICS = (("accuracy", "max"), ("loss", "min"))
OBJECTIVES = {"accuracy": "max", "macs": "min"}
START = datetime(2026, 1, 1, tzinfo=UTC)


def record(configuration, params: int, macs: int, accuracy: float, *, seed: int = 0, fidelity: str = "full", **other) -> Record:
    values = {"status": "done", "metrics": {"accuracy": accuracy, "loss": 1 - accuracy}, "seconds": 2.0, "origin": "test"} | other
    costs = {"params": params, "macs": macs}
    return Record(configuration.id, configuration.to_json(), fidelity, seed, costs=costs, created=START, **values)


A = Configuration({"a": ("svd", (8,)), "b": ("tucker2", (4, 6))})
B = Configuration({"a": ("svd", (4,))})
C = Configuration({"b": ("svd", (2,))})
D = Configuration({"b": ("svd", (1,))})
RECORDS = [
    record(DENSE, 100, 1000, 0.9),
    record(A, 50, 400, 0.8, seed=0),
    record(A, 50, 400, 0.9, seed=1, seconds=4.0),
    record(B, 40, 500, 0.7),  # dominated by A
    record(C, 30, 300, 0.6),
    record(D, 20, 200, 0.0, status="failed", metrics={}, error="RuntimeError: no", error_kind="code"),
]


def evaluations(records=RECORDS) -> pd.DataFrame:
    return frames.evaluations(records, BASELINE, METRICS)


def test_evaluations() -> None:
    frame = evaluations()
    assert list(frame.columns) == [
        "id", "fidelity", "seed", "status", "params", "macs", "params_rel", "macs_rel", "accuracy", "accuracy_delta", "loss", "loss_delta",
        "factorized", "seconds", "origin", "error", "error_kind", "created",
    ]  # fmt: skip
    assert frame["id"].tolist() == [r.configuration_id for r in RECORDS]
    assert frame["macs_rel"].tolist() == [1.0, 0.4, 0.4, 0.5, 0.3, 0.2]
    assert frame["params_rel"].tolist() == [1.0, 0.5, 0.5, 0.4, 0.3, 0.2]
    assert frame["accuracy_delta"].tolist()[:5] == pytest.approx([0, -0.1, 0, -0.2, -0.3])
    assert frame["loss_delta"].tolist()[:5] == pytest.approx([0, 0.1, 0, 0.2, 0.3])
    assert math.isnan(frame["accuracy"].iloc[5]) and math.isnan(frame["accuracy_delta"].iloc[5])
    assert frame["factorized"].tolist() == [0, 2, 2, 1, 1, 1]
    assert frame["error"].isna().tolist() == [True] * 5 + [False]
    assert frame["created"].iloc[0] == pd.Timestamp(START)


def test_delta_is_within_a_fidelity_and_over_the_seeds_of_dense() -> None:
    frame = evaluations([
        record(DENSE, 100, 1000, 0.9, fidelity="long"), record(DENSE, 100, 1000, 0.8, fidelity="long", seed=1),
        record(A, 50, 400, 0.8, fidelity="long"), record(A, 50, 400, 0.8, fidelity="short"),
    ])  # fmt: skip
    assert frame["accuracy_delta"].tolist()[:3] == pytest.approx([0.05, -0.05, -0.05])
    assert math.isnan(frame["accuracy_delta"].iloc[3])


def test_types_do_not_depend_on_the_rows() -> None:
    empty, full = evaluations([]), evaluations()
    assert len(empty) == 0 and list(empty.columns) == list(full.columns)
    assert empty.dtypes.tolist() == full.dtypes.tolist()
    empty, full = frames.front(empty, OBJECTIVES), frames.front(full, OBJECTIVES)
    assert len(empty) == 0 and list(empty.columns) == list(full.columns)
    assert empty.dtypes.tolist() == full.dtypes.tolist()
    empty, full = frames.layers([]), frames.layers(RECORDS)
    assert len(empty) == 0 and empty.dtypes.tolist() == full.dtypes.tolist() and list(empty.columns) == list(frames.LAYER_COLUMNS)


def test_front() -> None:
    frame = evaluations()
    before = frame.copy()
    front = frames.front(frame, OBJECTIVES)
    assert list(front.columns) == [
        "id", "fidelity", "seeds", "params", "macs", "params_rel", "macs_rel", "accuracy", "accuracy_delta", "loss", "loss_delta",
        "factorized", "seconds", "origin", "is_dense", "on_front",
    ]  # fmt: skip
    assert front["id"].tolist() == [C.id, A.id, DENSE.id]  # by MACs; B is dominated, D failed
    assert front["seeds"].tolist() == [1, 2, 1]
    assert front["accuracy"].tolist() == pytest.approx([0.6, 0.85, 0.9])
    assert front["accuracy_delta"].tolist() == pytest.approx([-0.3, -0.05, 0.0])
    assert front["seconds"].tolist() == [2.0, 3.0, 2.0]
    assert front["is_dense"].tolist() == [False, False, True] and front["on_front"].all()
    pd.testing.assert_frame_equal(frame, before)


def test_dominated_rows_on_request() -> None:
    front = frames.front(evaluations(), OBJECTIVES, dominated=True)
    assert front[["id", "on_front"]].values.tolist() == [[C.id, True], [A.id, True], [B.id, False], [DENSE.id, True]]


def test_dense_is_a_row_even_when_dominated() -> None:
    front = frames.front(evaluations([record(DENSE, 100, 1000, 0.9), record(A, 50, 400, 0.95)]), OBJECTIVES)
    assert front[["id", "is_dense", "on_front"]].values.tolist() == [[A.id, False, True], [DENSE.id, True, False]]


def test_condition_comes_before_domination() -> None:
    # A breaks the condition, so it no longer dominates B
    condition = Condition.parse("params <= 0.4 and accuracy > 0.7 * baseline")
    front = frames.front(evaluations(), OBJECTIVES, condition, {"params": 100, "macs": 1000})
    assert front[["id", "on_front"]].values.tolist() == [[B.id, True], [DENSE.id, False]]
    assert frames.front(evaluations(), OBJECTIVES, Condition.parse("macs_rel < 0.35"))["on_front"].sum() == 1


def test_dense_that_was_not_evaluated() -> None:
    frame = evaluations([record(A, 50, 400, 0.8)])
    assert frames.front(frame, OBJECTIVES)["id"].tolist() == [A.id]
    given = {"params": 100, "macs": 1000, "accuracy": 0.9, "loss": 0.1}
    front = frames.front(frame, OBJECTIVES, baseline=given)
    assert front[["id", "seeds", "accuracy", "on_front"]].values.tolist() == [[A.id, 1, 0.8, True], [DENSE.id, 0, 0.9, True]]
    (dense,) = front[front["is_dense"]].to_dict("records")
    assert dense["accuracy_delta"] == dense["loss_delta"] == 0.0 and dense["macs_rel"] == dense["params_rel"] == 1.0
    small = frames.front(frame, OBJECTIVES, Condition.parse("macs <= 0.5"), given)
    assert small[["id", "is_dense", "on_front"]].values.tolist() == [[A.id, False, True], [DENSE.id, True, False]]
    with pytest.raises(InvalidArgument, match="not known yet"):
        frames.front(frame, OBJECTIVES, Condition.parse("accuracy > baseline"))


def test_a_seed_without_the_metric_is_not_passed_over() -> None:
    frame = evaluations([record(A, 50, 400, 0.8), record(A, 50, 400, 0.8, seed=1, metrics={"accuracy": 0.9}), record(B, 40, 500, 0.7)])
    front = frames.front(frame, {"loss": "min"}, dominated=True)
    assert front["id"].tolist() == [A.id, B.id] and front["on_front"].tolist() == [False, True]
    assert math.isnan(front["loss"].iloc[0]) and front["accuracy"].iloc[0] == pytest.approx(0.85)


def test_one_fidelity() -> None:
    frame = evaluations([record(A, 50, 400, 0.8), record(B, 40, 300, 0.9, fidelity="short")])
    with pytest.raises(InvalidArgument, match="full, short"):
        frames.front(frame, OBJECTIVES)
    assert frames.front(frame, OBJECTIVES, fidelity="short")["id"].tolist() == [B.id]
    assert len(frames.front(frame, OBJECTIVES, fidelity="none")) == 0


@pytest.mark.parametrize("objectives", [{}, {"acuracy": "max"}, {"id": "min"}, {"accuracy": "up"}])
def test_objectives_that_do_not_exist(objectives) -> None:
    with pytest.raises(InvalidArgument, match=r"objectives|directions"):
        frames.front(evaluations(), objectives)


def test_condition_on_an_unknown_metric() -> None:
    for frame in (evaluations(), evaluations([])):
        with pytest.raises(InvalidArgument, match="unknown acuracy; known are: accuracy, loss, params, macs"):
            frames.front(frame, OBJECTIVES, Condition.parse("acuracy > 0.5"))


@pytest.mark.parametrize("metrics", [[("seed", "min")], [("a", "max"), ("a", "max")], [("a", "up")], [("a", "max"), ("a_delta", "max")]])
def test_metrics_that_clash(metrics) -> None:
    with pytest.raises(InvalidArgument, match="metrics"):
        frames.evaluations([], BASELINE, metrics)


def test_layers() -> None:
    frame = frames.layers(RECORDS)
    rows_of_a = [[A.id, "a", "svd", "8"], [A.id, "b", "tucker2", "4x6"]]
    assert set(frame.pop("description")) == {""}
    assert frame.values.tolist() == [*rows_of_a, [B.id, "a", "svd", "4"], [C.id, "b", "svd", "2"], [D.id, "b", "svd", "1"]]
    assert frames.layers(RECORDS[3:4], sites=["a", "b"]).values.tolist() == [[B.id, "a", "svd", "4", ""], [B.id, "b", "dense", "", ""]]
    spelled = frames.layers(RECORDS[3:4], sites=["a", "b"], describe=lambda site, name, rank: f"{site}:{name}:{rank}")
    assert spelled["description"].tolist() == ["a:svd:(4,)", "b:dense:()"]


def test_the_docstring_tables_are_the_columns() -> None:
    def spelled(columns) -> list[str]:
        return [c for name in columns for c in ([name, f"{name}_delta"] if name == frames.METRICS else [name])]

    blocks = [block.split("\n\n")[0] for block in (frames.__doc__ or "").split("| --- | --- | --- |\n")[1:]]
    documented = [[line.split("|")[1].strip() for line in block.splitlines() if line.startswith("|")] for block in blocks]
    assert documented == [spelled(frames.EVALUATION_COLUMNS), spelled(frames.FRONT_COLUMNS), spelled(frames.LAYER_COLUMNS)]


def test_frames_survive_csv_and_json() -> None:
    front = frames.front(evaluations(), OBJECTIVES)
    assert len(front.to_csv(index=False).splitlines()) == 4
    assert [row["id"] for row in json.loads(front.to_json(orient="records"))] == front["id"].tolist()


def test_many_records_are_quick() -> None:
    records = [record(Configuration({"a": ("svd", (i,))}), 10, i, i / 2000) for i in range(1, 2001)]
    start = datetime.now(UTC)
    assert len(frames.front(evaluations(records), OBJECTIVES)) == 2000
    assert datetime.now(UTC) - start < timedelta(seconds=20)
