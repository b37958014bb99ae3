"""What evaluations had measured on their way, as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ranksearch.results.frames import framed, typed
from ranksearch.results.names import CURVE_COLUMNS, METRICS

FACTS = ("configuration_id", "fidelity", "seed", "status", "curve")
"""What `curves` needs of a store."""


def curves(facts: Mapping[str, Sequence[Any]], metrics: Sequence[str]) -> pd.DataFrame:
    """One row per point that was measured on the way of an evaluation, in the order of the store; columns: ``docs/analysis.md``.

    Args:
        facts: columns of a store, `FACTS`.
        metrics: of the task.

    Raises:
        ValueError, TypeError: a curve that is no JSON of pairs (epochs, metrics).
    """
    found: dict[str, list[Any]] = {name: [] for name in (*_OF_ROW, "epochs", *metrics)}
    for row, text in enumerate(facts["curve"]):
        for epochs, measured in json.loads(text or "[]"):
            for name in _OF_ROW:
                found[name].append(facts["configuration_id" if name == "id" else name][row])
            found["epochs"].append(float(epochs))
            for name in metrics:
                found[name].append(float(measured.get(name, "nan")))
    named = [name for column in CURVE_COLUMNS for name in (metrics if column == METRICS else [column])]
    return framed({name: typed(name, found[name]) for name in named})


_OF_ROW = ("id", "fidelity", "seed", "status")
