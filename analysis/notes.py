"""What was measured on the way to a result, in a file beside it, so that a run that ended goes on from there."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subjects import resumed

import ranksearch


def hangs_on(given: argparse.Namespace, options: Sequence[str]) -> str:
    """What is noted hangs on the code of the package and of the scripts, and on some options, those that are files by what is in them: this
    changes when they do."""
    digest = hashlib.sha256()
    for folder in (*ranksearch.__path__, Path(__file__).parent):
        for file in sorted(Path(folder).rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    for name in options:
        value = getattr(given, name)
        digest.update(value.read_bytes() if isinstance(value, Path) and value.is_file() else repr(value).encode())
    return digest.hexdigest()


class Page(dict[str, Any]):
    """Values by name, each of which is written down when it is set."""

    def __init__(self, path: Path, place: tuple[str, ...]) -> None:
        super().__init__()
        self._path, self._place = path, place

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        with self._path.open("a") as file:
            file.write(json.dumps({"place": self._place, "name": name, "value": value}) + "\n")


class Notes(dict[tuple[str, ...], Page]):
    """Pages by place, in a file of JSON lines.

    Args:
        path: of the file; begun anew where it is of another ``signature``.
        signature: of what the values hang on.
    """

    def __init__(self, path: Path, signature: str) -> None:
        super().__init__()
        self._path = path
        head, *rows = resumed(path) or [{}]
        if head.get("signature") != signature:
            rows = []
            path.write_text(json.dumps({"signature": signature}) + "\n")
        for row in rows:
            dict.__setitem__(self[tuple(row["place"])], row["name"], row["value"])

    def __missing__(self, place: tuple[str, ...]) -> Page:
        self[place] = Page(self._path, place)
        return self[place]
