"""The right to write to a store: only one process at a time has it for a SQLite file."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa

from ranksearch.errors import StoreError


class WriterLock(Protocol):
    """The right to write, held by one store at a time."""

    def check(self, connection: sa.Connection) -> None:
        """Raise StoreError if the right to write was lost; called within the transaction that writes."""
        ...

    def release(self) -> None:
        """Give the right to write back; doing it twice is fine."""
        ...


class NoLock:
    """A database in memory is seen by one store only."""

    def check(self, connection: sa.Connection) -> None:
        return

    def release(self) -> None:
        return


def _taken(shown: str, holder: str) -> StoreError:
    remedy = "wait for it or stop it, or use another --store (reading is possible meanwhile)"
    return StoreError(f"store {shown!r} is being written by {holder}; {remedy}")


class FileLock:
    """A lock file beside a SQLite store, locked with POSIX record locks. The kernel frees the lock when the process dies, however
    it dies, and forked children never hold it. The file is removed while the lock is held; therefore a process that gets the lock
    makes sure that the file which it locked is still the one that others see."""

    _held: dict[str, int] = {}  # noqa: RUF012 - per process: record locks do not exclude the process that holds them

    def __init__(self, path: Path, shown: str) -> None:
        self._path, self._shown, self._pid = f"{path}.lock", shown, os.getpid()
        if FileLock._held.get(self._path) == self._pid:
            # opening and closing the file here would drop the lock that is held
            raise _taken(shown, f"this process, pid {self._pid}, through another open Store")
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                holder = self._holder()
                os.close(self._file)
                raise _taken(shown, holder) from error
            except BaseException:
                os.close(self._file)
                raise
            if self._is_ours():
                break
            os.close(self._file)
        FileLock._held[self._path] = self._pid
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"pid {self._pid} on {socket.gethostname()}\n".encode(), 0)
        except BaseException:
            self.release()
            raise

    def _holder(self) -> str:
        for _ in range(20):  # it may be about to write its name
            if text := os.pread(self._file, 300, 0).decode(errors="replace").strip():
                return text
            time.sleep(0.01)
        return "another process"

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def check(self, connection: sa.Connection) -> None:
        if os.getpid() != self._pid:
            raise StoreError(f"store {self._shown!r} was opened by process {self._pid}; a forked child cannot write to it")
        if not self._is_ours():
            raise StoreError(f"store {self._shown!r}: the lock file {self._path} was removed while the store was being written; run again")

    def release(self) -> None:
        if self._file < 0 or os.getpid() != self._pid:
            return
        if self._is_ours():
            os.unlink(self._path)
        os.close(self._file)
        self._file = -1
        del FileLock._held[self._path]


def file_writers(path: Path) -> list[str]:
    """Who holds the lock file beside a SQLite store: nobody, if a dead process of this host does. It is only looked at, never locked."""
    name = f"{path}.lock"
    if FileLock._held.get(name) == os.getpid():  # closing the file here would drop the lock
        return [f"pid {os.getpid()} on {socket.gethostname()}"]
    try:
        text = Path(name).read_text(errors="replace").strip()
    except OSError:  # nobody writes, or may be seen to
        return []
    found = re.fullmatch(r"pid (\d+) on (.+)", text)
    if found is None or (found[2] == socket.gethostname() and not _runs(int(found[1]))):
        return []
    return [text]


def _runs(pid: int) -> bool:
    """Whether there is a process of that number on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
