"""Settings of this process that last as long as a run: environment variables, where it listens, interrupts put off."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that ask a process to end


@contextlib.contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables as given; afterwards as they were."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def loopback() -> Iterator[None]:
    """A Ray that is started in the block listens on this machine's loopback alone. It does so by itself where it is not made for clusters;
    elsewhere its ports are open on all interfaces, and whoever reaches them runs code."""
    import ray._private.ray_constants as constants

    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        with environment({constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}):  # for the processes that it starts
            yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def unechoed() -> Iterator[None]:
    """In the block Ray does not print here what its other processes say: of one that was killed it is some fifty lines of its log, on
    standard output."""
    import ray._private.worker as worker

    name = "print_to_stdstream"
    before = getattr(worker, name, None)  # None: another Ray
    setattr(worker, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(worker, name, before)


def uninterrupted(action: Callable[[], object]) -> None:
    """Do something that must not be cut in half: a signal that stops the process and comes meanwhile is raised right after it. What
    handles these signals is then what it was before, whatever ``action`` has put there. Outside the main thread, where none
    arrives, ``action`` is just called."""
    if threading.current_thread() is not threading.main_thread():
        action()
        return
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in STOPPING}
    try:
        action()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    for number in came:
        signal.raise_signal(number)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
