"""Evaluations, fronts and failures as tidy frames."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from ranksearch.errors import InvalidArgument, StoreError
from ranksearch.results import choices as chosen
from ranksearch.results import curves, frames, names
from ranksearch.results.conditions import Condition
from ranksearch.results.history import history
from ranksearch.sites import Cost
from ranksearch.space import DENSE, Configuration
from ranksearch.store import Damaged, Record, Store

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


def facts(records, columns=frames.FACTS, **options) -> dict:
    """What a store has of records."""
    with Store.open("sqlite://", study="s", fingerprint="f") as store:
        for each in records:
            assert store.add(each) or store.add_attempt(each)
        found = store.columns(columns, **options)
        known, counts = chosen.factorized(store.configurations())
    return found | {"factorized": counts[chosen.places(found["configuration_id"], known)]}


def evaluations(records=RECORDS) -> pd.DataFrame:
    return frames.evaluations(facts(records), BASELINE, METRICS)


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


def kinds(frame: pd.DataFrame) -> dict[str, str]:
    """Types of columns; categories are those of the rows."""
    return {str(name): "category" if isinstance(kind, pd.CategoricalDtype) else str(kind) for name, kind in frame.dtypes.items()}


def test_types_do_not_depend_on_the_rows() -> None:
    empty, full = evaluations([]), evaluations()
    assert len(empty) == 0 and kinds(empty) == kinds(full)
    assert kinds(full) | {"macs": "Int64", "macs_rel": "float64", "error": "string", "origin": "category"} == kinds(full)
    assert kinds(evaluations(RECORDS[5:])) == kinds(full)  # nothing finished
    assert kinds(frames.front(empty, OBJECTIVES)) == kinds(frames.front(full, OBJECTIVES))
    assert list(full["status"].cat.categories) == list(empty["status"].cat.categories) == ["done", "failed", "stopped"]
    of_failures = [frames.failures(facts(records, every_attempt=True), bool) for records in ([], RECORDS)]
    assert len(of_failures[0]) == 0 and kinds(of_failures[0]) == kinds(of_failures[1])


def test_costs_that_a_store_lacks_are_missing() -> None:
    baseline = Cost(params=100, macs=1000, bytes=400, joules=2.5)
    costs = {"params": 50, "macs": 400}
    records = [
        record(DENSE, 100, 1000, 0.9), replace(record(A, 50, 400, 0.8), costs={**costs, "bytes": 200, "joules": 0.1 + 0.2}),
    ]  # fmt: skip
    frame = frames.evaluations(facts(records), baseline, METRICS)
    assert kinds(frame) | {"bytes": "Int64", "joules": "float64"} == kinds(frame)
    assert frame["bytes"].isna().tolist() == [True, False] and frame["bytes"].iloc[1] == 200 and frame["bytes_rel"].iloc[1] == 0.5
    assert math.isnan(frame["joules"].iloc[0]) and frame["joules"].iloc[1] == 0.1 + 0.2  # to the last bit


def test_numbers_are_read_to_the_last_bit_and_others_refused() -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 123456789.123456789, 1e22]
    texts: list[str | None] = [json.dumps({"b": "text", "a": value}) for value in values]
    assert frames.numbers([*texts, "{}", None], {"a": False})["a"].tolist()[:-2] == values
    assert frames.numbers(['{"a": 9007199254740993}', "{}"], {"a": True})["a"].tolist() == [2**53 + 1, pd.NA]
    for bad in ('{"a": "x"}', "[1]", '{"a": 1', '{"a": 1}\n{"a": 2}'):
        with pytest.raises(StoreError, match="not what ranksearch wrote"):
            frames.numbers([bad, "{}"], {"a": False})


def test_large_integers_are_the_nearest_numbers_and_times_of_any_iso_form_are_of_utc() -> None:
    assert frames.floats(pa.array([2**53 + 1, None]))[0] == 2.0**53
    texts = ["2026-01-02T03:04:05.5+00:00", "20260102T040405.5+0100"]  # the second is none that Arrow reads
    assert frames._times(pa.array(texts)).tolist() == [pd.Timestamp("2026-01-02T03:04:05.5", tz="UTC")] * 2
    assert frames._times(pa.array(["20260102T030405"])).tolist() == [pd.Timestamp("2026-01-02T03:04:05", tz="UTC")]


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
    assert front["factorized"].tolist() == [2, 0] and front["origin"].tolist() == ["test", "baseline"]
    (dense,) = front[front["is_dense"]].to_dict("records")
    assert dense["accuracy_delta"] == dense["loss_delta"] == 0.0 and dense["macs_rel"] == dense["params_rel"] == 1.0
    small = frames.front(frame, OBJECTIVES, Condition.parse("macs <= 0.5"), given)
    assert small[["id", "is_dense", "on_front"]].values.tolist() == [[A.id, False, True], [DENSE.id, True, False]]
    with pytest.raises(InvalidArgument, match="not known yet"):
        frames.front(frame, OBJECTIVES, Condition.parse("accuracy > baseline"))


def test_a_front_has_the_categories_of_its_own_rows() -> None:
    frame = evaluations([*RECORDS[:3], record(B, 40, 500, 0.7, origin="beaten"), record(C, 1, 1, 0.1, fidelity="x")])
    front = frames.front(frame, OBJECTIVES, fidelity="full")
    assert list(front["origin"].cat.categories) == ["test"] and list(front["fidelity"].cat.categories) == ["full"]


def test_columns_that_evaluations_lack_are_not_asked_for_by_a_condition() -> None:
    frame = evaluations().drop(columns=["seconds", "error", "error_kind", "created"])
    front = frames.front(frame, OBJECTIVES, Condition.parse("accuracy > 0.7 * baseline and macs < 0.9"))
    assert front[["id", "on_front"]].values.tolist() == [[A.id, True], [DENSE.id, False]]


def test_what_ranksearch_did_not_write_is_damaged() -> None:
    for column, value in (("status", "running"), ("seed", 2**70), ("created", "yesterday")):
        found = {name: values.to_pylist() if isinstance(values, pa.Array) else values for name, values in facts(RECORDS[:2]).items()}
        found[column][1] = value
        with pytest.raises(Damaged, match="a row that ranksearch did not write"):
            frames.evaluations(found, BASELINE, METRICS)


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
        frames.evaluations(facts([]), BASELINE, metrics)


def test_failures() -> None:
    lost = record(B, 40, 500, 0.0, status="failed", metrics={}, error="killed", error_kind="machine", seed=1)
    again = replace(lost, error="killed again")
    records = [*RECORDS, lost, again, replace(record(D, 20, 200, 0.5), seed=0), record(C, 30, 300, 0, fidelity="x", status="failed")]
    frame = frames.failures(facts(records, every_attempt=True), lambda kind: kind != "configuration")
    rows = frame[["id", "seed", "attempt", "resolved", "retry", "error"]].astype(object).values.tolist()
    assert rows[:3] == [
        [D.id, 0, 1, True, False, "RuntimeError: no"], [B.id, 1, 1, False, False, "killed"], [B.id, 1, 2, False, True, "killed again"],
    ]  # fmt: skip
    assert frame["error_kind"].isna().tolist() == [False, False, False, True] and frame["fidelity"].tolist()[3] == "x"
    final = evaluations(records)
    assert final.loc[final["id"] == D.id, "status"].tolist() == ["done"]  # the attempt that counts
    assert final.loc[(final["id"] == B.id) & (final["seed"] == 1), "error"].tolist() == ["killed again"]


def test_scores_stand_beside_what_was_measured() -> None:
    records = [record(A, 50, 400, 0.8), record(A, 50, 400, 0.9, seed=1), record(B, 40, 500, 0.7), record(B, 40, 500, 0.6, fidelity="long")]
    scores = pd.DataFrame(
        [("energy", "full", A.id, 1.0), ("energy", "full", B.id, 2.0), ("slow", "full", B.id, 3.0), ("energy", "long", B.id, 2.0)],
        columns=["proxy", "fidelity", "id", "score"],
    )
    frame = frames.scored(evaluations([record(DENSE, 100, 1000, 0.9), *records]), scores)
    assert frame[["id", "fidelity", "seeds", "macs"]].values.tolist() == [
        [A.id, "full", 2, 400], [B.id, "full", 1, 500], [B.id, "long", 1, 500],
    ]  # fmt: skip
    assert frame["accuracy"].tolist() == pytest.approx([0.85, 0.7, 0.6]) and frame["score:energy"].tolist() == [1.0, 2.0, 2.0]
    assert frame["score:slow"].isna().tolist() == [True, False, True]


def test_curves_are_a_row_per_point_and_stopped_is_neither_done_nor_failed() -> None:
    stopped = record(A, 50, 400, 0.0, status="stopped", metrics={}, error="stopped early", curve=[(1, {"accuracy": 0.3})])
    done = record(B, 40, 500, 0.7, curve=[(1.0, {"accuracy": 0.4}), (3.0, {"accuracy": 0.5, "other": 1.0})])
    records = [done, stopped, record(C, 30, 300, 0.6)]
    found = curves.curves(facts(records, curves.FACTS), ["accuracy"])
    assert found.drop(columns=["fidelity", "seed"]).to_numpy().tolist() == [
        [B.id, "done", 1.0, 0.4], [B.id, "done", 3.0, 0.5], [A.id, "stopped", 1.0, 0.3],
    ]  # fmt: skip
    empty = curves.curves(facts([record(C, 30, 300, 0.6)], curves.FACTS), ["accuracy"])
    assert len(empty) == 0 and kinds(empty) == kinds(found)
    every = frames.evaluations(facts(records), {"params": 100, "macs": 1000}, [("accuracy", "max")])
    assert every["status"].tolist() == ["done", "stopped", "done"] and every["accuracy"].isna().tolist() == [False, True, False]
    assert len(frames.failures(facts(records, every_attempt=True), bool)) == 0


def test_every_frame_goes_to_parquet_and_back(tmp_path: Path) -> None:
    every = evaluations()
    scores = pd.DataFrame([("energy", "full", A.id, 1.0)], columns=["proxy", "fidelity", "id", "score"])
    made = {
        "evaluations": every, "front": frames.front(every, OBJECTIVES), "history": history(every, OBJECTIVES),
        "failures": frames.failures(facts(RECORDS, every_attempt=True), bool), "proxies": frames.scored(every, scores),
    }  # fmt: skip
    for name, frame in made.items():
        assert len(frame)
        frame.to_parquet(tmp_path / name, index=False)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / name), frame)
        frame[:0].to_parquet(tmp_path / name, index=False)
        assert kinds(pd.read_parquet(tmp_path / name)) == kinds(frame)


def test_the_page_lists_the_columns_and_their_types() -> None:
    page = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()
    listed = (
        names.EVALUATION_COLUMNS, names.FRONT_COLUMNS, names.LAYER_COLUMNS, names.PROXY_COLUMNS, names.HISTORY_COLUMNS,
        names.FAILURE_COLUMNS, names.CURVE_COLUMNS,
    )  # fmt: skip
    blocks = [block.split("\n\n")[0] for block in page.split("| column | type | meaning |\n| --- | --- | --- |\n")[1:]]
    assert len(blocks) == len(listed)
    for block, columns in zip(blocks, listed, strict=True):
        rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in block.splitlines() if line.startswith("|")]
        metric = [names.METRICS] if columns == names.CURVE_COLUMNS else [names.METRICS, "METRIC_delta"]
        assert [name for name, _ in rows] == [c for name in columns for c in (metric if name == names.METRICS else [name])]
        for name, kind in rows:
            if name in frames.TYPES and not (name == "id" and kind == "category"):  # of layers, where there are millions of them
                assert kind.startswith(frames.TYPES[name].split("[")[0]), name


def test_frames_survive_csv_and_json() -> None:
    front = frames.front(evaluations(), OBJECTIVES)
    assert len(front.to_csv(index=False).splitlines()) == 4
    assert [row["id"] for row in json.loads(front.to_json(orient="records"))] == front["id"].tolist()
