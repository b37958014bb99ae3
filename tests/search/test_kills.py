"""A search whose driver, worker, raylet and head are killed at random moments: nothing is lost, nothing that was finished is repeated, and
no process is left. ``RANKSEARCH_KILLS=60`` kills as many."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import pytest
from forked import Forked

from ranksearch.space import Configuration
from ranksearch.store import Store

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")

VICTIMS = ("driver", "worker", "raylet", "gcs_server")
# 400 trials: more than it ever comes to
SEARCH = """
import os, sys, tempfile, time
from pathlib import Path
tempfile.tempdir = None  # what it is forked from has asked for it already, in another environment
sys.path.insert(0, sys.argv[1])
from search_cases import small_space
from ranksearch.errors import ClusterLost
from ranksearch.evaluation import Fidelity, Outcome
from ranksearch.runners import RayTuneRunner
from ranksearch.samplers import Random
from ranksearch.search.run import Objectives, SearchRun
from ranksearch.store import Store

def evaluate(request):
    with open(LOG, "a") as file:
        file.write(f"{request.configuration.id} {os.getpid()}\\n")
    time.sleep(0.2)
    return Outcome(request, "done", {"accuracy": 0.5})

LOG, space = sys.argv[3], small_space(12)
objectives = Objectives(("accuracy", "macs"), {"accuracy": "max", "macs": "min", "params": "min"}, space.baseline)
run = SearchRun(space, objectives, Fidelity(epochs=0), 0, 400, Random(), [], None, {}, lambda: evaluate)
print("BEGUN", flush=True)
try:
    with Store.open(sys.argv[2], study="s", fingerprint="f") as store:
        run.run(store, RayTuneRunner(2, address="local", backoff=0.1), lambda event: None)
except ClusterLost as error:
    print(error, flush=True)
    sys.exit(2)
"""


def marked(folder: str) -> dict[int, str]:
    """Processes, not zombies, whose environment names the folder of a run or that write into it: names by id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                of = folder.encode() in (entry / "environ").read_bytes() or any(
                    os.readlink(link).startswith(folder) for link in (entry / "fd").iterdir()
                )
                if of and ") Z " not in (entry / "stat").read_text():
                    found[int(entry.name)] = (entry / "comm").read_text().strip()
            except OSError:  # gone meanwhile, or another user's
                continue
    return found


def until(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def finished(store: Path) -> set[str]:
    """What is stored, and what a worker has written down to be stored by the next run."""
    if not store.exists():
        return set()
    with Store.open(store, create=False) as opened:
        ids = {record.configuration_id for record in opened.records()}
        spooled = opened.spool.glob("*.json") if opened.spool is not None and opened.spool.exists() else ()
        return ids | {spelled(path) for path in spooled}


def spelled(path: Path) -> str:
    return Configuration.from_json(json.loads(path.read_text())["configuration"]).id


def begun(log: Path) -> list[str]:
    """The ids of evaluations that were begun."""
    return [line.split()[0] for line in log.read_text().splitlines()]


@pytest.mark.timeout(900)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    generator = random.Random(time.time_ns())
    store, log = tmp_path / "s.db", tmp_path / "log"
    log.touch()
    (tmp_path / "search.py").write_text(SEARCH)
    before: set[str] = set()
    for victim in islice(cycle(VICTIMS), int(os.environ.get("RANKSEARCH_KILLS", len(VICTIMS)))):
        seen = len(begun(log))
        early = generator.uniform(0, 5.0) if victim == "driver" and generator.random() < 0.5 else None
        said = search_and_strike(tmp_path, victim, generator.uniform(0, 1.0), early)
        after = finished(store)
        assert before <= after, f"{victim}: {before - after} is lost"
        assert not before & set(begun(log)[seen:]), f"{victim}: {before & set(begun(log)[seen:])} is repeated"
        assert victim not in ("raylet", "gcs_server") or "run the same again to go on" in said, said
        before = after
    assert len(before) > 6
    with Store.open(store, create=False) as opened:
        assert {record.status for record in opened.records()} == {"done"}


def search_and_strike(tmp_path: Path, victim: str, late: float, early: float | None) -> str:
    """One search, whose victim is killed ``late`` seconds after evaluations have begun, or ``early`` after its start. Returns what it said;
    nothing of it is left."""
    log = tmp_path / "log"
    seen = len(begun(log))
    with tempfile.TemporaryDirectory(prefix="rsk", dir="/tmp", ignore_cleanup_errors=True) as folder:
        arguments = [str(tmp_path / "search.py"), str(Path(__file__).parent), str(tmp_path / "s.db"), str(log)]
        driver = Forked(arguments, env=os.environ | {"TMPDIR": folder}, merged=True)
        try:
            assert driver.stdout.readline() == "BEGUN\n"
            if early is None:
                assert until(lambda: len(begun(log)) > seen + 2 or driver.poll() is not None, 90), marked(folder)
            time.sleep(late if early is None else early)
            said = strike(victim, driver, folder, log)
            assert until(lambda: not marked(folder), 10), (victim, marked(folder))
            assert until(lambda: not list(Path(folder).glob("ranksearch-*")), 3)
        finally:
            driver.kill()
    return said


def strike(victim: str, driver: Forked, folder: str, log: Path) -> str:
    """Kill it; after a worker, which is replaced, the driver is asked to end. Returns what the driver said."""
    if victim == "driver":
        driver.kill()
    elif victim == "worker":
        seen = log.read_text().splitlines()
        os.kill(int(seen[-1].split()[1]), signal.SIGKILL)
        assert until(lambda: len(log.read_text().splitlines()) > len(seen) + 4, 60), "it goes on with another"
        driver.send_signal(signal.SIGTERM)
    else:
        for pid in [pid for pid, name in marked(folder).items() if name == victim]:
            os.kill(pid, signal.SIGKILL)
    said, _ = driver.communicate(60)
    assert driver.returncode == {"driver": -signal.SIGKILL, "worker": -signal.SIGTERM}.get(victim, 2), said
    return said
