"""Limits on the time and memory of an evaluation, on processes that are no workers of Ray."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ranksearch.errors import InvalidArgument
from ranksearch.runners import _watchdog
from ranksearch.runners._watchdog import Limits

WORKER = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("watchdog", sys.argv.pop(1))  # by its path: the package beside it takes seconds
watchdog = sys.modules["watchdog"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(watchdog)

def hang():
    time.sleep(60)

def hang_where_python_never_returns():
    import re
    re.match("(a+)+$", "a" * 60 + "b")  # holds the interpreter's lock

def swell(size=300):
    kept = [bytearray(2**20) for _ in range(size)]
    time.sleep(60)

def swell_in_a_child():
    import subprocess
    subprocess.run([sys.executable, "-c", "kept = [bytearray(2**20) for _ in range(300)]; import time; time.sleep(60)"])

def work():
    time.sleep(0.2)

dog = watchdog.Watchdog(watchdog.Limits(float(sys.argv[2]) or None, int(sys.argv[3]) or None), sys.argv[1])
for number, what in enumerate(sys.argv[4:]):
    with dog.watching(f"trial{number}", float(what.partition(":")[2] or 0)):
        globals()[what.partition(":")[0]]()
    print("done", flush=True)
dog.close()
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")


def run(folder: Path, limits: Limits, *work: str) -> tuple[int, int]:
    """How a process that does some work ends, and how much of the work it has done."""
    command = [sys.executable, "-c", WORKER, _watchdog.__file__, str(folder), str(limits.seconds or 0), str(limits.memory or 0), *work]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60)
    return ended.returncode, ended.stdout.count("done")


@linux
@pytest.mark.parametrize("hang", ["hang", "hang_where_python_never_returns"])
def test_what_hangs_is_ended_and_why_is_written_down(tmp_path: Path, hang: str) -> None:
    limits = Limits(seconds=1.0)
    assert run(tmp_path, limits, "work", hang) == (-9, 1), "an evaluation that ends in time has no limit beyond it"
    verdict = limits.verdict(tmp_path, "trial1")
    assert verdict is not None and verdict[0] == "it took longer than its limit of 1 seconds" and 1 <= verdict[1] < 30
    assert [path.name for path in tmp_path.iterdir()] == ["trial1"] and limits.verdict(tmp_path, "trial0") is None


@linux
def test_parts_of_one_evaluation_have_one_limit_together(tmp_path: Path) -> None:
    limits = Limits(seconds=20.0)
    begin = time.monotonic()
    assert run(tmp_path, limits, "work:19.0", "hang:19.5") == (-9, 1) and time.monotonic() - begin < 15
    verdict = limits.verdict(tmp_path, "trial1")
    assert verdict is not None and verdict[1] >= 20


@linux
@pytest.mark.parametrize("swell", ["swell", "swell_in_a_child"])
def test_what_takes_too_much_memory_is_ended_children_and_all(tmp_path: Path, swell: str) -> None:
    limits = Limits(memory=250 * 2**20)
    start = time.monotonic()
    assert run(tmp_path, limits, "work", swell) == (-9, 1)
    assert time.monotonic() - start < 50, "its children are gone too: they had the pipe open"
    verdict = limits.verdict(tmp_path, "trial1")
    assert verdict is not None and verdict[0].endswith("of memory, more than its limit of 0.244 GiB")


def test_what_keeps_its_limits_goes_on(tmp_path: Path) -> None:
    assert run(tmp_path, Limits(seconds=30.0, memory=2**34 if sys.platform.startswith("linux") else None), "work", "work") == (0, 2)
    assert not list(tmp_path.iterdir())


def test_a_limit_whose_reason_cannot_be_written_holds_nevertheless(tmp_path: Path) -> None:
    assert run(tmp_path / "elsewhere", Limits(seconds=0.5), "hang") == (-9, 0)


@pytest.mark.parametrize(
    ("given", "named"),
    [({"seconds": 0}, "time_limit=0"), ({"seconds": float("nan")}, "time_limit=nan"), ({"memory": 1.5}, "memory_limit=1.5")],
)
def test_limits_are_checked(given, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Limits(**given)
    assert not Limits() and Limits(1) and Limits(None, 1)
