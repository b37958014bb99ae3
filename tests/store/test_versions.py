"""Stores of earlier and later schemas."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from store_cases import STUDY, record, refused

from ranksearch.store import Store


@pytest.mark.parametrize(("version", "remedy"), [(6, "newer"), (0, "older")])
def test_another_schema(filled: Path, version: int, remedy: str) -> None:
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE ranksearch_study SET schema_version = ?", (version,))
    connection.close()
    refused(filled, f"schema version {version}, this ranksearch reads versions 1 to 5; use the {remedy} ranksearch")


# what version 1 made: no column for costs but params and MACs
VERSION_1 = """
CREATE TABLE ranksearch_study (
    id INTEGER NOT NULL, schema_version INTEGER NOT NULL, name TEXT NOT NULL, fingerprint TEXT NOT NULL, details TEXT NOT NULL,
    PRIMARY KEY (id));
CREATE TABLE ranksearch_configurations (id VARCHAR(64) NOT NULL, json TEXT NOT NULL, PRIMARY KEY (id));
CREATE TABLE ranksearch_writer (
    id INTEGER NOT NULL, token VARCHAR(32) NOT NULL, host TEXT NOT NULL, pid BIGINT NOT NULL, beat DOUBLE NOT NULL, PRIMARY KEY (id));
CREATE TABLE ranksearch_evaluations (
    number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, configuration_id VARCHAR(64) NOT NULL, fidelity VARCHAR(255) NOT NULL,
    seed BIGINT NOT NULL, fingerprint VARCHAR(64) NOT NULL, status VARCHAR(16) NOT NULL, metrics TEXT NOT NULL,
    params BIGINT NOT NULL, macs BIGINT NOT NULL, error TEXT, seconds DOUBLE NOT NULL, origin TEXT NOT NULL, created VARCHAR(40) NOT NULL,
    CONSTRAINT ranksearch_one_fact_per_key UNIQUE (configuration_id, fidelity, seed, fingerprint),
    FOREIGN KEY(configuration_id) REFERENCES ranksearch_configurations (id));
INSERT INTO ranksearch_study VALUES (1, 1, 'digits', 'f00d', '{"n": 1}');
INSERT INTO ranksearch_configurations VALUES ('abc', '{"a":["svd",[1]]}');
INSERT INTO ranksearch_evaluations VALUES
    (1, 'abc', 'full', 0, 'f00d', 'done', '{"loss": 0.25}', 10, 1000000000000, NULL, 1.5, 'nsga2', '2026-01-01T00:00:00+00:00');
PRAGMA application_id = 1380011595;
PRAGMA journal_mode = WAL;
"""


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1)
    connection.close()
    return path


def test_a_store_of_version_1_is_read_as_it_is(version_1: Path) -> None:
    with Store.open(version_1, **STUDY, create=False) as store:
        (fact,) = store.records()
        assert (fact.configuration_id, fact.costs, fact.metrics) == ("abc", {"params": 10, "macs": 10**12}, {"loss": 0.25})
        assert store.get("abc", "full", 0) == fact and store.count() == store.changes() == 1
    with sqlite3.connect(version_1) as connection:
        assert connection.execute("SELECT schema_version FROM ranksearch_study").fetchall() == [(1,)]
    connection.close()


def test_a_store_of_version_1_goes_on_and_takes_other_costs(version_1: Path) -> None:
    new = record(4, costs={"params": 1, "macs": 2, "bytes": 2**40, "milliseconds": 0.1})
    with Store.open(version_1, **STUDY, create=False) as reader, Store.open(version_1, **STUDY) as store:
        assert store.add(new) and not store.add(new)
        assert [r.costs for r in store.records()] == [{"params": 10, "macs": 10**12}, new.costs]
        assert len(reader.records()) == 2 and store.details == {"n": 1}  # who began to read before still reads
    with Store.open(version_1, **STUDY, create=False) as store:
        found = store.records()[1].costs
        assert found == new.costs and [type(v) for v in found.values()] == [int, int, int, float]
    with Store.open(version_1, **STUDY) as store:
        assert store.count() == 2


def test_a_store_of_an_earlier_version_has_failures_of_no_kind_that_are_tried_again(version_1: Path) -> None:
    with sqlite3.connect(version_1) as connection:
        connection.execute("UPDATE ranksearch_evaluations SET status = 'failed', error = 'it ended', metrics = '{}'")
    connection.close()
    with Store.open(version_1, **STUDY, create=False) as store:
        assert [(r.status, r.error_kind) for r in store.records()] == [("failed", None)]
        assert store.attempts("abc", "full", 0) == store.records()
    with Store.open(version_1, **STUDY) as store:
        old = store.records()[0]
        assert store.add_attempt(replace(old, status="done", error=None, metrics={"loss": 0.5}))
        assert [r.status for r in store.attempts("abc", "full", 0)] == ["failed", "done"] and store.count() == 1


def test_what_is_made_and_what_is_brought_to_this_version_have_the_same_columns(version_1: Path, filled: Path) -> None:
    """Names, types, what must be there, and what makes a row one of its kind."""
    Store.open(version_1, **STUDY).close()
    found = []
    for path in (version_1, filled):
        with sqlite3.connect(path) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'ranksearch_%'")]
            found.append({t: {tuple(row[1:]) for row in connection.execute(f"PRAGMA table_info({t})")} for t in tables})
        connection.close()
    assert found[0] == found[1] and len(found[1]) == 5
    optional = {name for columns in found[1].values() for name, _, required, _, _ in columns if not required}
    assert optional == {"costs", "error", "error_kind", "provenance", "curve"}


def test_a_store_of_version_4_has_no_curves(filled: Path) -> None:
    with sqlite3.connect(filled) as connection:
        for table in ("evaluations", "attempts"):
            connection.execute(f"ALTER TABLE ranksearch_{table} DROP COLUMN curve")
        connection.execute("UPDATE ranksearch_study SET schema_version = 4")
    connection.close()
    with Store.open(filled, **STUDY, create=False) as store:
        assert store.columns(["curve"])["curve"].null_count == store.count() and all(r.curve is None for r in store.records())
    stopped = record(6, status="stopped", metrics={}, curve=[(1, {"loss": 0.5}), (3.0, {"loss": 0.25})])
    with Store.open(filled, **STUDY) as store:
        assert store.add(stopped) and store.records()[-1] == stopped and stopped.curve == ((1.0, {"loss": 0.5}), (3.0, {"loss": 0.25}))
        assert not store.add(replace(stopped, status="done", metrics={"loss": 0.1})), "a fact is never replaced"
        assert store.add_attempt(replace(stopped, status="done", metrics={"loss": 0.1})), "but made again on request"
        assert [r.status for r in store.attempts(stopped.configuration_id, "full", 0)] == ["stopped", "done"]
        assert not store.add_attempt(stopped)


def test_a_store_of_version_3_does_not_know_where_its_evaluations_were_made(filled: Path) -> None:
    failed = record(5, status="failed", metrics={}, error="MemoryError: ", error_kind="machine")
    with Store.open(filled, **STUDY) as store:
        assert store.add(failed) and store.add_attempt(replace(failed, status="done", error=None, error_kind=None))
    with sqlite3.connect(filled) as connection:
        for table in ("evaluations", "attempts"):
            connection.execute(f"ALTER TABLE ranksearch_{table} DROP COLUMN provenance")
        connection.execute("DROP TABLE ranksearch_claims")
        connection.execute("UPDATE ranksearch_study SET schema_version = 3")
    connection.close()
    with Store.open(filled, **STUDY, create=False) as store:
        assert len(store.records()) == 4 and len(store.attempts(failed.configuration_id, "full", 0)) == 2
    made = record(6, provenance={"host": "h", "threads": 2})
    with Store.open(filled, **STUDY) as store:
        assert store.add(made) and [r.provenance for r in store.records()] == [None] * 4 + [{"host": "h", "threads": 2}]
