"""Drivers in processes of their own: each runs four evaluations on Ray and says how it ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from forked import Forked

SCRIPT = """
import os, signal, sys, tempfile, time
tempfile.tempdir = None  # what it is forked from has asked for it already, in another environment
from ranksearch.evaluation import Fidelity, Outcome, Point, Progress, Request
from ranksearch.runners import RayTuneRunner
from ranksearch.space import Configuration

def evaluate(request):
    with open(LOG, "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(SECONDS)
    return Outcome(request, "done")

LOG, SECONDS = sys.argv[1], float(sys.argv[2])
signal.signal(signal.SIGTERM, signal.default_int_handler)  # a handler of the caller's
queue = [Request(Configuration(), Fidelity(), seed) for seed in range(4)]
try:
    runner = RayTuneRunner(1, address=os.environ.get("RANKSEARCH_TEST_ADDRESS"))
    runner.run(evaluate, lambda: queue.pop() if queue else None, lambda outcome: print("reported", flush=True))
    import ray
    print("running" if ray.is_initialized() else "stopped")
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(130)
"""


DRIVERS: list[Forked] = []  # that were started, until they are ended


def launch(tmp_path: Path, temporary: str, seconds: float, settings: Mapping[str, str] | None = None) -> tuple[Forked, Path]:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"TMPDIR": temporary}
    for name in [name for name in environment if name.startswith(("RAY_ADDRESS", "TUNE_"))]:
        del environment[name]
    environment |= settings or {}
    process = Forked([str(tmp_path / "script.py"), str(tmp_path / "pids"), str(seconds)], env=environment, merged=True)
    DRIVERS.append(process)
    return process, tmp_path / "pids"


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return condition()
