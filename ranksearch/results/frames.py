"""Evaluations as tidy pandas DataFrames with stable columns and types; nothing here needs the model or torch. ``docs/analysis.md``
says what every column means; `ranksearch.results.names` lists them.

All frames are made of columns (`ranksearch.store.Store.columns`), never of a value per row: 100,000 evaluations take tenths of a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from ranksearch.errors import InvalidArgument
from ranksearch.results.conditions import Condition
from ranksearch.results.names import (
    COST,
    EVALUATION_COLUMNS,
    FAILURE_COLUMNS,
    FRONT_COLUMNS,
    METRICS,
    PART,
    PROXY_COLUMNS,
    SCORE,
    SHARE,
    Direction,
    check_metrics,
)
from ranksearch.results.pareto import non_dominated
from ranksearch.store import Damaged

# categories that are always there, in this order
STATUSES, ERROR_KINDS = ("done", "failed", "stopped"), ("configuration", "machine", "limit", "code")
TYPES = {
    "id": "string", "fidelity": "category", "seed": "int64", "seeds": "int64", "status": "category", "factorized": "int64",
    "origin": "category", "error": "string", "error_kind": "category", "created": "datetime64[us, UTC]", "is_dense": "bool",
    "on_front": "bool", "attempt": "int64", "resolved": "bool", "retry": "bool", "number": "int64", "finder": "category",
}  # fmt: skip
"""Of the columns that every study has; costs that are counted are Int64, everything else is float64."""
DENSE_ID = hashlib.sha256(b"{}").hexdigest()[:12]  # id of the configuration without a factorized site
FACTS = (
    "configuration_id", "fidelity", "seed", "status", "metrics", "params", "macs", "costs", "error", "error_kind", "seconds", "origin",
    "created",
)  # fmt: skip
"""What `evaluations` needs of a store."""
VALUES = ("configuration_id", "status", "metrics", "params", "macs", "costs")
"""What says which rows are on a front."""
COSTED = ("configuration_id", "fidelity", "seed", "status", "params", "macs", "costs")
"""What `ranksearch.results.layers.layers` needs of a store."""
MEASURED = ("configuration_id", "fidelity", "seed", "status", "metrics", "params", "macs", "costs", "seconds", "origin")
"""What `front` needs of a store."""
_KEY = ("configuration_id", "fidelity", "seed")
_STORED = ("params", "macs")  # costs that have columns of their own in a store
_SOURCE = {"id": "configuration_id"}  # of a column, where it has another name in the store
Facts = Mapping[str, Any]  # columns: Arrow arrays as `ranksearch.store.Store.columns` gives them, or lists of the same


def evaluations(
    facts: Facts, baseline: Mapping[str, int | float], metrics: Sequence[tuple[str, Direction]]
) -> pd.DataFrame:
    """One row per evaluation, in the order they were added; columns: ``docs/analysis.md``.

    Args:
        facts: columns of a store, `FACTS`, or fewer: columns of the frame are then missing. Those that a store does not have may be
            among them: ``factorized``, and further costs by their names.
        baseline: every cost of the dense network. A cost that an evaluation lacks is missing in the frame.
        metrics: name and direction of the task's metrics. Costs among them are columns anyway. A delta is METRIC minus
            the dense network's at the same fidelity, mean over its seeds, whatever the direction.

    Raises:
        InvalidArgument: a metric twice, named like another column, or without a direction.
        Damaged: metrics or costs that are not JSON, an unknown status, a number or time that is none.
    """
    names = check_metrics(metrics, baseline)
    try:
        return _evaluations(facts, baseline, names if "metrics" in facts else [])
    except (ValueError, TypeError, OverflowError) as error:
        raise Damaged(f"the store holds a row that ranksearch did not write: {error}; restore a copy, or use another --store") from error


def _evaluations(facts: Facts, baseline: Mapping[str, int | float], names: Sequence[str]) -> pd.DataFrame:
    if unknown := set(texts_of(facts["status"]).unique().to_pylist()) - set(STATUSES):
        raise ValueError(f"status {unknown.pop()!r}")
    done = _equal(facts["status"], "done")
    found: dict[str, Any] = {
        column: typed(column, facts[source])
        for column in EVALUATION_COLUMNS
        if column in TYPES and (source := _SOURCE.get(column, column)) in facts
    }
    if "seconds" in facts:
        found["seconds"] = floats(facts["seconds"])
    found |= _costs(facts, baseline)
    if names:
        texts = texts_of(facts["metrics"])
        texts = texts if done.all() else pc.if_else(done, texts, pa.scalar(None, pa.string()))  # pyright: ignore[reportAttributeAccessIssue]
        found |= numbers(texts, dict.fromkeys(names, False))
    dense = _equal(facts["configuration_id"], DENSE_ID) & done
    codes = found["fidelity"].codes
    for name in names:
        values = found[name]
        means = np.full(len(found["fidelity"].categories), np.nan)
        for code in np.unique(codes[dense]):
            means[code] = np.mean(values[dense & (codes == code)])
        found[f"{name}_delta"] = values - means[codes] if len(means) else values
    return framed({column: found[column] for column in columns(EVALUATION_COLUMNS, names, baseline) if column in found})


def front(
    frame: pd.DataFrame,
    objectives: Mapping[str, Direction],
    condition: Condition | None = None,
    baseline: Mapping[str, float] | None = None,
    *,
    fidelity: str | None = None,
    dominated: bool = False,
) -> pd.DataFrame:
    """The non-dominated configurations of one fidelity, and the dense network, by rising MACs; columns: ``docs/analysis.md``.
    Several seeds of a configuration count as one row, their mean; failed evaluations do not count.

    Args:
        frame: as `evaluations` gives it; not changed. Columns that it lacks are missing in the front, too.
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
    metrics, costs = metric_names(frame), cost_names(frame)
    known = [*metrics, *costs, *(f"{name}_rel" for name in costs), "seconds"]
    unknown = [name for name in objectives if name not in known]
    if unknown or not objectives:
        raise InvalidArgument(f"objectives={list(objectives)}: unknown {', '.join(unknown) or 'none given'}; known are: {', '.join(known)}")
    if condition is not None:
        condition.check([*known[:-1], "factorized", "seconds"])
    given = dict(baseline or {})
    rows = candidates(_of_one_fidelity(frame, fidelity), metrics, costs, given)
    admissible = satisfying(rows, condition, given)
    values = np.stack([floats(rows[name]) for name in objectives], axis=1)
    on_front = np.zeros(len(rows), dtype=bool)
    on_front[admissible] = non_dominated(values[admissible], list(objectives.values()))
    rows["on_front"] = on_front
    if not dominated:
        rows = rows.loc[on_front | rows["is_dense"].to_numpy()]
    listed = [column for column in columns(FRONT_COLUMNS, metrics, costs) if column in rows.columns]
    ordered = rows.loc[:, listed].sort_values(by=["macs", "params", "id"], ignore_index=True)
    return _used_categories(ordered)


def satisfying(rows: pd.DataFrame, condition: Condition | None, baseline: Mapping[str, float] | None = None) -> np.ndarray:
    """Which rows of a front satisfy a condition, bool; all, without one.

    Args:
        rows: as `front` gives them, dominated ones among them or not.
        baseline: as for `front`.

    Raises:
        InvalidArgument: as `ranksearch.results.conditions.Condition.mask`.
    """
    if condition is None or not len(rows):
        return np.ones(len(rows), dtype=bool)
    metrics, costs = metric_names(rows), cost_names(rows)
    known = [*metrics, *costs, *(f"{name}_rel" for name in costs), *(name for name in ("seconds",) if name in rows.columns)]
    arrays = {name: floats(rows[name]) for name in condition.names}
    return condition.mask(arrays, dense_values(rows, known) | dict(baseline or {}), costs)


def candidates(frame: pd.DataFrame, metrics: Sequence[str], costs: Sequence[str], given: Mapping[str, float]) -> pd.DataFrame:
    """One row per finished configuration of a frame of one fidelity: means over its seeds, with the columns of a front but
    ``on_front``; and one for the dense network, made from what is given of it where it was not evaluated."""
    rows: Any = _means(frame.loc[(frame["status"] == "done").to_numpy()], metrics, costs)
    if not len(frame) or rows["is_dense"].any() or any(name not in given for name in (*costs, *metrics)):
        return rows
    dense: Any = pd.DataFrame([_given_dense(given, metrics, costs, str(frame["fidelity"].iloc[0]))])[list(rows.columns)]
    for name, kind in rows.dtypes.items():
        if isinstance(kind, pd.CategoricalDtype):
            words = [*kind.categories, *(word for word in dense[name] if word not in kind.categories)]
            kind = pd.CategoricalDtype(pd.Index(words, dtype="str"))
            rows = rows.astype({name: kind})
        dense = dense.astype({name: kind})
    return pd.concat([rows, dense], ignore_index=True) if len(rows) else dense


def failures(facts: Facts, may_be_retried: Callable[[str | None], bool]) -> pd.DataFrame:
    """One row per attempt that failed; columns: ``docs/analysis.md``.

    Args:
        facts: columns of a store, `FACTS`, every attempt with ``attempt`` and ``last``.
        may_be_retried: whether what failed so may come to something else.
    """
    tried = ~facts["last"].to_numpy(zero_copy_only=False) | (facts["attempt"].to_numpy() > 1)  # of evaluations that have several attempts
    done, failed = _equal(facts["status"], "done"), _equal(facts["status"], "failed")
    keys = zip(*(facts[name].filter(tried & done).to_pylist() for name in _KEY), strict=True)
    finished = set(keys)
    needed = {*_KEY, "last", *(_SOURCE.get(column, column) for column in FAILURE_COLUMNS)}
    kept = {name: values.filter(failed).to_pylist() for name, values in facts.items() if name in needed}
    resolved = [key in finished for key in zip(*(kept[name] for name in _KEY), strict=True)]
    again = zip(resolved, kept["last"], kept["error_kind"], strict=True)
    kept |= {"resolved": resolved, "retry": [last and not done and may_be_retried(kind) for done, last, kind in again]}
    found = {column: typed(column, kept[_SOURCE.get(column, column)]) for column in FAILURE_COLUMNS}
    return framed(found)


def scored(frame: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """What was measured and what proxies scored, side by side: one row per configuration and fidelity; columns: ``docs/analysis.md``.

    Args:
        frame: as `evaluations` gives it; not changed.
        scores: one row per ``proxy``, ``fidelity`` and ``id``, with its ``score``.
    """
    metrics, costs = metric_names(frame), cost_names(frame)
    names = list(dict.fromkeys(scores["proxy"].tolist()))
    wide: Any = scores.pivot(index=["fidelity", "id"], columns="proxy", values="score").reindex(columns=names)
    parts = []
    for fidelity in dict.fromkeys(scores["fidelity"].tolist()):
        rows = candidates(_of_one_fidelity(frame, fidelity), metrics, costs, {})
        known = wide.loc[fidelity].reindex(rows["id"].astype(object))
        found = {f"{SCORE}{name}": known[name].to_numpy(dtype=np.float64) for name in names}
        parts.append(rows.assign(**found).loc[known.notna().any(axis=1).to_numpy()])
    listed = [*columns(PROXY_COLUMNS, metrics, costs), *(f"{SCORE}{name}" for name in names)]
    return _used_categories(pd.concat(parts, ignore_index=True).loc[:, listed])


# -- columns and their types ---------------------------------------------------------------------------------------


def columns(template: Sequence[str], metrics: Sequence[str], costs: Iterable[str]) -> list[str]:
    """The columns that a list of `ranksearch.results.names` stands for, in a study with these metrics and costs."""
    costs = list(costs)
    named = {
        METRICS: [column for name in metrics for column in (name, f"{name}_delta")],
        COST: costs, SHARE: [f"{name}_rel" for name in costs], PART: [f"{name}_share" for name in costs],
    }  # fmt: skip
    return [name for column in template for name in named.get(column, [column])]


def typed(column: str, values: Any) -> Any:
    """The values of a column that every study has, as `TYPES` says; None is a missing value."""
    kind = TYPES.get(column, "float64")
    if kind == "category":
        fixed = {"status": STATUSES, "error_kind": ERROR_KINDS}.get(column, ())
        return category(values, fixed)
    if kind == "string":
        return pd.array(texts_of(values), dtype="string")  # pyright: ignore[reportArgumentType, reportCallIssue]
    if kind.startswith("datetime"):
        return _times(texts_of(values)).astype(kind)
    return np.asarray(values, dtype=kind)


def category(values: Any, fixed: Sequence[str] = ()) -> pd.Categorical:
    """Words of which there are few, as categories in alphabetical order behind those that are always there; None is a missing value."""
    encoded = texts_of(values).dictionary_encode()
    found = encoded.dictionary.to_pylist()
    names = [*fixed, *sorted(set(found) - set(fixed))]
    place = np.array([*(names.index(name) for name in found), -1], dtype=np.int64)
    codes = encoded.indices.fill_null(len(found)).to_numpy()
    return pd.Categorical.from_codes(place[codes], categories=pd.Index(names, dtype="str"))


def texts_of(values: Any) -> pa.Array:
    """Texts, a column of a frame among them, as an Arrow array."""
    made = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
    return made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made


def among(values: Any, wanted: Any) -> np.ndarray:
    """Which texts are among others, bool. `pandas.Series.isin` takes a second for 100,000."""
    return pc.is_in(texts_of(values), value_set=texts_of(wanted)).to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]


def _equal(values: Any, text: str) -> np.ndarray:
    return pc.equal(texts_of(values), text).to_numpy(zero_copy_only=False)  # pyright: ignore[reportAttributeAccessIssue]


def _times(texts: pa.Array) -> Any:
    """Points in time, of ISO 8601."""
    try:
        return texts.cast(pa.timestamp("us", "UTC")).to_pandas()
    except pa.ArrowInvalid:  # forms of it that Arrow does not read
        return pd.to_datetime(pd.Series(texts.to_pylist(), dtype="object"), utc=True, format="ISO8601")


def framed(found: Mapping[str, Any]) -> pd.DataFrame:
    """A frame of columns that are made for it, which it takes over without a copy."""
    return pd.DataFrame(dict(found), copy=False)


def numbers(texts: Any, names: Mapping[str, bool]) -> dict[str, Any]:
    """The numbers of JSON objects, one array for every name: Int64 where the name is of whole numbers, else float64. What an object
    lacks is missing, and so is everything of a missing object. Everything else in the objects is passed over.

    Raises:
        Damaged: a text that is no JSON object, or a value that is no such number.
    """
    texts = texts_of(texts)
    if not len(texts):
        return {name: pd.array([], dtype="Int64") if whole else np.zeros(0) for name, whole in names.items()}
    schema = pa.schema([(name, pa.int64() if whole else pa.float64()) for name, whole in names.items()])
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    lines = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts.fill_null("{}"))
    joined = pc.binary_join(lines, "\n")[0].as_buffer()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        unread = pc.match_substring_regex(texts, r":\s*-?(NaN|Infinity)")  # pyright: ignore[reportAttributeAccessIssue]
        if pc.any(unread).as_py():  # which are no JSON, but which Python writes and Arrow reads  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError("a number is not finite")
        table = pyarrow.json.read_json(pa.BufferReader(joined), parse_options=options)
        if len(table) != len(texts):
            raise ValueError("a text is not one object")
    except ValueError as error:  # Arrow's is one
        raise Damaged(f"metrics or costs of the store are not what ranksearch wrote: {error}; restore a copy") from error
    return {name: _wholes(table.column(name)) if whole else floats(table.column(name)) for name, whole in names.items()}


def floats(values: Any) -> np.ndarray:
    """A column as float64, NaN where it is missing."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return np.array(values.cast(pa.float64(), safe=False))
    return pd.Series(values).to_numpy(dtype=np.float64, na_value=np.nan)


def _wholes(values: Any) -> Any:
    """A column as Int64."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        values = values.to_numpy() if not values.null_count else values.to_pylist()
    return pd.array(values, dtype="Int64")  # pyright: ignore[reportArgumentType, reportCallIssue]


def metric_names(frame: pd.DataFrame) -> list[str]:
    """The metrics of a frame of evaluations."""
    return [column for column in frame.columns if f"{column}_delta" in frame.columns]


def cost_names(frame: pd.DataFrame) -> list[str]:
    """The costs of a frame of evaluations."""
    present = set(frame.columns)
    return [name for name in frame.columns if f"{name}_rel" in present and f"{name}_delta" not in present]


def dense_values(rows: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """Columns of the dense network among the rows of a front; nothing where it is not there."""
    dense = rows.loc[rows["is_dense"]]
    return {name: float(dense[name].to_numpy()[0]) for name in names} if len(dense) else {}


def _costs(facts: Mapping[str, Sequence[Any]], baseline: Mapping[str, int | float]) -> dict[str, Any]:
    """COST and COST_rel of every cost."""
    further = [name for name in baseline if name not in _STORED and name not in facts]
    stored = numbers(facts["costs"], {name: isinstance(baseline[name], int) for name in further}) if further else {}
    found: dict[str, Any] = {}
    for name, dense in baseline.items():
        values = stored[name] if name in stored else facts[name]
        found[name] = _wholes(values) if isinstance(dense, int) else floats(values)
        found[f"{name}_rel"] = floats(found[name]) / (dense or np.nan)
    return found


def _of_one_fidelity(frame: pd.DataFrame, fidelity: str | None) -> pd.DataFrame:
    """The rows of a fidelity; all of them where none is named and they are of one."""
    if fidelity is not None:
        return frame.loc[(frame["fidelity"] == fidelity).to_numpy()]
    found = sorted(frame["fidelity"].unique())
    if len(found) > 1:
        raise InvalidArgument(f"frame holds the fidelities {', '.join(found)}, which are never compared; choose one with fidelity=")
    return frame


def _means(done: pd.DataFrame, metrics: Sequence[str], costs: Sequence[str]) -> pd.DataFrame:
    same = ["id", "fidelity", *columns((COST, SHARE), metrics, costs), *(name for name in ("factorized", "origin") if name in done.columns)]
    averaged = [*columns((METRICS,), metrics, costs), *(name for name in ("seconds",) if name in done.columns)]
    if done["id"].is_unique:
        rows = done[[*same, *averaged]].reset_index(drop=True).assign(seeds=np.ones(len(done), dtype=np.int64))
    else:
        groups: Any = done.groupby("id", sort=False)
        first = done.drop_duplicates("id")[same].set_index("id")
        seeds, values = groups.size(), groups[averaged]
        # a seed that lacks a metric makes the mean NaN: it is never passed over in silence
        means = values.mean().where(values.count().eq(seeds, axis=0))
        rows = first.join(means).assign(seeds=seeds.astype("int64")).reset_index().astype({"id": "string"})
    return rows.assign(is_dense=(rows["id"] == DENSE_ID).to_numpy(dtype=bool))


def _given_dense(baseline: Mapping[str, float], metrics: Sequence[str], costs: Sequence[str], fidelity: str) -> dict[str, object]:
    row: dict[str, object] = {
        "id": DENSE_ID, "fidelity": fidelity, "seeds": 0, "factorized": 0, "seconds": np.nan, "origin": "baseline", "is_dense": True,
    }  # fmt: skip
    for name in costs:
        row |= {name: baseline[name], f"{name}_rel": 1.0 if baseline[name] else np.nan}
    for name in metrics:
        row |= {name: float(baseline[name]), f"{name}_delta": 0.0}
    return row


def _used_categories(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the categories that occur in it, but for those that are always there."""
    loose = [name for name, kind in frame.dtypes.items() if isinstance(kind, pd.CategoricalDtype) and name not in ("status", "error_kind")]
    return frame.assign(**{name: frame[name].cat.remove_unused_categories() for name in loose})
