"""How a study came to its front: what every evaluation added to the hypervolume, and who proposed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.errors import InvalidArgument
from ranksearch.results.frames import DENSE_ID, category, cost_names, floats, framed, metric_names
from ranksearch.results.names import HISTORY_COLUMNS, Direction
from ranksearch.results.pareto import gains, non_dominated, relative


def finder(origin: str) -> str:
    """Who proposed an evaluation: a sampler, or a rule and its proxy, without the budget that it was solved for."""
    name, _, budget = origin.rpartition(":")
    return name if name and "<=" in budget else origin


def history(frame: pd.DataFrame, objectives: Mapping[str, Direction]) -> pd.DataFrame:
    """One row per evaluation of a frame, in the order they were added; columns: ``docs/analysis.md``. The hypervolume is that of all
    evaluations so far of the same fidelity and seed, relative to their dense network (`ranksearch.results.pareto.relative_hypervolume`).

    Args:
        frame: as `ranksearch.results.frames.evaluations` gives it, whatever fidelities and seeds it holds; not changed.
        objectives: columns to optimise and their directions.

    Raises:
        InvalidArgument: no objective, or one that is no column.
    """
    known = [*metric_names(frame), *cost_names(frame)]
    unknown = [name for name in objectives if name not in known]
    if unknown or not objectives:
        raise InvalidArgument(f"objectives={list(objectives)}: unknown {', '.join(unknown) or 'none given'}; known are: {', '.join(known)}")
    size = len(frame)
    number, elapsed, gain = np.zeros(size, dtype=np.int64), np.full(size, np.nan), np.full(size, np.nan)
    on_front = np.zeros(size, dtype=bool)
    values = np.stack([floats(frame[name]) for name in objectives], axis=1)
    done, dense = (frame["status"] == "done").to_numpy(), (frame["id"] == DENSE_ID).to_numpy(dtype=bool)
    seconds = floats(frame["seconds"])
    created = frame["created"].astype("int64").to_numpy() / 1e6  # microseconds since the epoch
    directions, of_cost = list(objectives.values()), [name in cost_names(frame) for name in objectives]
    for rows in _runs(frame):
        number[rows] = np.arange(1, len(rows) + 1)
        elapsed[rows] = created[rows] - (created[rows] - seconds[rows]).min()
        points = np.where(done[rows, None], values[rows], np.nan)
        on_front[rows] = non_dominated(points, directions)
        whole = points[dense[rows] & done[rows]]
        if len(whole) and np.isfinite(whole[0]).all():
            gain[rows] = gains(relative(points, whole[0], directions, of_cost))
    found: dict[str, Any] = {name: frame[name].array for name in ("id", "fidelity", "seed", "status", "origin", "created")}
    found |= {"number": number, "elapsed": elapsed, "gain": gain, "hypervolume": _summed(gain, frame), "on_front": on_front}
    names = frame["origin"].cat.categories
    found["finder"] = category(np.array([finder(str(name)) for name in names] or [""], dtype=object)[frame["origin"].cat.codes].tolist())
    return framed({column: found[column] for column in HISTORY_COLUMNS})


def _runs(frame: pd.DataFrame) -> list[np.ndarray]:
    """Rows of the same fidelity and seed, in order."""
    groups: Any = frame.groupby(["fidelity", "seed"], sort=False, observed=True)
    return [np.sort(rows) for rows in groups.indices.values()]


def _summed(gain: np.ndarray, frame: pd.DataFrame) -> np.ndarray:
    total = np.full(len(gain), np.nan)
    for rows in _runs(frame):
        total[rows] = np.cumsum(gain[rows])
    return total
