"""One evaluation as a value, checked when it is made."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from ranksearch.errors import InvalidArgument
from ranksearch.printable import ERROR, printable

COLUMNS = ("params", "macs")  # the costs that every record has, with columns of their own
# what an attempt has of its own
RESULT = ("status", "metrics", "error", "error_kind", "seconds", "origin", "created", "provenance", "curve")
# stopped: early, by a scheduler; a censored observation, neither a result nor a failure
Status = Literal["done", "failed", "stopped"]


@dataclass(frozen=True)
class Record:
    """One evaluation: a fact. The key is (configuration, fidelity, seed) within the store's fingerprint.

    Raises:
        InvalidArgument: an unknown status, a configuration that is not a JSON object, for status "done" a metric that is not finite, a
            kind of error of what has not failed, metrics of what was stopped, a curve that is not of epochs and metrics, a cost that is not
            finite, params or MACs that are missing, or a number that does not fit 64 bits.
    """

    configuration_id: str
    configuration: str  # canonical JSON
    fidelity: str
    seed: int
    status: Status
    metrics: Mapping[str, float] = field(hash=False)
    costs: Mapping[str, int | float] = field(hash=False)  # of the whole network: params, macs, and what else the study counts
    error: str | None = None
    seconds: float = 0.0  # the evaluation took
    origin: str = ""  # who proposed it
    created: datetime = field(default_factory=lambda: datetime.now(UTC))  # kept in UTC; without a zone: local time
    error_kind: str | None = None  # of a failure, in a word: see `ranksearch.evaluation.failure`; None: stored before there were kinds
    provenance: Mapping[str, Any] | None = field(default=None, hash=False)  # where it was evaluated, as JSON data; None: not known
    curve: Sequence[tuple[float, Mapping[str, float]]] | None = field(default=None, hash=False)  # (epochs, metrics) on the way

    def __post_init__(self) -> None:
        if self.status not in ("done", "failed", "stopped"):
            raise InvalidArgument(f"status={self.status!r}: must be 'done', 'failed' or 'stopped'")
        if self.status != "failed" and self.error_kind is not None:
            raise InvalidArgument(f"error_kind={self.error_kind!r}: an evaluation that is {self.status} has none")
        if self.status == "stopped" and self.metrics:
            raise InvalidArgument(f"metrics={dict(self.metrics)}: an evaluation that was stopped has a curve, and no metrics")
        if not is_object(self.configuration):
            raise InvalidArgument(f"configuration={self.configuration[:60]!r}: must be a JSON object")
        metrics = {str(name): float(value) for name, value in self.metrics.items()}
        wrong = [f"{name}={value}" for name, value in metrics.items() if not math.isfinite(value)]
        if wrong and self.status == "done":
            raise InvalidArgument(f"metrics: {', '.join(wrong)} not finite; record such an evaluation with status 'failed'")
        costs = {str(name): _amount(str(name), value) for name, value in self.costs.items()}
        missing = [name for name in COLUMNS if not isinstance(costs.get(name), int)]
        if missing:
            raise InvalidArgument(f"costs={costs}: {' and '.join(missing)} must be there, as whole numbers")
        object.__setattr__(self, "costs", costs)
        object.__setattr__(self, "seed", _amount("seed", int(self.seed)))
        if self.error is not None:  # databases take neither NUL nor lone surrogates, terminals no escapes
            object.__setattr__(self, "error", printable(self.error, limit=ERROR))
        object.__setattr__(self, "seconds", float(self.seconds))
        object.__setattr__(self, "metrics", metrics)
        object.__setattr__(self, "curve", _curve(self.curve) or None)
        object.__setattr__(self, "created", self.created.astimezone(UTC))


def further_costs(record: Record) -> str | None:
    """JSON of the costs that have no column of their own; None where there are none."""
    further = {name: amount for name, amount in record.costs.items() if name not in COLUMNS}
    return json.dumps(further) if further else None


def result_of(record: Record) -> dict[str, Any]:
    """What a row says of one attempt."""
    found = {name: getattr(record, name) for name in RESULT}
    provenance = None if record.provenance is None else json.dumps(dict(record.provenance))
    curve = None if record.curve is None else json.dumps([[epochs, dict(metrics)] for epochs, metrics in record.curve])
    found |= {"metrics": json.dumps(dict(record.metrics)), "created": record.created.isoformat()}
    return found | {"provenance": provenance, "curve": curve}


def _curve(given: Any) -> tuple[tuple[float, dict[str, float]], ...]:
    try:
        return tuple((float(epochs), {str(name): float(value) for name, value in metrics.items()}) for epochs, metrics in given or ())
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidArgument(f"curve={given!r:.100}: must be pairs (epochs, metrics): {error}") from error


def record_of(row: Any, result: Any) -> Record:
    """An attempt at an evaluation, of the row of the evaluation, with its configuration, and of that row or a later one's results.

    Raises:
        ValueError, TypeError, AttributeError: it is damaged."""
    costs = {name: getattr(row, name) for name in COLUMNS} | json.loads(getattr(row, "costs", None) or "{}")
    return Record(
        row.configuration_id, row.json, row.fidelity, row.seed, result.status, json.loads(result.metrics), costs,
        result.error, result.seconds, result.origin, datetime.fromisoformat(result.created), getattr(result, "error_kind", None),
        json.loads(getattr(result, "provenance", None) or "null"), json.loads(getattr(result, "curve", None) or "null"),
    )  # fmt: skip


def _amount(name: str, value: Any) -> Any:
    """A number as a database takes it: numpy's are none."""
    if not isinstance(value, numbers.Integral):
        if not math.isfinite(value):
            raise InvalidArgument(f"{name}={value}: must be finite")
        return float(value)
    if not -(2**63) <= int(value) < 2**63:
        raise InvalidArgument(f"{name}={value}: does not fit 64 bits")
    return int(value)


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
