"""One writer, many readers, and processes that are killed while they write."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from store_cases import STUDY, child, record, snapshot

from ranksearch.errors import StoreError
from ranksearch.store import Store
from ranksearch.store import database as _database
from ranksearch.store.lock import FileLock


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


def test_who_writes_is_told_without_a_lock(filled: Path) -> None:
    me = f"pid {os.getpid()} on {socket.gethostname()}"
    assert Store.writers(filled) == []
    code = "print(*Store.writers(sys.argv[1]))"
    with Store.open(filled, **STUDY) as store:
        assert Store.writers(filled) == [me]
        assert child(code, filled).communicate(timeout=60)[0] == f"{me}\n"
        before = store.changes()
        assert store.add(record(8)) and store.changes() == before + 1
        assert store.add(record(9, status="failed", metrics={}, error="MemoryError", error_kind="machine"))
        assert store.add_attempt(record(9)) and store.changes() == before + 3
    dead = child("", filled)
    dead.communicate(timeout=60)
    lock = Path(f"{filled}.lock")
    for text, writers in ((f"pid {dead.pid} on {socket.gethostname()}\n", []), ("pid 1 on elsewhere\n", ["pid 1 on elsewhere"]), ("", [])):
        lock.write_text(text)
        assert Store.writers(filled) == writers


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


def test_the_place_is_given_back_once(tmp_path: Path) -> None:
    place = tmp_path / "x.db"
    first = FileLock(place, "x.db")
    first.release()
    second = FileLock(place, "x.db")  # its file may have the number that the first one's had
    first.release()
    second.check(None)  # type: ignore[arg-type]
    os.fstat(second._file)
    second.release()
    second.release()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_half_made_is_no_obstacle(path: Path) -> None:
    path.parent.mkdir(parents=True)
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(f".{path.name}.draft{suffix}").write_bytes(b"half")
    with Store.open(path, **STUDY) as store:
        assert store.add(record()) and store.count() == 1
    assert [p.name for p in path.parent.iterdir()] == ["x.db"]


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
        lines += writer.stdout.readlines()  # communicate() would pass over what the first call has read ahead
        _, err = writer.communicate(timeout=60)
        assert writer.returncode == -signal.SIGKILL, err
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


def test_a_writer_that_looks_at_its_own_store_keeps_it(filled: Path) -> None:
    """Whoever opens and closes the file beside SQLite drops the locks of its own connections; another reader that closes the database then
    takes itself for the last one, and removes the log that the writer goes on writing to."""
    code = "with Store.open(sys.argv[1], create=False) as store: print(store.count())"
    with Store.open(filled, **STUDY) as store:
        assert store.add(record(8))
        with Store.open(filled, create=False) as own:
            assert own.count() == 4
        assert child(code, filled).communicate(timeout=60)[0] == "4\n"
        assert Path(f"{filled}-wal").exists()
        assert store.add(record(9))
        assert child(code, filled).communicate(timeout=60)[0] == "5\n", "what is added is seen by others"
    with Store.open(filled, create=False) as store:
        assert store.count() == 5
