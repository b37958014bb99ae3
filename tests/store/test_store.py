"""The database of facts: what is acknowledged is there exactly once."""

from __future__ import annotations

import json
import math
import pickle
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError
from store_cases import STUDY, record, stored_details

from ranksearch.errors import InvalidArgument, StoreError
from ranksearch.store import Record, Store


def test_round_trip(path: Path) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    facts = [
        record(1),
        record(1, seed=2**40),
        record(1, fidelity="short"),
        record(2, status="failed", metrics={"accuracy": math.inf}, error="RuntimeError: 'x' % \u00fc\n", created=moment),
    ]
    with Store.open(path, **STUDY) as store:
        assert [store.add(fact) for fact in facts] == [True] * 4
        assert store.records() == facts
    with Store.open(path, create=False) as store:
        assert store.records() == facts and store.count() == 4
        assert store.records(fidelity="short") == [facts[2]] and store.records(status="failed") == [facts[3]]
        assert store.records("full", "done") == facts[:2]
        assert store.get(facts[1].configuration_id, "full", 2**40) == facts[1]
        assert store.get(facts[1].configuration_id, "full", 1) is None
        assert list(store.records()[0].metrics) == ["loss", "accuracy"]
    assert pickle.loads(pickle.dumps(facts)) == facts
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.db"]


def test_a_fact_is_never_edited(filled: Path) -> None:
    with Store.open(filled, **STUDY) as store:
        before = store.records()
        assert store.add(replace(before[1], metrics={"accuracy": 0.1}, status="failed")) is False
        with pytest.raises(StoreError, match="another configuration"):
            store.add(replace(before[1], configuration="{}", seed=7))
        assert store.records() == before


def test_columns_are_of_the_last_attempt_and_of_every_one_where_asked(filled: Path) -> None:
    with Store.open(filled, create=False, write=True) as store:
        failed = record(7, status="failed", metrics={}, error="out of memory", error_kind="machine")
        assert store.add(failed) and store.add_attempt(replace(failed, status="done", error=None, error_kind=None, seconds=9.0))
    with Store.open(filled, create=False) as store:
        last = store.columns(["configuration_id", "status", "seconds"])
        assert dict(zip(last["configuration_id"].to_pylist(), last["status"].to_pylist(), strict=True))[failed.configuration_id] == "done"
        assert sorted(last["seconds"].to_pylist()) == [1.5, 1.5, 1.5, 9.0]
        every = store.columns(["status"], every_attempt=True)
        assert sorted(every["status"].to_pylist()) == ["done"] * 4 + ["failed"] and len(every["attempt"]) == 5


def test_a_store_is_read_by_any_thread(filled: Path) -> None:
    with Store.open(filled, create=False) as store, ThreadPoolExecutor(1) as other:
        assert store.count() == other.submit(store.count).result() == 3


def test_what_failed_is_tried_again_and_every_attempt_stays(filled: Path) -> None:
    moments = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    first = record(7, status="failed", metrics={}, error="MemoryError: ", error_kind="machine", created=moments[0])
    second = replace(first, error="ValueError: no", error_kind="code", seconds=3.0, created=moments[1])
    third = replace(first, status="done", metrics={"loss": 0.5}, error=None, error_kind=None, origin="again", created=moments[2])
    with Store.open(filled, **STUDY) as store:
        before = store.records()
        assert store.add_attempt(first) is False, "what was never evaluated is not tried again"
        assert store.add_attempt(replace(before[0], status="failed", metrics={})) is False, "nor is what is done"
        assert store.add(first) and store.add(record(8))
        assert not store.add(third) and store.add_attempt(second) and store.get(first.configuration_id, "full", 0) == second
        assert store.records(status="done") == [*before, record(8, created=store.records()[-1].created)]
        assert store.add_attempt(third) and not store.add_attempt(second)
    with Store.open(filled, **STUDY, create=False) as store:
        assert store.attempts(first.configuration_id, "full", 0) == [first, second, third]
        assert store.records()[:4] == [*before, third] and store.count() == 5 and store.records(status="failed") == []
        assert store.attempts("nothing", "full", 0) == []
        with pytest.raises(StoreError, match="open for reading"):
            store.add_attempt(second)


def test_key_is_unique_in_the_database_itself(filled: Path) -> None:
    with sqlite3.connect(filled) as connection, pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        columns = "configuration_id,fidelity,seed,fingerprint,status,metrics,params,macs,error,seconds,origin,created"
        connection.execute(f"INSERT INTO ranksearch_evaluations ({columns}) SELECT {columns} FROM ranksearch_evaluations")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_done_needs_finite_metrics(value: float) -> None:
    with pytest.raises(InvalidArgument, match=r"accuracy=.* not finite"):
        record(metrics={"accuracy": value})


@pytest.mark.parametrize("change", [
    {"status": "running"}, {"error_kind": "code"}, {"configuration": "[1]"}, {"configuration": "{"},
    {"metrics": {"loss": 1.0}, "status": "stopped"}, {"curve": [1]}, {"curve": [(1, 0.5)]},
])  # fmt: skip
def test_record_is_checked(change) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(change))):
        record(**change)


def test_record_takes_what_python_gives(path: Path) -> None:
    costs = {"params": np.int32(4), "macs": np.int64(9), "milliseconds": np.float32(1.5)}
    numbers = {"metrics": {"accuracy": np.float32(0.5)}, "seconds": np.float64(2)}
    fact = record(seed=np.int64(3), costs=costs, error="a\0b\ud800c", **numbers)
    assert fact.error == "a\\x00b\\ud800c" and type(fact.seed) is int
    with Store.open(path, **STUDY) as store:
        assert store.add(fact) and store.records() == [fact]
    with pytest.raises(InvalidArgument, match=r"macs=.* does not fit"):
        record(costs={"params": 1, "macs": 2**63})


def test_configuration_by_prefix(filled: Path) -> None:
    with Store.open(filled, **STUDY) as store:
        store.add(record(configuration_id="abc", configuration='{"a":1}'))
        store.add(record(configuration_id="abcd", configuration='{"a":2}'))
        assert store.configuration("abcd") == '{"a":2}' and store.configuration("abc") == '{"a":1}'
        with pytest.raises(InvalidArgument, match="ambiguous: abc, abcd"):
            store.configuration("ab")
        for wrong in ("zz", "%", "_bc"):
            with pytest.raises(InvalidArgument, match="no evaluated configuration"):
                store.configuration(wrong)
        with pytest.raises(InvalidArgument):
            store.configuration("")
        for none in ("a\0", "\udcff", 7):
            with pytest.raises(InvalidArgument, match="no id has such characters"):
                store.configuration(none)  # type: ignore[arg-type]


def test_details(path: Path) -> None:
    with Store.open(path, **STUDY, details={"options": {"data": "\u00fc"}, "n": 1}) as store:
        assert store.details == {"options": {"data": "\u00fc"}, "n": 1} and store.study == "digits" and store.fingerprint == "f00d"
    with Store.open(path, **STUDY, details={"n": 2}, create=False):  # a reader changes nothing
        assert stored_details(path)["n"] == 1
    with Store.open(path, **STUDY):
        assert stored_details(f"sqlite:///{path}")["n"] == 1
    with Store.open(path, **STUDY, details={"n": 3}) as store:
        assert store.details == stored_details(path) == {"n": 3}
    with pytest.raises(InvalidArgument, match="details"):
        Store.open(path, **STUDY, details={"n": object()})
    with pytest.raises(InvalidArgument, match="needs both"):
        Store.open(path, study="digits")


def test_a_new_store_has_nothing(path: Path) -> None:
    with Store.open(path, **STUDY) as store:
        assert (store.count(), store.changes(), store.records(), store.fidelities()) == (0, 0, [], [])
        assert store.add(record(1, fidelity="short")) and store.add(record(1)) and store.add(record(2, fidelity="deep"))
        assert (store.count(), store.changes(), store.fidelities()) == (3, 3, ["deep", "full", "short"])


def test_create_without_writing(path: Path) -> None:
    with Store.open(path, **STUDY, create=True, write=False) as reader, Store.open(path, **STUDY) as writer:
        with pytest.raises(StoreError, match="open for reading"):
            reader.add(record())
        writer.add(record())
        assert reader.count() == 1
    for store in (reader, writer):
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.records()


def test_memory() -> None:
    with Store.open("sqlite://", **STUDY) as store:
        assert store.add(record()) and not store.add(record()) and store.records()[0].costs["macs"] == 10**12
    with pytest.raises(StoreError, match="does not exist"):
        Store.open("sqlite://", create=False)


def test_it_is_wal_and_synchronous(filled: Path) -> None:
    with Store.open(filled, **STUDY) as store, store._engine.connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        pragmas = {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_the_database_itself_refuses_what_a_reader_writes(filled: Path) -> None:
    delete = "DELETE FROM ranksearch_evaluations"
    with Store.open(filled, create=False) as reader, reader._engine.connect() as connection:
        with pytest.raises(OperationalError, match="readonly"):
            connection.exec_driver_sql(delete)
        assert reader.count() == 3


def test_costs_that_a_study_gained_are_completed_when_read(filled: Path) -> None:
    def complete(fact: Record) -> Record:
        return replace(fact, costs={**fact.costs, "bytes": 4 * fact.costs["params"]})

    with Store.open(filled, **STUDY, create=False, complete=complete) as store:
        assert all(fact.costs["bytes"] == 40 for fact in store.records())
        first = store.get(f"{0:012x}", "full", 0)
        assert first is not None and first.costs["bytes"] == 40
    with Store.open(filled, **STUDY, create=False) as store:
        assert all("bytes" not in fact.costs for fact in store.records())


@pytest.mark.parametrize("costs", [{}, {"params": 3}, {"params": 3, "macs": 1.5}, {"params": 3, "macs": 4, "seconds": float("nan")}])
def test_costs_that_are_none_are_refused(costs: dict) -> None:
    with pytest.raises(InvalidArgument, match=r"must be there, as whole numbers|seconds=nan: must be finite"):
        record(costs=costs)


def test_json_is_readable_with_other_tools(filled: Path) -> None:
    with Store.open(filled, **STUDY) as store:
        assert store.add(record(8, costs={"params": 10, "macs": 20, "bytes": 40}))
    with sqlite3.connect(filled) as connection:
        rows = connection.execute("SELECT metrics, created, costs FROM ranksearch_evaluations ORDER BY number").fetchall()
    connection.close()
    assert rows[0][2] is None and json.loads(rows[3][2]) == {"bytes": 40}, "params and macs have columns of their own"
    assert json.loads(rows[0][0]) == {"loss": 0.25, "accuracy": 0.9} and datetime.fromisoformat(rows[0][1]).tzinfo is not None
