"""The database of facts: what is acknowledged is there exactly once, and what is not a store is left alone."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from ranksearch.errors import InvalidArgument, StoreError
from ranksearch.store import Record, Store
from ranksearch.store import database as _database

STUDY = {"study": "digits", "fingerprint": "f00d"}
# a process without torch, so that starting one takes a fraction of a second
PRELUDE = "import sys; from ranksearch.store import Record, Store\n"


def record(number: int = 0, **changes) -> Record:
    values = {
        "configuration_id": f"{number:012x}", "configuration": f'{{"a":["svd",[{number}]]}}', "fidelity": "full", "seed": 0,
        "status": "done",
        "metrics": {"loss": 0.25, "accuracy": 0.9}, "costs": {"params": 10, "macs": 10**12}, "seconds": 1.5, "origin": "nsga2",
    }  # fmt: skip
    return Record(**(values | changes))


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "deep" / "x.db"


@pytest.fixture
def filled(path: Path) -> Path:
    with Store.open(path, **STUDY, details={"objectives": ["accuracy"]}) as store:
        assert all(store.add(record(i)) for i in range(3))
    return path


# -- facts ---------------------------------------------------------------------------------------------------------


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


def test_what_failed_is_tried_again_and_every_attempt_stays(filled: Path) -> None:
    moments = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    first = record(7, status="failed", metrics={}, error="MemoryError: ", error_kind="machine", created=moments[0])
    second = replace(first, error="ValueError: no", error_kind="code", seconds=3.0, created=moments[1])
    third = replace(first, status="done", metrics={"loss": 0.5}, error=None, error_kind=None, origin="again", created=moments[2])
    with Store.open(filled, **STUDY) as store:
        before = store.records()
        assert not store.add_attempt(first), "what was never evaluated is not tried again"
        assert not store.add_attempt(replace(before[0], status="failed", metrics={})), "nor is what is done"
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


@pytest.mark.parametrize("change", [{"status": "running"}, {"error_kind": "code"}, {"configuration": "[1]"}, {"configuration": "{"}])
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


def stored_details(where) -> dict[str, Any]:
    with Store.open(where, create=False) as store:
        return store.details


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


# -- what is refused -----------------------------------------------------------------------------------------------


def attempts(where):
    """Every way to open, each must refuse."""
    yield lambda: Store.open(where, **STUDY)
    yield lambda: Store.open(where, **STUDY, create=True, write=False)
    yield lambda: Store.open(where, create=False)
    yield lambda: Store.open(where, create=False, write=True)


def refused(where, match: str) -> None:
    for attempt in attempts(where):
        with pytest.raises(StoreError, match=match):
            attempt()


def snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) if p.is_file() else (b"", 0) for p in sorted(directory.rglob("*"))}


@pytest.mark.parametrize("content", [b"", b"hello", b"x" * 5000, b"SQLite format 3\0", b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_no_store(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.db").write_bytes(content)
    before = snapshot(tmp_path)
    refused(tmp_path / "notes.db", "not a (database|ranksearch store); give another --store")
    assert snapshot(tmp_path) == before


def test_a_foreign_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "photos.db") as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    connection.close()
    before = snapshot(tmp_path)
    refused(tmp_path / "photos.db", "not a ranksearch store")
    assert snapshot(tmp_path) == before


def test_directories_and_files_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    before = snapshot(tmp_path)
    refused(tmp_path, "is a directory")
    refused(tmp_path / "file" / "x.db", "Not a directory|does not exist|File exists")
    assert snapshot(tmp_path) == before


def test_reading_creates_nothing(tmp_path: Path) -> None:
    for write in (None, True):
        with pytest.raises(StoreError, match="does not exist; run a search first"):
            Store.open(tmp_path / "no" / "x.db", create=False, write=write)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_forbidden(filled: Path) -> None:
    filled.chmod(0)
    refused(filled, "Permission denied")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("nosuch:///x", "SQLAlchemy knows no database 'nosuch'"),
        ("oracle://u:secret@h/x", "driver for 'oracle' is not installed"),
        ("sqlite+aiosqlite:///x.db", "without a driver name|not installed"),
        ("://", "neither a path nor"),
        ("", "give the path of a file"),
        ("a\0b", "give the path of a file"),
        ("sqlite:///file:x?uri=true", "give the path of a file"),
    ],
)
def test_urls_that_cannot_be_used(url: str, match: str) -> None:
    with pytest.raises(StoreError, match=match) as caught:
        Store.open(url, **STUDY)
    assert "secret" not in str(caught.value)


def test_another_study(filled: Path) -> None:
    before = snapshot(filled.parent)
    with pytest.raises(StoreError, match=r"belongs to study 'digits', not to 'cifar'; use another --store"):
        Store.open(filled, study="cifar", fingerprint="f00d")
    for write in (True, False):
        with pytest.raises(StoreError, match=r"fingerprint f00d, .* now has fingerprint beef.*use another --store"):
            Store.open(filled, study="digits", fingerprint="beef", details={"n": 9}, write=write)
    assert snapshot(filled.parent) == before


@pytest.mark.parametrize(("version", "remedy"), [(4, "newer"), (0, "older")])
def test_another_schema(filled: Path, version: int, remedy: str) -> None:
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE ranksearch_study SET schema_version = ?", (version,))
    connection.close()
    refused(filled, f"schema version {version}, this ranksearch reads versions 1 to 3; use the {remedy} ranksearch")


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
        assert store.get("abc", "full", 0) == fact and store.count() == 1
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


def test_corrupt_file(filled: Path) -> None:
    with Store.open(filled, **STUDY) as store:
        for i in range(3, 300):
            store.add(record(i, error="x" * 400))
    content = bytearray(filled.read_bytes())
    generator = random.Random(0)
    for offset in range(4096 * 10, len(content)):
        content[offset] = generator.randrange(256)
    filled.write_bytes(content)
    with pytest.raises(StoreError, match=r"corrupt|malformed"):
        Store.open(filled, **STUDY)
    assert filled.read_bytes() == bytes(content)
    with pytest.raises(StoreError, match=r"malformed.*restore a copy"), Store.open(filled, create=False) as store:
        store.records()
    filled.write_bytes(bytes(content[:6000]))  # cut off
    for attempt in list(attempts(filled))[:-1]:
        with pytest.raises(StoreError, match=r"malformed.*restore a copy|corrupt"), attempt() as store:
            store.records()
    assert filled.read_bytes() == bytes(content[:6000])
    left = {p.name: p.stat().st_size for p in filled.parent.iterdir() if p != filled}
    assert set(left) <= {"x.db-wal", "x.db-shm"} and not left.get("x.db-wal")
    filled.unlink()
    Store.open(filled, **STUDY).close()  # a new store takes the place of the deleted one


def test_rows_that_ranksearch_did_not_write(filled: Path) -> None:
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE ranksearch_evaluations SET metrics = '{' WHERE number = 2")
    connection.close()
    with pytest.raises(StoreError, match="did not write"), Store.open(filled, create=False) as store:
        store.records()


def test_disk_full(filled: Path) -> None:
    with Store.open(filled, **STUDY) as store:
        with store._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 4}")
        added = 3
        with pytest.raises(StoreError, match=r"full; free some disk space"):
            for i in range(3, 1000):
                added += store.add(record(i, error="x" * 1000))
        assert 3 < added < 1000
        facts = store.records()
        assert len(facts) == added == store.count()
        with store._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        assert store.add(record(added, error="x" * 1000))  # room again: the same store goes on
    with Store.open(filled, create=False) as store:
        assert store.records()[:-1] == facts and store.count() == added + 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_no_room_for_a_new_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")

    monkeypatch.setattr(_database, "fill", full)
    with pytest.raises(StoreError, match=r"No space left.*free some disk space"):
        Store.open(path, **STUDY)
    assert not list(path.parent.iterdir())
    monkeypatch.undo()
    Store.open(path, **STUDY).close()


def test_remains_of_a_deleted_database(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Path(f"{path}-wal").write_bytes(b"old")
    with pytest.raises(StoreError, match="left of a deleted database"):
        Store.open(path, **STUDY)
    assert [p.name for p in path.parent.iterdir()] == ["x.db-wal"]


# -- one writer, many readers --------------------------------------------------------------------------------------


def test_one_writer(filled: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(filled)
    with Store.open(filled, **STUDY) as store:
        for where in (filled, link, f"sqlite:///{filled}"):
            with pytest.raises(StoreError, match=f"being written by this process, pid {os.getpid()}"):
                Store.open(where, **STUDY)
        code = "try: Store.open(sys.argv[1], study='digits', fingerprint='f00d')\nexcept Exception as e: print(type(e).__name__, e)"
        assert f"StoreError store '{filled}' is being written by pid {os.getpid()} on" in child(code, filled).communicate(timeout=60)[0]
        assert store.add(record(9))  # the refused ones did not take the lock away
        assert f"pid {os.getpid()} on" in child(code, filled).communicate(timeout=60)[0]
    with Store.open(filled, **STUDY) as store:  # free again
        assert store.count() == 4


def test_a_forked_child_does_not_write(filled: Path) -> None:
    with Store.open(filled, **STUDY) as store:
        process = multiprocessing.get_context("fork").Process(target=_expect_refusal, args=(store, filled))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert store.add(record(9))


def _expect_refusal(store: Store, path: Path) -> None:
    for attempt in (lambda: store._lock.check(None), lambda: Store.open(path, **STUDY)):
        try:
            attempt()
        except StoreError as error:
            assert "forked child" in str(error) or "being written by pid" in str(error)
        else:
            os._exit(1)
    store._lock.release()
    os._exit(0 if Path(f"{path}.lock").exists() else 2)


def test_a_lost_lock_is_noticed(filled: Path) -> None:
    with Store.open(filled, **STUDY) as store:
        os.unlink(f"{filled}.lock")
        with pytest.raises(StoreError, match=r"lock file .* was removed"):
            store.add(record(9))
        assert store.count() == 3


READ = """
url, wanted = sys.argv[1], int(sys.argv[2])
seen = 0
while seen < wanted:
    with Store.open(url, study='digits', fingerprint='f00d', create=False) as store:
        for _ in range(20):
            records = store.records()
            numbers = [r.costs['params'] for r in records]
            assert numbers == list(range(len(numbers))), numbers  # in order, whole, none twice
            assert len(numbers) >= seen, (len(numbers), seen)     # a fact once seen stays
            seen = len(numbers)
print(seen)
"""


def test_readers_while_a_search_writes(path: Path) -> None:
    with Store.open(path, **STUDY) as store:
        readers = [child(READ, path, 150) for _ in range(3)]
        for i in range(150):
            assert store.add(record(i, costs={"params": i, "macs": 1}))
            time.sleep(0.01)
        for reader in readers:
            out, err = reader.communicate(timeout=120)
            assert (reader.returncode, out.strip()) == (0, "150"), err


def test_reading_what_one_may_not_change(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_database.os, "access", lambda *_: False)  # another user's store, or a read-only disk
    before = snapshot(filled.parent)
    with Store.open(filled, create=False) as reader:
        assert reader.count() == 3
    assert snapshot(filled.parent) == before
    with Store.open(filled, **STUDY) as store:
        assert store.add(record(9))  # in the write-ahead log, not yet in the file
        with Store.open(filled, create=False) as reader:
            assert reader.count() == 4


def test_threads_may_share_a_writer(path: Path) -> None:
    with Store.open(path, **STUDY) as store:
        threads = [threading.Thread(target=lambda k=k: [store.add(record(i)) for i in range(k, 40, 2)]) for k in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(r.configuration_id for r in store.records()) == [f"{i:012x}" for i in range(40)]


WRITE = """
url, start = sys.argv[1], int(sys.argv[2])
with Store.open(url, study='digits', fingerprint='f00d') as store:
    for i in range(start, start + 100000):
        costs = {"params": i, "macs": i}
        new = store.add(Record(f"{i:012x}", '{"a":[%d]}' % i, "full", 0, "done", {"accuracy": 0.5}, costs, origin="x" * (i % 3000)))
        assert new
        print(i, flush=True)
"""


def test_killed_at_random_moments(path: Path) -> None:
    generator = random.Random(time.time_ns())
    acknowledged, start = [], 0
    for attempt in range(5):
        writer = child(WRITE, path, start)
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]  # it has begun to write, except in the last round: killed while it opens
        time.sleep(generator.uniform(0, 0.3) if attempt < 4 else 0)
        os.kill(writer.pid, signal.SIGKILL)
        out, err = writer.communicate(timeout=60)
        assert writer.returncode == -signal.SIGKILL, err
        lines += out.splitlines(keepends=True)
        acknowledged += [int(line) for line in lines if line.endswith("\n")]
        with Store.open(path, **STUDY) as store:  # the lock died with the process
            stored = [r.costs["params"] for r in store.records()]
        assert stored == list(range(len(stored)))
        # what was added but not yet printed may be one more
        assert len(acknowledged) <= len(stored) <= len(acknowledged) + attempt + 1
        assert set(acknowledged) <= set(stored)
        start = len(stored)
        assert start
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.db"]


CREATE = """
import os
print(1, flush=True)
while True:
    Store.open(sys.argv[1], study='digits', fingerprint='f00d').close()
    os.unlink(sys.argv[1])
"""


@pytest.mark.parametrize("attempt", range(3))
def test_killed_while_creating(path: Path, attempt: int) -> None:
    writer = child(CREATE, path)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(random.Random(time.time_ns()).uniform(0.05, 0.3))
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate(timeout=60)
    with Store.open(path, **STUDY) as store:  # whatever is left, a whole store comes of it
        assert store.add(record()) and store.count() == 1
    assert {p.name for p in path.parent.iterdir()} <= {"x.db", ".x.db.draft"}


# -- a database server ---------------------------------------------------------------------------------------------


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """RANKSEARCH_TEST_DATABASE: the URL of an empty database of a server. Without it, a SQLite file stands in, used
    as if it were a server: no look at the file, the writer's place a row."""
    url = os.environ.get("RANKSEARCH_TEST_DATABASE")
    if url is None:
        url = f"sqlite:///{tmp_path / 'server.db'}"
        make = _database.Place.__init__

        def as_server(self: _database.Place, where: str) -> None:
            make(self, where)
            self.path, self.shared = None, sa.create_engine(url)

        monkeypatch.setattr(_database.Place, "__init__", as_server)
        monkeypatch.setattr(_database.Place, "lock", lambda self: None)
    else:
        engine = sa.create_engine(url)
        _database.metadata.drop_all(engine)
        engine.dispose()
    return url


def test_server(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_database, "BEAT", 0.05)
    with pytest.raises(StoreError, match="does not exist"):
        Store.open(server, create=False)
    with Store.open(server, **STUDY, details={"n": 1}) as store:
        facts = [record(i, error="\u00fc" * 3000 if i else None) for i in range(3)]
        assert all(store.add(f) for f in facts) and not store.add(facts[0])
        first = beat(store)
        assert wait_until(lambda: beat(store) > first)  # it shows life
        with pytest.raises(StoreError, match=f"being written by pid {os.getpid()} on"):
            Store.open(server, **STUDY)
        with Store.open(server, create=False) as reader:
            assert reader.records() == facts and reader.details == {"n": 1}
    with pytest.raises(StoreError, match="belongs to study 'digits'"):
        Store.open(server, study="cifar", fingerprint="f00d")
    with Store.open(server, **STUDY) as store:  # the place was given back
        assert store.add(record(7)) and [r.configuration_id for r in store.records()][-1] == f"{7:012x}"


@pytest.mark.parametrize(
    ("change", "free"),
    [({}, False), ({"pid": 2**22 + 1}, True), ({"beat": 1.0}, True), ({"host": "other", "pid": 2**22 + 1}, False)],
)
def test_writer_of_a_server_that_died(server: str, change: dict, free: bool) -> None:
    first = Store.open(server, **STUDY)
    try:
        with first._engine.begin() as connection:
            connection.execute(_database.writer_table.update().values(change | {"id": 1}))
        if not free:
            with pytest.raises(StoreError, match="being written by pid"):
                Store.open(server, **STUDY)
            return
        with Store.open(server, **STUDY) as second:
            assert second.add(record(1))
            with pytest.raises(StoreError, match="another process has become its writer"):
                first.add(record(2))
            first.close()  # gives back nothing that is not its own
            assert second.add(record(3)) and second.count() == 2
    finally:
        first.close()


def beat(store: Store) -> float:
    with store._engine.connect() as connection:
        return float(connection.scalar(sa.select(_database.writer_table.c.beat)) or 0)


def wait_until(true, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not (result := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return result


def test_a_server_that_does_not_answer() -> None:
    psycopg = pytest.importorskip("psycopg", reason="needs a PostgreSQL driver")
    assert psycopg
    with pytest.raises(StoreError, match="could not be opened") as caught:
        Store.open("postgresql+psycopg://u:secret@127.0.0.1:1/x", **STUDY)
    assert "secret" not in str(caught.value)


def test_json_is_readable_with_other_tools(filled: Path) -> None:
    with sqlite3.connect(filled) as connection:
        rows = connection.execute("SELECT metrics, created FROM ranksearch_evaluations").fetchall()
    connection.close()
    assert json.loads(rows[0][0]) == {"loss": 0.25, "accuracy": 0.9} and datetime.fromisoformat(rows[0][1]).tzinfo is not None
