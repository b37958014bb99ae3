"""Plain aligned tables, for terminals and pipes alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ranksearch.printable import printable


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, left: Sequence[str] = ()) -> str:
    """Rows under a header, columns aligned to the right except those named in ``left``."""
    cells = [[str(h) for h in header], *[["" if c is None else printable(str(c)) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    lines = []
    for row in cells:
        parts = [c.ljust(w) if h in left else c.rjust(w) for c, w, h in zip(row, widths, header, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def percent(value: float) -> str:
    """A share as a percentage."""
    return "" if value != value else f"{100 * value:.1f} %"


def share(part: float, whole: float) -> str:
    """A part of a whole as a percentage; empty where there is nothing to have a share of."""
    return percent(part / whole) if whole else ""


def count(value: float) -> str:
    """A large number, short: 172k, 40.8M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}" if abs(value) / size < 999.5 else f"{value / size:.0f}{unit}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def amount(value: float) -> str:
    """A number in full where it is whole, else to four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def plural(number: int, noun: str) -> str:
    """1 site, 2 sites."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
