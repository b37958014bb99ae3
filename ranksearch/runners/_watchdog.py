"""Limits on the time and memory of one evaluation. A process of a few lines beside every worker looks at it from outside, so that it
does not matter what the worker is busy with (code that never returns to Python, a stopped process): what goes beyond a limit is
killed, after the reason was written down for the driver to find."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ranksearch import checks
from ranksearch.errors import InvalidArgument

LOOK = 0.1  # seconds between two looks

CODE = """
import os, select, signal, sys, time

pid, folder, seconds, size, look = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])

def own(process):  # bytes that no other process has: not what is mapped from files and shared memory
    with open(f"/proc/{process}/status") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))

def family(process):
    found = [process]
    for parent in found:
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    found += [int(child) for child in file.read().split()]
        except OSError:  # gone meanwhile, or no Linux
            continue
    return [one for one in found if one != os.getpid()]

def used():
    total = 0
    for process in family(pid):
        try:
            total += own(process)
        except OSError:
            continue
    return total

def end(name, reason):
    try:
        with open(os.path.join(folder, "." + name), "w") as file:
            file.write(reason)
        os.rename(file.name, os.path.join(folder, name))
    except OSError:  # another machine than the driver's, or a full disk: the driver hears of a worker that died
        pass
    for process in family(pid)[::-1]:
        try:
            os.kill(process, signal.SIGKILL)
        except OSError:
            continue
    sys.exit()

name, begin = "", 0.0
while True:
    if select.select([0], [], [], look if name else None)[0]:
        said = os.read(0, 65536).decode()
        if not said:  # the worker has ended
            sys.exit()
        name, _, spent = said.split("\\n")[-2].partition(" ")
        begin = time.monotonic() - float(spent or 0)
        continue
    took = time.monotonic() - begin
    if seconds and took >= seconds:
        end(name, f"time {took}")
    if size and (memory := used()) > size:
        end(name, f"memory {took} {memory}")
"""


@dataclass(frozen=True)
class Limits:
    """What one evaluation may take.

    Attributes:
        seconds: of time, from its beginning in a worker; None: as long as it takes.
        memory: bytes that its worker and the processes that it starts have for themselves (on Linux, ``RssAnon``: without what is
            shared, such as weights in Ray's object store, and without what a GPU has); None: as much as it takes.

    Raises:
        InvalidArgument: one that is not positive, or a limit on memory where the system does not tell what a process has.
    """

    seconds: float | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None:
            checks.number("time_limit", self.seconds, above=0, hint="seconds")
        if self.memory is not None:
            checks.whole("memory_limit", self.memory, least=1, hint="bytes")
            if not sys.platform.startswith("linux"):
                raise InvalidArgument(f"memory_limit={self.memory}: {sys.platform} does not tell what a process has; leave it out")

    def __bool__(self) -> bool:
        return self.seconds is not None or self.memory is not None

    def verdict(self, folder: Path, name: str) -> tuple[str, float] | None:
        """Why the evaluation ``name`` was ended, in words, and after how many seconds; None where it was not by a limit."""
        try:
            limit, *numbers = (folder / name).read_text().split()
        except OSError:
            return None
        if limit == "time":
            return self.too_long, float(numbers[0])
        return f"it took {_gibibytes(int(numbers[1]))} of memory, more than its limit of {_gibibytes(self.memory or 0)}", float(numbers[0])

    @property
    def too_long(self) -> str:
        """In words, that an evaluation took too long."""
        return f"it took longer than its limit of {self.seconds:g} seconds"


class Watchdog:
    """Looks at the process that made it."""

    def __init__(self, limits: Limits, folder: str) -> None:
        """
        Args:
            folder: where the reason is written when the process is killed.
        """
        arguments = [os.getpid(), folder, limits.seconds or 0, limits.memory or 0, LOOK]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CODE, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip

    @contextlib.contextmanager
    def watching(self, name: str, spent: float = 0.0) -> Iterator[None]:
        """The block is the evaluation ``name``, or what follows a part of it that took ``spent`` seconds, and has the limits."""
        self._say(f"{name} {spent}")
        try:
            yield
        finally:
            self._say("")

    def close(self) -> None:
        """End the watchdog."""
        self._process.communicate()

    def _say(self, name: str) -> None:
        pipe: IO[str] | None = self._process.stdin
        assert pipe is not None
        pipe.write(name + "\n")
        pipe.flush()


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
