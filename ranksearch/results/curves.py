"""What was measured in the course of evaluations, as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ranksearch.results.frames import Facts, framed, typed
from ranksearch.results.names import CURVE_COLUMNS, METRICS

FACTS = ("configuration_id", "fidelity", "seed", "status", "curve")
"""What `curves` needs of a store."""
_OF_ROW = ("id", "fidelity", "seed", "status")


def curves(facts: Facts, metrics: Sequence[str]) -> pd.DataFrame:
    """One row per point that was measured on the way of an evaluation, in the order of the store; columns: ``docs/analysis.md``.

    Args:
        facts: columns of a store, `FACTS`.
        metrics: of the task.

    Raises:
        ValueError, TypeError: a curve that is no JSON of pairs (epochs, metrics).
    """
    found: dict[str, list[Any]] = {name: [] for name in (*_OF_ROW, "epochs", *metrics)}
    there = facts["curve"].is_valid()
    kept = {name: facts[name].filter(there).to_pylist() for name in FACTS}
    for row, text in enumerate(kept["curve"]):
        for epochs, measured in json.loads(text):
            for name in _OF_ROW:
                found[name].append(kept["configuration_id" if name == "id" else name][row])
            found["epochs"].append(float(epochs))
            for name in metrics:
                found[name].append(float(measured.get(name, "nan")))
    named = [name for column in CURVE_COLUMNS for name in (metrics if column == METRICS else [column])]
    return framed({name: typed(name, found[name]) for name in named})

