"""What people ask of the networks that a study measured, on its frames alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.results.frames import cost_names, floats, framed, typed
from ranksearch.results.names import SWEEP_COLUMNS, Direction
from ranksearch.results.pareto import knee


def best_row(rows: pd.DataFrame, objective: str, direction: Direction, tie: str) -> int | None:
    """Position of the row that is best in an objective; of several, that of the least ``tie``. None without a row that has it."""
    values = floats(rows[objective]) * (1 if direction == "min" else -1)
    order = np.lexsort((floats(rows[tie]), values))  # NaN last
    return int(order[0]) if len(order) and not np.isnan(values[order[0]]) else None


def knee_row(rows: pd.DataFrame, objectives: Mapping[str, Direction]) -> int:
    """Position of the knee, see `ranksearch.results.pareto.knee`.

    Raises:
        InvalidArgument: there is no row without NaN."""
    values = np.stack([floats(rows[name]) for name in objectives], axis=1)
    return knee(values, list(objectives.values()))


def swept(rows: pd.DataFrame, budgets: Sequence[tuple[str, float]], positions: Sequence[int | None]) -> pd.DataFrame:
    """The rows of a front that are best at budgets: one row per budget, with ``cost`` and ``budget`` before the columns of the front, which
    are missing where there is none.

    Args:
        positions: the row of each budget, or None.
    """
    picked = [-1 if position is None else position for position in positions]
    found = _nullable(rows).take(np.where(np.array(picked) < 0, 0, picked)) if len(rows) else _nullable(rows).reindex(range(len(picked)))
    found = found.reset_index(drop=True)
    missing = np.array(picked) < 0
    found = found.mask(pd.Series(missing), axis=0) if missing.any() else found
    cost = pd.Categorical([name for name, _ in budgets])
    asked = pd.DataFrame(dict(zip(SWEEP_COLUMNS, (cost, np.array([b for _, b in budgets], dtype=np.float64)), strict=True)))
    return pd.concat([asked, found], axis=1)


def diff(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """What changed between two configurations, one row per site.

    Args:
        before, after: as `ranksearch.results.layers.layers` gives them, each of one configuration, of the same sites in one order.
    """
    found: dict[str, Any] = {"site": before["site"].astype(str).to_numpy(object)}
    words = ("decomposition", "rank", "description")
    for name in (*words, *layer_costs(before), "relative_error"):
        for end, rows in (("before", before), ("after", after)):
            values = rows[name].to_numpy()
            found[f"{name}_{end}"] = pd.array(values.astype(object), dtype="string") if name in words else values
    for name in (*layer_costs(before), "relative_error"):
        found[f"{name}_change"] = found[f"{name}_after"] - found[f"{name}_before"]
    same = [found[f"{name}_before"] == found[f"{name}_after"] for name in ("decomposition", "rank")]
    found["changed"] = ~(np.asarray(same[0], dtype=bool) & np.asarray(same[1], dtype=bool))
    found["site"] = pd.array(found["site"], dtype="string")
    return framed(found)


def spared(layers: pd.DataFrame) -> pd.DataFrame:
    """How networks treat every site, one row per site in the order of the model: ``networks`` of them, ``spared`` the share that leaves it
    dense, ``always`` whether all do, the mean COST_rel and relative error, and the type that those which factorize it choose
    most often.

    Args:
        layers: as `ranksearch.results.layers.layers` gives them.
    """
    sites = list(layers["site"].cat.categories)
    dense = (layers["decomposition"] == "dense").to_numpy()
    codes = layers["site"].cat.codes.to_numpy()
    count = np.bincount(codes, minlength=len(sites))
    with np.errstate(invalid="ignore"):
        share = np.bincount(codes, weights=dense, minlength=len(sites)) / count
        means = {
            name: np.bincount(codes, weights=layers[name].to_numpy(), minlength=len(sites)) / count
            for name in (*(f"{cost}_rel" for cost in layer_costs(layers)), "relative_error")
        }
    types: list[str | None] = [None] * len(sites)
    factorized: Any = layers.loc[~dense]
    for site, names in factorized.groupby("site", observed=True)["decomposition"]:
        types[sites.index(site)] = str(names.value_counts().sort_index(ascending=True).idxmax())
    found = {"site": pd.array(sites, dtype="string"), "networks": count, "spared": share, "always": share == 1.0, **means}
    return framed(found | {"decomposition": typed("fidelity", types)})


def layer_costs(layers: pd.DataFrame) -> list[str]:
    """The costs of a frame of layers."""
    return cost_names(layers)


def _nullable(rows: pd.DataFrame) -> Any:
    """Rows whose every column can be missing."""
    kinds = {name: {"int64": "Int64", "bool": "boolean"}.get(str(kind), kind) for name, kind in rows.dtypes.items()}
    return rows.astype(kinds)
