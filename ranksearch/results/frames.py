"""Evaluations as tidy pandas DataFrames with stable columns; nothing here needs the model or torch.

`evaluations`: one row per record, in the order they were added.

| column | type | meaning |
| --- | --- | --- |
| id | string | content hash of the configuration |
| fidelity | string | how thoroughly it was evaluated |
| seed | int | of the evaluation |
| status | string | done, or failed |
| COST | int where it is counted, else float | each cost of the whole network: params, macs (for one example), and what the study adds |
| COST_rel | float | each as a share of the dense network's; NaN where that has none |
| METRIC | float | each metric of the task, in the task's order; NaN where it failed |
| METRIC_delta | float | METRIC minus that of the dense network at the same fidelity (mean over its seeds) |
| factorized | int | number of factorized sites; 0 is the dense network |
| seconds | float | the evaluation took |
| origin | string | who proposed it |
| error | string | why it failed |
| error_kind | string | whose fault that was: configuration, machine or code, see `ranksearch.evaluation.failure` |
| created | datetime, UTC | when it was finished |

`front`: one row per configuration; values are means over the seeds that finished.

| column | type | meaning |
| --- | --- | --- |
| id | string | content hash of the configuration |
| fidelity | string | how thoroughly it was evaluated |
| seeds | int | finished evaluations that the row is the mean of; 0: the dense network as given, not evaluated |
| COST | int where it is counted, else float | each cost of the whole network: params, macs (for one example), and what the study adds |
| COST_rel | float | each as a share of the dense network's; NaN where that has none |
| METRIC | float | mean of each metric |
| METRIC_delta | float | mean of METRIC minus that of the dense network |
| factorized | int | number of factorized sites; 0 is the dense network |
| seconds | float | mean duration of an evaluation |
| origin | string | who proposed it first |
| is_dense | bool | the dense network |
| on_front | bool | satisfies the condition, and no row that does dominates it |

`layers`: one row per configuration and factorized site.

| column | type | meaning |
| --- | --- | --- |
| id | string | content hash of the configuration |
| site | string | module path of the layer |
| decomposition | string | how it is factorized; dense where it is not |
| rank | string | its rank, such as 8 or 4x6; empty for dense |
| description | string | the rank in words, such as "in 4, out 6"; empty where the study does not have the site |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.errors import InvalidArgument
from ranksearch.results.conditions import Condition
from ranksearch.results.names import COST, EVALUATION_COLUMNS, FRONT_COLUMNS, LAYER_COLUMNS, METRICS, SHARE, Direction, check_metrics
from ranksearch.results.pareto import non_dominated
from ranksearch.store import Record

_TYPES = {
    "id": "string", "fidelity": "string", "seed": "int64", "seeds": "int64", "status": "string",
    "factorized": "int64", "origin": "string", "error": "string", "error_kind": "string", "created": "datetime64[us, UTC]",
    "is_dense": "bool", "on_front": "bool", "site": "string", "decomposition": "string", "rank": "string", "description": "string",
}  # fmt: skip
_DENSE_ID = hashlib.sha256(b"{}").hexdigest()[:12]  # id of the configuration without a factorized site


def evaluations(records: Iterable[Record], baseline: Mapping[str, int | float], metrics: Sequence[tuple[str, Direction]]) -> pd.DataFrame:
    """One row per record; columns: see the top of this module.

    Args:
        records: evaluations, of any fidelity and status.
        baseline: every cost of the dense network. A cost that a record lacks is NaN.
        metrics: name and direction of the task's metrics. Costs among them are columns anyway. A delta is METRIC minus
            the dense network's, whatever the direction.

    Raises:
        InvalidArgument: a metric twice, named like another column, or without a direction.
    """
    names, records = check_metrics(metrics, baseline), list(records)
    rows = []
    for record in records:
        row: dict[str, object] = {
            "id": record.configuration_id, "fidelity": record.fidelity, "seed": record.seed, "status": record.status,
            "factorized": len(json.loads(record.configuration)), "seconds": record.seconds, "origin": record.origin,
            "error": record.error, "error_kind": record.error_kind, "created": record.created,
        }  # fmt: skip
        row |= {name: record.costs.get(name, np.nan) for name in baseline}
        row |= {f"{name}_rel": _share(record.costs.get(name, np.nan), dense) for name, dense in baseline.items()}
        done = record.status == "done"
        rows.append(row | {name: record.metrics.get(name, np.nan) if done else np.nan for name in names})
    whole = {name for name, dense in baseline.items() if isinstance(dense, int) and all(name in record.costs for record in records)}
    columns = _columns(EVALUATION_COLUMNS, names, baseline)
    frame = _frame(rows, [c for c in columns if c not in {f"{name}_delta" for name in names}], whole)
    dense = frame.loc[(frame["factorized"] == 0) & (frame["status"] == "done")]
    for name in names:
        frame[f"{name}_delta"] = frame[name] - frame["fidelity"].map(dense.groupby("fidelity")[name].mean()).astype("float64")
    return frame.loc[:, columns]


def front(
    frame: pd.DataFrame,
    objectives: Mapping[str, Direction],
    condition: Condition | None = None,
    baseline: Mapping[str, float] | None = None,
    *,
    fidelity: str | None = None,
    dominated: bool = False,
) -> pd.DataFrame:
    """The non-dominated configurations of one fidelity, and the dense network, by rising MACs; columns: see the top of
    this module. Several seeds of a configuration count as one row, their mean; failed evaluations do not count.

    Args:
        frame: as `evaluations` gives it; not changed.
        objectives: columns to optimise and their directions.
        condition: rows that break it are not on the front and dominate nothing.
        baseline: metrics and costs of the dense network, for ``baseline`` and relative bounds in the condition;
            what it lacks is taken from the dense row. When the dense network was not evaluated and all objectives are
            given here, its row is made from this.
        fidelity: which one; needed if the frame holds several.
        dominated: keep the dominated rows, and those that break the condition, with ``on_front`` False.

    Raises:
        InvalidArgument: no objective, one that is no column, a direction that is none, a condition on an unknown
            metric, or several fidelities.
    """
    metrics, costs = [column for column in frame.columns if f"{column}_delta" in frame.columns], _cost_names(frame)
    known = [*metrics, *costs, *(f"{name}_rel" for name in costs), "seconds"]
    unknown = [name for name in objectives if name not in known]
    if unknown or not objectives:
        raise InvalidArgument(f"objectives={list(objectives)}: unknown {', '.join(unknown) or 'none given'}; known are: {', '.join(known)}")
    if condition is not None:
        condition.check([*known[:-1], "factorized", "seconds"])
    given = dict(baseline or {})
    result = _candidates(_of_one_fidelity(frame, fidelity), metrics, costs, given)
    admissible = np.ones(len(result), dtype=bool)
    if condition is not None and len(result):
        arrays = {name: result[name].to_numpy(dtype=np.float64) for name in condition.names}
        admissible = condition.mask(arrays, _dense_values(result, known) | given, costs)
    values = result.loc[admissible, list(objectives)].to_numpy(dtype=np.float64)
    result.loc[admissible, "on_front"] = non_dominated(values, list(objectives.values()))
    if not dominated:
        result = result.loc[result["on_front"] | result["is_dense"]]
    return result.sort_values(by=["macs", "params", "id"], ignore_index=True)


def _of_one_fidelity(frame: pd.DataFrame, fidelity: str | None) -> pd.DataFrame:
    """The rows of a fidelity; all of them where none is named and they are of one."""
    if fidelity is not None:
        return frame.loc[frame["fidelity"] == fidelity]
    found = sorted(frame["fidelity"].unique())
    if len(found) > 1:
        raise InvalidArgument(f"frame holds the fidelities {', '.join(found)}, which are never compared; choose one with fidelity=")
    return frame


def _candidates(frame: pd.DataFrame, metrics: Sequence[str], costs: Sequence[str], given: Mapping[str, float]) -> pd.DataFrame:
    """One row per configuration of a frame of one fidelity, with the columns of a front, and one for the dense network: it is made
    from what is given of it where it was not evaluated."""
    columns = _columns(FRONT_COLUMNS, metrics, costs)
    whole = {name for name in costs if frame[name].dtype == np.int64}
    rows = _typed(_means(frame.loc[frame["status"] == "done"], metrics, costs), columns, whole)
    if not len(frame) or 0 in rows["factorized"].to_numpy() or any(name not in given for name in (*costs, *metrics)):
        return rows
    dense = _frame([_given_dense(given, metrics, costs, str(frame["fidelity"].iloc[0]))], columns, whole)
    return pd.concat([rows, dense], ignore_index=True) if len(rows) else dense


def layers(
    records: Iterable[Record], sites: Sequence[str] | None = None, *, describe: Callable[[str, str, tuple[int, ...]], str] | None = None
) -> pd.DataFrame:
    """One row per configuration and site; columns: see the top of this module. A configuration that was evaluated
    several times comes once.

    Args:
        records: evaluations.
        sites: all sites, to have a row for the dense ones too; default: only those that are factorized.
        describe: (site, decomposition, rank) -> the rank in words; without it they are empty.
    """
    rows = []
    for id, text in {record.configuration_id: record.configuration for record in records}.items():
        choices = json.loads(text)
        for site in choices if sites is None else dict.fromkeys([*sites, *choices]):
            decomposition, rank = choices.get(site, ("dense", ()))
            words = describe(site, decomposition, tuple(rank)) if describe else ""
            row = {"id": id, "site": site, "decomposition": decomposition, "rank": "x".join(str(r) for r in rank), "description": words}
            rows.append(row)
    return _frame(rows, list(LAYER_COLUMNS))


def _means(done: pd.DataFrame, metrics: Sequence[str], costs: Sequence[str]) -> pd.DataFrame:
    groups: Any = done.groupby("id", sort=False)
    first = groups[["fidelity", *costs, *(f"{name}_rel" for name in costs), "factorized", "origin"]].first()
    seeds = groups.size()
    values = groups[[*metrics, *(f"{name}_delta" for name in metrics), "seconds"]]
    # a seed that lacks a metric makes the mean NaN: it is never passed over in silence
    means = values.mean().where(values.count().eq(seeds, axis=0))
    rows = first.join(means).assign(seeds=seeds, is_dense=first["factorized"] == 0, on_front=False)
    return rows.reset_index()


def _given_dense(baseline: Mapping[str, float], metrics: Sequence[str], costs: Sequence[str], fidelity: str) -> dict[str, object]:
    row: dict[str, object] = {
        "id": _DENSE_ID, "fidelity": fidelity, "seeds": 0, "factorized": 0, "seconds": np.nan, "origin": "baseline",
        "is_dense": True, "on_front": False,
    }  # fmt: skip
    for name in costs:
        row |= {name: baseline[name], f"{name}_rel": _share(baseline[name], baseline[name])}
    for name in metrics:
        row |= {name: float(baseline[name]), f"{name}_delta": 0.0}
    return row


def _cost_names(frame: pd.DataFrame) -> list[str]:
    columns = set(frame.columns)
    return [name for name in frame.columns if f"{name}_rel" in columns and f"{name}_delta" not in columns]


def _dense_values(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    dense = rows.loc[rows["is_dense"]]
    return {name: float(dense[name].to_numpy()[0]) for name in names} if len(dense) else {}


def _columns(template: Sequence[str], metrics: Sequence[str], costs: Iterable[str]) -> list[str]:
    named = {
        METRICS: [column for name in metrics for column in (name, f"{name}_delta")],
        COST: list(costs), SHARE: [f"{name}_rel" for name in costs],
    }  # fmt: skip
    return [name for column in template for name in named.get(column, [column])]


def _frame(rows: Sequence[Mapping[str, object]], columns: Sequence[str], whole: Collection[str] = ()) -> pd.DataFrame:
    """A frame with these columns and their types, also without rows."""
    return _typed(pd.DataFrame(list(rows), columns=list(columns)), columns, whole)


def _typed(frame: pd.DataFrame, columns: Sequence[str], whole: Collection[str] = ()) -> pd.DataFrame:
    """These columns in this order, with their types; those without a listed type are float64, or int64 if ``whole``."""
    types = dict.fromkeys(columns, "float64") | dict.fromkeys(whole, "int64") | {c: t for c, t in _TYPES.items() if c in columns}
    return frame.loc[:, list(columns)].astype(types)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
