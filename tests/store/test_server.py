"""Stores in a database server, where several processes write: on a SQLite file that stands in for one, and on PostgreSQL."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_cases import STUDY, child, record

from ranksearch.errors import StoreError, StoreUnreachable
from ranksearch.store import Store
from ranksearch.store import claims as _claims
from ranksearch.store import database as _database
from ranksearch.store.lock import NoLock


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty database; a SQLite file is used as if it were a server: no look at the file, no lock."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").database()
    url = f"sqlite:///{tmp_path / 'server.db'}"
    make = _database.Place.__init__

    def as_server(self: _database.Place, where: str) -> None:
        make(self, where)
        self.path, self.shared = None, sa.create_engine(url)

    monkeypatch.setattr(_database.Place, "__init__", as_server)
    monkeypatch.setattr(_database.Place, "lock", lambda self: None)
    return url


def test_several_write_what_each_of_them_has_found(server: str) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        Store.open(server, create=False)
    with Store.open(server, **STUDY, details={"n": 1}) as one, Store.open(server, **STUDY) as two:
        facts = [record(i, error="\u00fc" * 3000 if i else None) for i in range(3)]
        assert all(one.add(f) for f in facts) and not two.add(facts[0]) and two.add(record(7))
        with Store.open(server, create=False) as reader:
            assert reader.records() == [*facts, record(7, created=reader.records()[3].created)] and reader.details == {"n": 1}
            ids = {r.configuration_id for r in reader.records()}
            assert reader.new_ids("full", 0, ()) == ids and reader.new_ids("full", 0, ids) == set() == reader.new_ids("full", 1, ())
        failed = record(8, status="failed", metrics={}, error="MemoryError", error_kind="machine")
        assert one.add(failed) and two.add_attempt(replace(failed, status="done", error=None, error_kind=None))
        assert not one.add_attempt(failed), "it is done"
    with pytest.raises(StoreError, match="belongs to study 'digits'"):
        Store.open(server, study="cifar", fingerprint="f00d")


def test_claims_do_not_keep_a_process_alive_that_is_at_its_end() -> None:
    claims = _claims.Claims(sa.create_engine("sqlite://"))
    try:
        (thread,) = (each for each in threading.enumerate() if each.name == "ranksearch-claims")
        assert thread.daemon
    finally:
        claims.release()
    assert not thread.is_alive()


def test_claims_end_after_the_last_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would come to a database that is let go."""
    begun = threading.Event()
    monkeypatch.setattr(_claims, "BEAT", 0.01)
    monkeypatch.setattr(_claims.Claims, "renew", lambda self: (begun.set(), time.sleep(0.3)))
    claims = _claims.Claims(sa.create_engine("sqlite://"))
    (thread,) = (each for each in threading.enumerate() if each.name == "ranksearch-claims")
    assert begun.wait(10)
    claims.release()
    assert not thread.is_alive()


def test_an_evaluation_is_claimed_by_one_process(server: str) -> None:
    with Store.open(server, **STUDY) as one, Store.open(server, **STUDY) as two:
        assert one.claims and two.claims
        key = (record(1).configuration_id, "full", 0)
        assert one.claim(*key) and one.claim(*key) and not two.claim(*key)
        assert two.claim(key[0], "full", 1) and two.claim(record(2).configuration_id, "full", 0)
        assert (one.claims.others("full", 0), two.claims.others("full", 0), one.claims.others("full", 1)) == (1, 1, 1)
        assert one.add(record(1)) and two.claims.others("full", 0) == 0, "what is stored is no longer claimed"
        assert not two.claim(*key), "it is made"
        assert Store.writers(server) == [f"pid {os.getpid()} on {socket.gethostname()}"], "two has claims"
        assert two.claim(*key, again=True) and one.claims.others("full", 0) == 2
        two.close()
        assert one.claims.others("full", 0) == 0, "who ends leaves nothing"
        with Store.open(server, create=False) as reader:
            assert reader.claims is None


def test_the_clock_is_the_servers(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of this machine is decades off, and counts only where a database is of a kind not known here."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: 7.0)
    engine = sa.create_engine(server)
    with engine.connect() as connection:
        assert _claims.server_time(connection) == pytest.approx(now, abs=3600)
        monkeypatch.setattr(connection.dialect, "name", "other")
        assert _claims.server_time(connection) == 7.0
    engine.dispose()


def test_claims_of_the_dead_end_by_the_servers_clock(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that shows life keeps them; one that does not, or whom somebody knows to be dead, does not."""
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this machine's clock is decades off
    key = (record(1).configuration_id, "full", 0)
    with Store.open(server, **STUDY) as one, Store.open(server, **STUDY) as other:
        assert one.claim(*key) and one.claims and other.claims

        def later(seconds: float) -> None:
            with one._engine.begin() as connection:
                expires = _database.claims_table.c.expires
                connection.execute(_database.claims_table.update().values(expires=expires - seconds))

        later(_claims.LEASE - 10)
        assert not other.claim(*key)
        one.claims.renew()
        later(_claims.LEASE - 10)
        assert not other.claim(*key), "it has shown life"
        later(20)
        assert other.claim(*key) and not one.claim(*key)
        assert one.claims.take_over() == [other.claims._holder] and one.claim(*key)


def test_whose_claims_there_are_is_said_in_order(server: str) -> None:
    names = [f"pid {number} on host" for number in (5, 1, 7, 3, 2, 8, 4, 6)]
    with Store.open(server, **STUDY) as one, Store.open(server, **STUDY) as other:
        assert one.claims and other.claims
        for number, name in enumerate(names):
            other.claims._holder = name
            assert other.claim(f"{number:012x}", "full", 0)
        assert Store.writers(server) == sorted(names) == one.claims.take_over() and Store.writers(server) == []


def test_life_is_shown_now_and_then(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_claims, "BEAT", 0.05)
    with Store.open(server, **STUDY) as store:
        assert store.claim(record(1).configuration_id, "full", 0)

        def expires() -> float:
            with store._engine.connect() as connection:
                return float(connection.scalar(sa.select(_database.claims_table.c.expires)) or 0)

        first = expires()
        assert wait_until(lambda: expires() > first)


def test_one_of_many_who_ask_at_once_gets_it(postgres) -> None:
    url = postgres.database()
    stores = [Store.open(url, **STUDY) for _ in range(4)]
    got: list[tuple[int, int]] = []

    def ask(number: int) -> None:
        got.extend((k, number) for k in range(25) if stores[number].claim(f"{k:012x}", "full", 0))

    together([lambda n=n: ask(n) for n in range(4)])
    assert sorted(k for k, _ in got) == list(range(25))
    together([lambda n=n: [stores[n].add(record(k, seconds=n)) for k in range(25)] for n in range(4)])
    assert stores[0].count() == 25
    for store in stores:
        store.close()


def test_what_another_adds_at_the_same_moment_is_there(postgres) -> None:
    url = postgres.database()
    with Store.open(url, **STUDY) as one, Store.open(url, **STUDY) as two:
        assert one.add(record(1, seed=7)), "the configuration is there"
        theirs = [record(1, seconds=3.0)]

        @sa.event.listens_for(one._engine, "before_cursor_execute")
        def faster(connection, cursor, statement, *_) -> None:
            if theirs and statement.startswith("INSERT INTO ranksearch_evaluations"):
                assert two.add(theirs.pop())

        assert one.add(record(1, seconds=9.0)) is False and not theirs
        assert [fact.seconds for fact in one.records()] == [1.5, 3.0]


def test_many_who_make_it_at_once_make_one(postgres) -> None:
    url = postgres.database()
    code = "Store.open(sys.argv[1], study='digits', fingerprint='f00d').close(); print('fine')"
    for process in [child(code, url) for _ in range(4)]:
        out, err = process.communicate(timeout=60)
        assert out == "fine\n", err


def test_a_server_that_is_away_is_told_from_one_that_refuses(postgres) -> None:
    url = postgres.database()
    with Store.open(url, **STUDY) as store:
        assert store.add(record(1))
        postgres.stop()
        try:
            for attempt in (lambda: store.add(record(2)), lambda: store.claim("x", "full", 0), lambda: Store.open(url, **STUDY)):
                with pytest.raises(StoreUnreachable) as caught:
                    attempt()
                assert "secret" not in str(caught.value)
        finally:
            postgres.start()
        assert store.add(record(2)) and store.count() == 2, "the same store goes on when it is back"


def test_a_store_that_is_closed_leaves_no_connection(postgres) -> None:
    url = postgres.database()
    engine = sa.create_engine(url)
    asked = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for write in (True, False):
            store = Store.open(url, **STUDY, write=write)
            assert store.records() == [] and connection.scalar(asked)
            store.close()
            assert wait_until(lambda: connection.scalar(asked) == 0)
    engine.dispose()


def test_a_store_of_an_earlier_version_is_brought_to_this_one(server: str) -> None:
    Store.open(server, **STUDY).close()
    engine = sa.create_engine(server)
    with engine.begin() as connection:
        for statement in (
            "ALTER TABLE ranksearch_evaluations DROP COLUMN provenance", "ALTER TABLE ranksearch_evaluations DROP COLUMN curve",
             "DROP TABLE ranksearch_attempts", "DROP TABLE ranksearch_claims",
            "CREATE TABLE ranksearch_writer (id INTEGER)", "UPDATE ranksearch_study SET schema_version = 2",
        ):  # fmt: skip
            connection.execute(sa.text(statement))
    with Store.open(server, **STUDY) as store:
        assert store.add(record(1, provenance={"host": "h"})) and store.records()[0].provenance == {"host": "h"}
    assert not sa.inspect(engine).has_table("ranksearch_writer")
    engine.dispose()


def test_only_what_others_cannot_see_needs_no_place() -> None:
    memory = _database.Place("sqlite://")
    assert isinstance(memory.lock(), NoLock)
    memory.shared = sa.create_mock_engine("postgresql://", lambda *_: None)  # type: ignore[assignment]
    assert memory.lock() is None


def together(actions: list[Callable[[], object]]) -> None:
    with ThreadPoolExecutor(len(actions)) as pool:
        for each in [pool.submit(action) for action in actions]:
            each.result()


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not (result := true()) and time.monotonic() < end:
        time.sleep(0.02)
    return result


def test_a_server_that_does_not_answer() -> None:
    psycopg = pytest.importorskip("psycopg", reason="needs a PostgreSQL driver")
    assert psycopg
    with pytest.raises(StoreUnreachable, match="could not be opened") as caught:
        Store.open("postgresql+psycopg://u:secret@127.0.0.1:1/x", **STUDY)
    assert "secret" not in str(caught.value)
