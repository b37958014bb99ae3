"""Latency tables as CSV: columns site, type, rank, milliseconds, for what was measured on a phone, in TensorRT or by other tools.

A row of type ``dense`` and no rank is the site as it is, and every site needs one. A row without a site is the whole dense network;
without it the latency of a network is the sum over its sites. Ranks of several entries are written ``8x16``. A first line that
begins with ``#`` names the device."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ranksearch.decompositions import Rank
from ranksearch.errors import InvalidArgument
from ranksearch.home import replacing
from ranksearch.latency.correction import simple
from ranksearch.latency.table import Correction, LatencyTable, LayerTimes
from ranksearch.latency.timing import Interval

COLUMNS = ("site", "type", "rank", "milliseconds")
ENDS = ("low", "high")  # of a 95 % interval, in milliseconds; may be missing
DENSE = "dense"
MILLION = 1e6  # nanoseconds in a millisecond


def write_table(table: LatencyTable, path: str | Path) -> None:
    """Write a table; every site has its rows, also where layers are identical. What `read_table` gives of it predicts the same but
    for the fitted scale, which is written into the milliseconds.

    Raises:
        OSError: the file cannot be written."""

    def milliseconds(site: str, *ratios: float) -> list[str]:
        return [_text(float(amount) / MILLION) for amount in table.counted(site, np.array(ratios))]

    with replacing(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {table.words()}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *ENDS])
        writer.writerow(["", DENSE, "", _text((table.correction.rest + table.correction.scale * table.dense_sum) / MILLION), "", ""])
        for site, name in table.sites.items():
            layer = table.layers[name]
            writer.writerow([site, DENSE, "", *milliseconds(site, 1.0), "", ""])
            for kind, points in layer.types.items():
                for rank, found in sorted(points.items()):
                    rank_text = "x".join(map(str, rank))
                    writer.writerow([site, kind, rank_text, *milliseconds(site, found.value, found.low, found.high)])


def read_table(path: str | Path) -> LatencyTable:
    """Read a table.

    Raises:
        InvalidArgument: no such file, a missing column, a row that cannot be read (named by its line), a type of a site without its
            dense row, or two rows of one option."""
    path = Path(path)
    comments, rows = _read(path)
    whole: float | None = None
    dense: dict[str, float] = {}
    times: dict[str, dict[str, dict[Rank, Interval]]] = {}
    for where, row in rows:
        site, kind, rank = _option(where, row)
        value = _milliseconds(where, "milliseconds", row["milliseconds"])
        if kind == DENSE and not site:
            whole = value
        elif rank in times.get(site, {}).get(kind, {}) or (kind == DENSE and site in dense):
            raise InvalidArgument(f"{where}: {kind} {row['rank'] or ''} of {site!r} is there twice; keep one of the rows")
        elif kind == DENSE:
            dense[site] = value
        else:
            times.setdefault(site, {}).setdefault(kind, {})[rank] = _interval(where, row, value)
    without = [site for site in times if site not in dense]
    if without or not dense:
        named = f" of site {without[0]!r}" if without else ""
        raise InvalidArgument(f"table={str(path)!r} has no row of type dense{named}: times are compared with it; add it, without a rank")
    layers = {site: LayerTimes(MILLION * own, _ratios(times.get(site, {}), own)) for site, own in dense.items()}
    total = MILLION * sum(dense.values())
    correction = Correction(0.0, 1.0) if whole is None else simple(total, MILLION * whole)
    device = comments[0] if comments else path.stem
    return LatencyTable(device, 0, "imported", "", None, {site: site for site in dense}, layers, correction, imported=True).named()


def _read(path: Path) -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """The comments of a table, and its rows with where they stand."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"table={str(path)!r} cannot be read: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    reader = csv.DictReader(line for _, line in numbered)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
    if missing:
        raise InvalidArgument(f"table={str(path)!r} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    rows = [(f"table={str(path)!r}, line {number}", row) for (number, _), row in zip(numbered[1:], reader, strict=False)]
    return [line[1:].strip() for line in lines if line.startswith("#")], rows


def _option(where: str, row: Mapping[str, str]) -> tuple[str, str, Rank]:
    site, kind, rank = (row["site"] or "").strip(), (row["type"] or "").strip(), _rank(where, row["rank"])
    if not kind or (kind == DENSE) == bool(rank) or (not site and kind != DENSE):
        raise InvalidArgument(f"{where}: type={kind!r}, rank={row['rank']!r}: dense has no rank, every other type has a site and one")
    return site, kind, rank


def _interval(where: str, row: Mapping[str, str], value: float) -> Interval:
    low, high = (_milliseconds(where, end, row.get(end) or row["milliseconds"]) for end in ENDS)
    if not low <= value <= high:
        raise InvalidArgument(f"{where}: {value:g} ms is not between low={low:g} and high={high:g}")
    return Interval(value, low, high)


def _ratios(types: dict[str, dict[Rank, Interval]], dense: float) -> dict[str, dict[Rank, Interval]]:
    return {
        kind: {rank: Interval(i.value / dense, i.low / dense, i.high / dense) for rank, i in points.items()}
        for kind, points in types.items()
    }


def _rank(where: str, text: str | None) -> Rank:
    parts = (text or "").strip().split("x")
    if parts == [""]:
        return ()
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InvalidArgument(f"{where}: rank={text!r} is no rank; write 8, or 8x16 for two entries")
    return tuple(int(part) for part in parts)


def _milliseconds(where: str, column: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise InvalidArgument(f"{where}: {column}={text!r} is no positive number")
    return value


def _text(value: float) -> str:
    return f"{value:.9g}"
