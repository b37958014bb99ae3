"""Measurements on disk, by environment and layer, so that a layer is measured once on a device."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ranksearch.decompositions import Rank
from ranksearch.home import replacing
from ranksearch.latency.inputs import digest
from ranksearch.latency.timing import Interval

SCHEMA = 1
Known = dict[str, dict[Rank, Interval]]  # ratios to the dense layer, by type and rank


class MeasurementCache:
    """A folder with a JSON file per environment and layer. What is damaged or of another schema counts as absent; removing a file is
    safe at any time. Where two processes measure one layer at once, the file is that of the one that ends last.

    Args:
        folder: made when something is written; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def load(self, environment: Mapping[str, Any], layer: str) -> Known:
        """What is known of a layer."""
        path = self._path(environment, layer)
        if path is None:
            return {}
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if [data["schema"], data["environment"], data["layer"]] != [SCHEMA, dict(environment), layer]:
                return {}
            return {name: points_of(rows) for name, rows in data["types"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def save(self, environment: Mapping[str, Any], layer: str, known: Known) -> None:
        """Keep what is known of a layer; what cannot be written is a warning: it is measured again next time."""
        path = self._path(environment, layer)
        if path is None:
            return
        types = {name: rows_of(points) for name, points in known.items()}
        data = {"schema": SCHEMA, "environment": dict(environment), "layer": layer, "types": types}
        try:
            with replacing(path) as unfinished:
                unfinished.write_text(json.dumps(data, indent=1), encoding="utf-8")
        except OSError as error:
            warnings.warn(f"cannot cache in {path.parent}: {error}; set RANKSEARCH_HOME to a writable folder with free space", stacklevel=2)

    def _path(self, environment: Mapping[str, Any], layer: str) -> Path | None:
        name = digest(json.dumps(dict(environment), sort_keys=True), layer)
        return None if self.folder is None else self.folder / f"{name}.json"


def rows_of(points: Mapping[Rank, Interval]) -> list[list[Any]]:
    """Measurements as JSON: rank, median, low and high end."""
    return [[list(rank), i.value, i.low, i.high] for rank, i in sorted(points.items())]


def points_of(rows: Any) -> dict[Rank, Interval]:
    """Inverse of `rows_of`.

    Raises:
        ValueError, TypeError: it is not that."""
    found = {}
    for rank, *values in rows:
        value, low, high = (float(number) for number in values)
        if not 0 < low <= value <= high < float("inf"):
            raise ValueError(f"{values} is no interval of ratios")
        found[tuple(int(entry) for entry in rank)] = Interval(value, low, high)
    return found
