"""Whether the parts that a run of Ray depends on are still there: the head of the cluster, and Ray's own process on this machine. Ray
itself looks for a head that is gone for a minute and then ends the process, whatever it is doing and without saying what to do."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from ranksearch.errors import ClusterLost
from ranksearch.printable import printable

Place = tuple[str, int]  # host and port

LOOK = 0.2  # seconds between two looks
QUIET = 2  # seconds of silence before a machine is asked whether it is there, and between two questions
QUESTIONS = 3  # without an answer: it is gone
DOOM = 30.0  # seconds in which a run may wind down that has lost its cluster: calls of Ray's that wait for a head cannot be cut short


class Lifeline:
    """Keeps a connection to every process that a run depends on. The kernel closes that of a process that ends, at once, and that of a
    machine that does not answer, after a few seconds.

    A context manager, whose block is the whole run, down to what is done at its end: where a process is gone, that must be over soon."""

    def __init__(self, *, patience: float, remedy: str, doom: float = DOOM) -> None:
        """
        Args:
            patience: seconds that a process may be away: the head of a cluster may be restarted and know what it knew before.
            remedy: what is to be done when it stays away, for the message.
            doom: seconds after which this process is ended, with the message, where the block has not ended by then.
        """
        self._patience, self._remedy, self._doom = patience, remedy, doom
        self._over = threading.Event()
        self.lost: ClusterLost | None = None

    def check(self) -> None:
        """Raises:
        ClusterLost: one of the processes is gone."""
        if self.lost is not None:
            raise self.lost

    @contextlib.contextmanager
    def watching(self, places: Mapping[str, Place]) -> Iterator[None]:
        """Look while the block lasts, which calls `check` now and then.

        Args:
            places: where each process listens, by its name in the message."""
        thread = threading.Thread(target=self._look, args=[places], name="ranksearch-lifeline", daemon=True)
        thread.start()
        try:
            yield
        finally:
            if self.lost is None:
                self._over.set()
                thread.join(2 * QUIET)

    def _look(self, places: Mapping[str, Place]) -> None:
        links = [_Link(name, place) for name, place in places.items()]
        while self.lost is None and not self._over.wait(LOOK):
            now = time.monotonic()
            gone = [link for link in links if not link.holds(now) and now - link.since >= self._patience]
            if gone:
                what = " and ".join(f"{link.name} ({link.place[0]}:{link.place[1]})" for link in gone)
                reason = f"{what}: gone ({gone[0].reason})"
                self.lost = ClusterLost(f"{reason}; what was finished is stored: {self._remedy}run the same again to go on")
        for link in links:
            link.close()
        if self.lost is not None and not self._over.wait(self._doom):  # the block waits for what will not come
            print(printable(f"error: {self.lost}"), file=sys.stderr, flush=True)
            os._exit(2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()


@dataclass
class _Link:
    """A connection to one process."""

    name: str
    place: Place
    since: float = float("inf")  # when it was first found to be gone
    reason: str = ""
    connection: socket.socket | None = None

    def holds(self, now: float) -> bool:
        """Whether the process is there: the connection is open, or is made again."""
        if self._open() or self._connect():
            self.since = float("inf")
            return True
        self.since = min(self.since, now)
        return False

    def _connect(self) -> bool:
        self.close()
        try:
            self.connection = socket.create_connection(self.place, timeout=QUIET)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", QUIET), ("TCP_KEEPINTVL", QUIET), ("TCP_KEEPCNT", QUESTIONS)):
                if hasattr(socket, option):  # not everywhere
                    self.connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            self.connection.setblocking(False)
        except OSError as error:
            self.reason = error.strerror or str(error)
            self.close()
        return self.connection is not None

    def _open(self) -> bool:
        """Whether the connection is: what the other side says meanwhile is of no interest."""
        try:
            while self.connection is not None and self.connection.recv(65536):
                pass
        except BlockingIOError:
            return True
        except OSError as error:
            self.reason = error.strerror or str(error)
        return False

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
