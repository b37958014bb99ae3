"""The address of a Ray cluster: whether it can be one, and whether a cluster answers there. Ray itself looks for minutes, or
fails with errors of its own."""

from __future__ import annotations

import os
import queue
import re
import socket
import subprocess
import sys
import threading

from ranksearch.errors import InvalidArgument

CONNECT, ANSWER, IMPORT = 4.0, 7.0, 120.0  # seconds: for a connection, for Ray's answer, for the start of Python and Ray in between
FORMS = "give 'auto' for the cluster that runs on this machine, or the address of its head as 'host:6379'"
# in a process of its own, since a client that gets no answer cannot be stopped; it prints what Python takes long to import first
PROBE = """
import sys
try:
    from ray._private.services import canonicalize_bootstrap_address
    from ray._raylet import GcsClient
except ImportError:  # another Ray, which moved them: its own init must tell
    print("imported\\nunknown", flush=True)
    sys.exit()
print("imported", flush=True)
try:
    GcsClient(address=canonicalize_bootstrap_address(sys.argv[1]))
    print("answers")
except Exception as error:
    print("fails", " ".join(str(error).split()))
"""


def checked_address(address: str) -> str:
    """An address of a Ray cluster that answers, as it was given: ``auto`` or ``host:port``.

    Raises:
        InvalidArgument: it has another form, or no Ray cluster answers there within about 12 seconds.
    """
    if not isinstance(address, str):
        raise InvalidArgument(f"address={address!r}: {FORMS}")
    if address.startswith("ray://"):
        raise InvalidArgument(
            f"address={address!r}: through Ray Client the search itself would run on the cluster and not reach the store here; "
            "run on a machine of the cluster with address='auto', or give the address of its head as 'host:6379'"
        )
    if address != "auto":
        _connect(address, *_split(address))
    answer = _answer(address)
    if answer not in ("answers", "unknown"):
        reason = answer.removeprefix("fails").strip()
        if address == "auto":
            where = f"at RAY_ADDRESS={elsewhere}" if (elsewhere := os.environ.get("RAY_ADDRESS")) else "on this machine"
            raise InvalidArgument(f"address='auto': no Ray cluster runs {where} ({reason}); start one with `ray start --head`")
        raise InvalidArgument(f"address={address!r}: something listens there, but no Ray cluster answers ({reason}); {FORMS}")
    return address


def _split(address: str) -> tuple[str, int]:
    """Host and port."""
    found = re.fullmatch(r"(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})", address)
    if found is None or not 0 < int(found["port"]) < 2**16:
        raise InvalidArgument(f"address={address!r} is no address of a Ray cluster: {FORMS}")
    return found["host"].strip("[]"), int(found["port"])


def _connect(address: str, host: str, port: int) -> None:
    """Refuse where nothing listens."""
    result: queue.Queue[OSError | UnicodeError | None] = queue.Queue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT).close()
            result.put(None)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label of the name is empty or too long
            result.put(error)

    threading.Thread(target=connect, daemon=True).start()  # looking a name up knows no time limit
    try:
        error = result.get(timeout=CONNECT + 1)
    except queue.Empty:
        error = OSError("timed out")
    if error is not None:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidArgument(f"address={address!r} cannot be reached ({reason}): start the cluster, or {FORMS}")


def _answer(address: str) -> str:
    """What the probe says of an address."""
    with subprocess.Popen(
        [sys.executable, "-c", PROBE, address], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as probe:
        lines: queue.Queue[str] = queue.Queue()

        def read() -> None:
            assert probe.stdout is not None
            for line in probe.stdout:
                lines.put(line.strip())
            lines.put("fails without a word")

        threading.Thread(target=read, daemon=True).start()
        try:
            first = lines.get(timeout=IMPORT)
            return lines.get(timeout=ANSWER) if first == "imported" else first
        except queue.Empty:
            return f"fails no answer within {ANSWER:g} seconds"
        finally:
            probe.kill()
            probe.wait()
