"""Records, other processes, and what is left as it was: what the tests of the store share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ranksearch.errors import StoreError
from ranksearch.store import Record, Store

STUDY = {"study": "digits", "fingerprint": "f00d"}
# a process without torch, so that starting one takes a fraction of a second
PRELUDE = "import sys; from ranksearch.store import Record, Store\n"


def record(number: int = 0, **changes) -> Record:
    values = {
        "configuration_id": f"{number:012x}", "configuration": f'{{"a":["svd",[{number}]]}}', "fidelity": "full", "seed": 0,
        "status": "done",
        "metrics": {"loss": 0.25, "accuracy": 0.9}, "costs": {"params": 10, "macs": 10**12}, "seconds": 1.5, "origin": "nsga2",
    }  # fmt: skip
    return Record(**(values | changes))


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def stored_details(where) -> dict[str, Any]:
    with Store.open(where, create=False) as store:
        return store.details


def attempts(where):
    """Every way to open, each must refuse."""
    yield lambda: Store.open(where, **STUDY)
    yield lambda: Store.open(where, **STUDY, create=True, write=False)
    yield lambda: Store.open(where, create=False)
    yield lambda: Store.open(where, create=False, write=True)


def refused(where, match: str) -> None:
    for attempt in attempts(where):
        with pytest.raises(StoreError, match=match):
            attempt()


def snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) if p.is_file() else (b"", 0) for p in sorted(directory.rglob("*"))}
