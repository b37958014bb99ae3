"""Stores in a database server."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_cases import STUDY, record

from ranksearch.errors import StoreError
from ranksearch.store import Store
from ranksearch.store import database as _database


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


def test_only_what_others_cannot_see_needs_no_place() -> None:
    memory = _database.Place("sqlite://")
    assert isinstance(memory.lock(), _database._NoLock)
    memory.shared = sa.create_mock_engine("postgresql://", lambda *_: None)  # type: ignore[assignment]
    assert memory.lock() is None  # it is a row there


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
