"""Facts column by column: the same as record by record, with what came of trying again, in whatever blocks they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from store_cases import STUDY, record

from ranksearch.store import Store, columns
from ranksearch.store import database as _database
from ranksearch.store.columns import merged

FIRST = {"number": pa.array([4, 5, 6]), "status": pa.array(["failed", "failed", "done"]), "seed": pa.array([0, 1, 2])}
LATER = {"evaluation": pa.array([5, 4, 5, 99]), "status": pa.array(["failed", "done", "stopped", "done"])}


def listed(found: columns.Columns) -> dict[str, list]:
    return {name: values.to_pylist() for name, values in found.items()}


def test_facts_have_the_result_of_their_last_attempt() -> None:
    """The attempt at a fact that is not among these is no row."""
    assert listed(merged(FIRST, LATER, ["status"], every=False)) == {
        "number": [4, 5, 6], "status": ["done", "stopped", "done"], "seed": [0, 1, 2],
    }  # fmt: skip
    assert listed(merged(FIRST, None, ["status"], every=False)) == listed(FIRST)


def test_every_attempt_is_a_row_in_order_where_asked() -> None:
    assert listed(merged(FIRST, LATER, ["status"], every=True)) == {
        "number": [4, 4, 5, 5, 5, 6], "status": ["failed", "done", "failed", "failed", "stopped", "done"], "seed": [0, 0, 1, 1, 1, 2],
        "attempt": [1, 2, 1, 2, 3, 1], "last": [False, True, False, False, True, True],
    }  # fmt: skip
    assert listed(merged(FIRST, None, ["status"], every=True))["last"] == [True] * 3


@pytest.fixture
def tried(filled: Path) -> Path:
    """Three facts, and a fourth that failed twice before it was done, at another fidelity."""
    with Store.open(filled, create=False, write=True) as store:
        failed = record(7, status="failed", metrics={}, error="no memory", error_kind="machine", fidelity="other")
        assert store.add(failed) and store.add_attempt(failed)
        assert store.add_attempt(replace(failed, status="done", metrics={"loss": 1.5}, error=None, error_kind=None, seconds=9.0))
    return filled


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("block", [1, 4000])
def test_columns_are_those_of_the_records(tried: Path, monkeypatch: pytest.MonkeyPatch, every: bool, block: int) -> None:
    monkeypatch.setattr(columns, "BLOCK", block)
    names = ["configuration_id", "seed", "status", "metrics", "costs", "params", "seconds", "error_kind"]
    with Store.open(tried, create=False) as store:
        for options in ({}, {"fidelity": "other"}, {"ids": [record(7).configuration_id, record(0).configuration_id]}, {"fidelity": "none"}):
            found = store.columns(names, every_attempt=every, **options)
            by_value = store.columns(names, every_attempt=every, whole=True, **options)
            assert listed(found) == listed(by_value) and {n: v.type for n, v in found.items()} == {n: v.type for n, v in by_value.items()}
        found = listed(store.columns(["configuration_id", "status", "seconds"], every_attempt=every, fidelity="other"))
        assert found["status"] == (["failed", "failed", "done"] if every else ["done"]) and found["seconds"][-1] == 9.0
        assert found.get("attempt") == ([1, 2, 3] if every else None)


def test_configurations_are_all_or_those_that_are_named(tried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_NAMED_AT_ONCE", 2)
    ids = [record(number).configuration_id for number in (0, 1, 2, 7)]

    def found(wanted) -> dict[str, str]:
        blocks = [(names.to_pylist(), texts.to_pylist()) for names, texts in store.configurations(wanted)]
        return {name: text for names, texts in blocks for name, text in zip(names, texts, strict=True)}

    with Store.open(tried, create=False) as store:
        every = found(None)
        assert every == {record(number).configuration_id: record(number).configuration for number in (0, 1, 2, 7)}
        assert found([*ids, ids[0], "unknown"]) == every and found([]) == {} and found(ids[2:3]) == {ids[2]: every[ids[2]]}


def test_the_stamp_of_a_file_changes_with_what_is_written(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(filled, create=False) as reader, Store.open(filled, **STUDY) as writer:
        written = filled.stat().st_mtime_ns
        monkeypatch.setattr(_database.time, "time_ns", lambda: written + _database.RACE)
        assert reader.stamp() is None, "two writes may have that time"
        monkeypatch.setattr(_database.time, "time_ns", lambda: written + 10**12)
        before, changes = reader.stamp(), reader.changes()
        assert before is not None and reader.stamp() == before
        assert writer.add(record(8)) and reader.changes() == changes + 1
        assert reader.stamp() not in (None, before)
    with Store.open(":memory:", **STUDY) as store:
        assert store.stamp() is None
