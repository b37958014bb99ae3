"""What the columns of results are called, and the names that are therefore taken. Knows no pandas, so that a metric can be refused
when it is made."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from ranksearch.errors import InvalidArgument
from ranksearch.results.conditions import BASELINE

Direction = Literal["min", "max"]
METRICS = "METRIC"  # stands in the lists below for the pairs of columns METRIC, METRIC_delta of every metric
COST, SHARE = "COST", "COST_rel"  # stand there for the columns of every cost
EVALUATION_COLUMNS = (
    "id", "fidelity", "seed", "status", COST, SHARE, METRICS,
    "factorized", "seconds", "origin", "error", "error_kind", "created",
)  # fmt: skip
FRONT_COLUMNS = (
    "id", "fidelity", "seeds", COST, SHARE, METRICS,
    "factorized", "seconds", "origin", "is_dense", "on_front",
)  # fmt: skip
PART = "COST_share"  # and there for that of every cost in which a layer's part of its network is told
LAYER_COLUMNS = ("id", "fidelity", "seed", "site", "decomposition", "rank", "description", COST, SHARE, PART, "relative_error")
PROXY_COLUMNS = ("id", "fidelity", "seeds", COST, SHARE, METRICS, "factorized", "origin")  # and, behind them, one for every proxy
SCORE = "score:"  # before the name of a proxy: no metric can be called so
HISTORY_COLUMNS = (
    "id", "fidelity", "seed", "number", "status", "origin", "finder", "created", "elapsed", "hypervolume", "gain", "on_front",
)  # fmt: skip
FAILURE_COLUMNS = ("id", "fidelity", "seed", "attempt", "resolved", "retry", "error_kind", "error", "seconds", "origin", "created")
CURVE_COLUMNS = ("id", "fidelity", "seed", "status", "epochs", METRICS)  # without deltas
SWEEP_COLUMNS = ("cost", "budget")  # before those of a front
RESERVED = {*EVALUATION_COLUMNS, *FRONT_COLUMNS, *CURVE_COLUMNS, *SWEEP_COLUMNS, BASELINE} - {COST, SHARE, METRICS}  # no metric or cost's
OF_LAYERS = {*LAYER_COLUMNS} - {COST, SHARE, PART}  # names that costs may not have either
COUNTED = ("params", "macs")  # costs that every study has


def unusable(name: object, taken: Collection[str] = (*RESERVED, *COUNTED)) -> str | None:
    """Why a metric or a cost cannot be called so; None if it can. Names stand in conditions, which are read as Python is, and head
    columns.

    Args:
        taken: names that something else has.
    """
    if not isinstance(name, str) or not name.isidentifier():
        return "it is named like a variable (letters, digits and '_'), so that conditions can use it"
    if keyword.iskeyword(name):
        return "it is a word of the language that conditions are written in"
    if unicodedata.normalize("NFKC", name) != name:
        return f"conditions read it as {unicodedata.normalize('NFKC', name)!r}: use that"
    return f"results have {name!r} already, as a column or in conditions" if name in taken else None


def check_metrics(metrics: Sequence[tuple[str, Direction]], costs: Iterable[str]) -> list[str]:
    """The names of the metrics, in order, without those that are costs.

    Raises:
        InvalidArgument: a metric twice, named like another column, or without a direction.
    """
    names = [name for name, _ in metrics if name not in costs]
    wrong = [f"{name} ({direction})" for name, direction in metrics if direction not in ("min", "max")]
    if wrong:
        raise InvalidArgument(f"metrics: {', '.join(wrong)}: the direction must be 'min' or 'max'")
    taken = {*RESERVED, *(f"{name}_rel" for name in costs), *(f"{name}_delta" for name in (*costs, *names))}
    clash = [name for name in names if name in taken] + [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if clash:
        raise InvalidArgument(f"metrics: {', '.join(clash)} is the name of another column or comes twice; rename the metric")
    return names
