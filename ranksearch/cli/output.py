"""Frames on standard output or in files, in every format."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranksearch.cli.tables import plural
from ranksearch.errors import InvalidArgument
from ranksearch.home import replacing

if TYPE_CHECKING:
    import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a formula begins with
SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".txt": "table"}


def format_of(out: Path | None) -> str:
    """The format that a file's name asks for.

    Raises:
        InvalidArgument: none."""
    if out is None:
        return "table"
    if (suffix := out.suffix.lower()) not in SUFFIXES:
        raise InvalidArgument(f"--out {out}: the name says no format; end it in {', '.join(SUFFIXES)}, or name one with --format")
    return SUFFIXES[suffix]


def write_frame(frame: pd.DataFrame, format_: str, out: Path | None, as_table: Callable[[], str]) -> None:
    """Print a frame or write it to a file."""
    if format_ == "parquet":
        assert out is not None
        _write(out, lambda path: frame.to_parquet(path, index=False))
    else:
        if format_ == "csv":
            text = str(_without_formulas(frame).to_csv(index=False, lineterminator="\n"))
        elif format_ == "json":
            text = f"{frame.to_json(orient='records', indent=2, date_format='iso')}\n"
        else:
            text = as_table() + "\n"
        if out is None:
            print(text, end="")
        else:
            _write(out, lambda path: path.write_text(text, encoding="utf-8"))
    if out is not None:
        print(f"{plural(len(frame), 'row')} written to {out}", file=sys.stderr)


def _without_formulas(frame: Any) -> Any:
    """The frame, an apostrophe before texts that a spreadsheet would take for a formula. Numbers stay."""
    texts = [name for name, column in frame.items() if column.dtype == "string" or column.dtype == object]
    marked = {name: [f"'{t}" if isinstance(t, str) and t[:1] in FORMULA else t for t in frame[name]] for name in texts}
    return frame.assign(**marked)


def _write(out: Path, write: Callable[[Path], Any]) -> None:
    """Write a file as a whole or not at all."""
    if not out.parent.is_dir():
        raise InvalidArgument(f"--out {out}: there is no directory {out.parent}; make it first")
    with replacing(out) as part:
        write(part)
