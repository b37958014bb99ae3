"""What is not a store of this study is left alone, and the remedy is said."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import warnings
from pathlib import Path

import pytest
from store_cases import STUDY, attempts, record, refused, snapshot

from ranksearch.errors import RanksearchWarning, StoreError
from ranksearch.store import Store
from ranksearch.store import database as _database


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
    with Store.open(filled, create=False) as store:
        with pytest.warns(RanksearchWarning, match=r"row 2, an evaluation of 0+1, is damaged and left out \(JSONDecodeError"):
            assert [r.configuration_id for r in store.records()] == [record(0).configuration_id, record(2).configuration_id]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert store.get(record(1).configuration_id, "full", 0) is None, "said once"
    again = record(1, seconds=9.0)
    with Store.open(filled, **STUDY) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore", RanksearchWarning)
        assert store.add(again) and not store.add(record(1)), "what is measured anew counts instead, once"
        assert store.get(again.configuration_id, "full", 0) == again and len(store.records()) == store.count() == 3


def test_a_damaged_configuration_is_what_its_id_is_the_hash_of(filled: Path) -> None:
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE ranksearch_configurations SET json = '{\"a\":' WHERE id = ?", (record(1).configuration_id,))
    connection.close()
    with Store.open(filled, **STUDY) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore", RanksearchWarning)
        assert len(store.records()) == 2
        store.add(record(1))
        assert [r.configuration for r in store.records()] == [record(k).configuration for k in range(3)]


def test_errors_are_bounded_and_have_no_escapes(path: Path) -> None:
    with Store.open(path, **STUDY) as store:
        for number, said in enumerate(("\x1b[2Jgone", "\udcff\0", "\u202eabc", "x" * 10**6 + "END")):
            store.add(record(number, status="failed", metrics={}, error=said))
        found = [str(r.error) for r in store.records()]
    assert found[:3] == ["\\x1b[2Jgone", "\\udcff\\x00", "\\u202eabc"]
    assert len(found[3]) <= 2000 and found[3].endswith("END") and "characters left out" in found[3]


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


def test_folders_that_were_made_in_vain_are_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    path.parents[1].mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(_database, "FileLock", none)
        with pytest.raises(StoreError, match="No locks available"):
            Store.open(path, **STUDY)
    assert path.parents[1].is_dir() and not list(path.parents[1].iterdir()), "the folder that was there stays, and only that"
    Store.open(path, **STUDY).close()


def test_remains_of_a_deleted_database(path: Path) -> None:
    path.parent.mkdir(parents=True)
    Path(f"{path}-wal").write_bytes(b"old")
    with pytest.raises(StoreError, match="left of a deleted database"):
        Store.open(path, **STUDY)
    assert [p.name for p in path.parent.iterdir()] == ["x.db-wal"]


def test_a_lock_file_that_is_a_link_is_not_followed(filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    Path(f"{filled}.lock").symlink_to(target)
    with pytest.raises(StoreError, match="a link has the name of its lock file: remove it"):
        Store.open(filled, **STUDY)
    assert target.read_text() == "mine"
    Path(f"{filled}.lock").unlink()
    Store.open(filled, **STUDY).close()
