"""When the driver is killed, Ray's workers end with it, but two of Ray's helper processes and the temporary folder may not; when Ray's
own head is killed, its workers may not. A process of a few lines waits for that and removes what is left. It works on Linux; elsewhere
nothing is done."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

MARK = "RANKSEARCH_RUN"  # in the environment of every process of a run: its temporary folder
GRACE = 3.0  # seconds that Ray's processes have to end by themselves

CODE = """
import os, shutil, signal, sys, time
folder, mark, grace = sys.argv[1], sys.argv[2], float(sys.argv[3])
spared = {os.getpid()}
said = sys.stdin.buffer.read(1)
if said == b".":  # the run ended as it should
    sys.exit()
if said:  # the driver lives on, without Ray
    spared.add(int(sys.argv[4]))
else:  # the driver is gone
    time.sleep(grace)
wanted = f"{mark}={folder}".encode()

def ours(process):
    with open(process + "/environ", "rb") as file:
        if wanted in file.read().split(b"\\0"):
            return True
    # a process title may have overwritten the environment: what logs into the folder of the run is of the run, too
    return any(target(entry.path).startswith(root) for entry in os.scandir(process + "/fd"))

def target(path):
    try:
        return os.readlink(path)
    except OSError:  # closed meanwhile
        return ""

root = os.path.realpath(folder) + "/"

for _ in range(20):
    found = False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(pid) not in spared and ours("/proc/" + pid):
                os.kill(int(pid), signal.SIGKILL)
                found = True
        except OSError:  # gone meanwhile, or another user's
            continue
    if not found:
        break
    time.sleep(0.2)
shutil.rmtree(folder, ignore_errors=True)
"""


@contextlib.contextmanager
def reaper(folder: str) -> Iterator[Callable[[], None]]:
    """While the block lasts, the end of this process is also the end of ``folder`` and of all processes that were started meanwhile
    and inherited the environment. What the block is given ends them at once, where this process lives on and Ray cannot end them.

    Args:
        folder: temporary folder of the run; marks its processes, so it must be this run's alone.
    """
    if not sys.platform.startswith("linux"):
        yield lambda: None
        return
    # a session of its own: an interrupt from the terminal is not for it
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", CODE, folder, MARK, str(GRACE), str(os.getpid())],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.environ[MARK] = folder
    try:
        yield lambda: _say(process, b"!")
    finally:
        os.environ.pop(MARK, None)
        _say(process, b".")


def _say(process: subprocess.Popen[bytes], word: bytes) -> None:
    if process.poll() is None:
        with contextlib.suppress(BrokenPipeError):  # somebody has ended it
            process.communicate(word)
