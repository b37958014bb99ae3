"""A Ray that a run starts for itself: quiet, on loopback alone, and gone afterwards, however the run ends."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from ray_drivers import launch, wait_for

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")


def remaining(marker: str) -> list[str]:
    """Processes, not zombies, whose environment names the folder of that run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "environ").read_bytes() and ") Z " not in (entry / "stat").read_text():
                    found.append(f"{entry.name} {(entry / 'comm').read_text().strip()}")
            except OSError:  # gone meanwhile, or another user's
                continue
    return found


def listening(marker: str) -> set[str]:
    """The addresses at which these processes listen, as the kernel spells them, in hexadecimal."""
    inodes: set[str] = set()
    for process in remaining(marker):
        for link in Path("/proc", process.split()[0], "fd").iterdir():
            try:
                if (found := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))) is not None:
                    inodes.add(found[1])
            except OSError:  # closed meanwhile
                continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_own_ray_is_quiet_and_gone_afterwards(tmp_path: Path, temporary: str) -> None:
    process, _ = launch(tmp_path, temporary, 0.0, {"RAY_ADDRESS": "127.0.0.1:9", "RANKSEARCH_TEST_ADDRESS": "local"})
    output, _ = process.communicate(120)
    assert process.returncode == 0, output
    assert output.splitlines() == ["reported"] * 4 + ["stopped"]
    assert wait_for(lambda: not remaining(temporary), 5), remaining(temporary)
    assert not list(Path(temporary).glob("ranksearch-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_comes_through_soon_and_leaves_nothing(tmp_path: Path, temporary: str, number: signal.Signals) -> None:
    process, pids = launch(tmp_path, temporary, 600.0)
    assert wait_for(pids.exists, 90), "no evaluation has started"
    os.killpg(process.pid, number)  # as a terminal and a batch system do: to the whole group
    output, _ = process.communicate(60)  # an evaluation takes ten times as long
    assert process.returncode == 130 and "interrupted" in output, output
    assert wait_for(lambda: not remaining(temporary), 3), remaining(temporary)
    assert not list(Path(temporary).glob("ranksearch-*"))


def test_killing_the_driver_leaves_no_process(tmp_path: Path, temporary: str) -> None:
    process, pids = launch(tmp_path, temporary, 600.0)
    assert wait_for(pids.exists, 90), "no evaluation has started"
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert (found := listening(temporary)) and found <= loopback, found
    assert [path.stat().st_mode & 0o777 for path in Path(temporary).glob("ranksearch-*")] == [0o700], "others see nothing of it"
    process.kill()
    process.communicate(30)
    assert wait_for(lambda: not remaining(temporary), 20), remaining(temporary)
    assert wait_for(lambda: not list(Path(temporary).glob("ranksearch-*")), 5)
