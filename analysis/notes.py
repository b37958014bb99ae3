"""What was measured on the way to a result, in a file beside it, so that a run that ended goes on from there."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from subjects import resumed, rewritten

import ranksearch


def hangs_on(given: argparse.Namespace, options: Sequence[str]) -> str:
    """What is noted hangs on the code of the package and of the scripts, and on some options, those that are files by what is in them, and
    folders by the names, sizes and dates of all that is in these: this changes when they do."""
    digest = hashlib.sha256()
    for folder in (*ranksearch.__path__, Path(__file__).parent):
        for file in sorted(Path(folder).rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    for name in options:
        value = getattr(given, name)
        digest.update(value.read_bytes() if isinstance(value, Path) and value.is_file() else repr(value).encode())
        for file in sorted(value.rglob("*")) if isinstance(value, Path) and value.is_dir() else ():
            digest.update(repr((file.relative_to(value), file.stat().st_size, file.stat().st_mtime_ns)).encode())
    return digest.hexdigest()


class Page(dict[str, Any]):
    """Values by name, each of which is written down when it is set."""

    def __init__(self, path: Path, signature: str, place: tuple[str, ...]) -> None:
        super().__init__()
        self._path, self._known = path, {"signature": signature, "place": place}

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        with self._path.open("a") as file:
            file.write(json.dumps(self._known | {"name": name, "value": value}) + "\n")


class Notes(dict[tuple[str, ...], Page]):
    """Pages by place, in a file of JSON lines.

    Args:
        path: of the file, of which what has another ``signature`` is left out.
        signature: of what the values hang on; every line has it, so that what a process of other code adds meanwhile is told apart.
    """

    def __init__(self, path: Path, signature: str) -> None:
        super().__init__()
        self._path, self._signature = path, signature
        rows = resumed(path)
        kept = [row for row in rows if row.get("signature") == signature]
        if len(kept) < len(rows):
            rewritten(path, kept)
        for row in kept:
            dict.__setitem__(self[tuple(row["place"])], row["name"], row["value"])

    def __missing__(self, place: tuple[str, ...]) -> Page:
        self[place] = Page(self._path, self._signature, place)
        return self[place]
