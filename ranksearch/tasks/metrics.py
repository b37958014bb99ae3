"""Metrics of classification besides accuracy and loss: functions of all logits and targets of a split, those that have names, and the
user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.tasks._identity import identity
from ranksearch.tasks.task import InvalidMetrics, Metric

Measure = Callable[[Tensor, Tensor], Any]  # (logits (n, classes) float32, targets (n,) int64), on the CPU -> one number
Given = Measure | tuple[Measure, Literal["min", "max"]]
Metrics = Sequence[str] | Mapping[str, str | Given]


def macro_f1(logits: Tensor, targets: Tensor) -> float:
    """The mean of the F1 scores 2 TP / (2 TP + FP + FN) of all classes that occur in the targets or in the predictions, as
    scikit-learn's ``f1_score(average="macro")``."""
    hits, predicted, wanted = _counts(logits, targets)
    sizes = predicted + wanted
    return float((2 * hits[sizes > 0] / sizes[sizes > 0]).mean())


def balanced_accuracy(logits: Tensor, targets: Tensor) -> float:
    """The mean over the classes that occur in the targets of the share of each that is recognized, as scikit-learn's
    ``balanced_accuracy_score``."""
    hits, _, wanted = _counts(logits, targets)
    return float((hits[wanted > 0] / wanted[wanted > 0]).mean())


@dataclass(frozen=True)
class TopK:
    """The share of examples whose class is among the k largest logits."""

    k: int

    def __post_init__(self) -> None:
        checks.whole("k", self.k, least=1)

    def __call__(self, logits: Tensor, targets: Tensor) -> float:
        """See the class.

        Raises:
            InvalidArgument: no more than k classes, of which it would always be 1."""
        if logits.shape[1] <= self.k:
            raise InvalidArgument(f"k={self.k}: of {logits.shape[1]} classes this is always 1; take a smaller one")
        return float((logits.topk(self.k, dim=1).indices == targets[:, None]).any(dim=1).double().mean())


@dataclass(frozen=True)
class OfPredictions:
    """A function ``(y_true, y_pred, **options)`` of NumPy arrays of classes, such as those of ``sklearn.metrics``, as a metric:
    ``OfPredictions(f1_score, {"average": "weighted"})``."""

    function: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, logits: Tensor, targets: Tensor) -> Any:
        """See the class."""
        return self.function(targets.numpy(), logits.argmax(1).numpy(), **self.options)


NAMED: dict[str, Measure] = {
    "f1": macro_f1, "balanced_accuracy": balanced_accuracy, "top3": TopK(3), "top5": TopK(5),
}  # fmt: skip


@dataclass(frozen=True)
class Reported:
    """A metric and the function that measures it."""

    metric: Metric
    measure: Measure

    def __call__(self, logits: Tensor, targets: Tensor) -> Any:
        """What the function says.

        Raises:
            InvalidMetrics: it fails; the message names the metric."""
        try:
            return self.measure(logits, targets)
        except Exception as error:  # of the user's function: it is told whose it is
            raise InvalidMetrics(f"metric {self.metric.name!r}: {type(error).__name__}: {error}") from error


def reported(given: Metrics, taken: Sequence[str]) -> tuple[Reported, ...]:
    """Metrics as a user gives them: names of `NAMED`, or a mapping of names to functions, to names of `NAMED`, or to pairs of a function
    and a direction (else more is better).

    Args:
        taken: names that are reported anyway.

    Raises:
        InvalidArgument: an unknown name, one that is taken or that conditions cannot use, no function, or no direction.
    """
    if isinstance(given, str) or not isinstance(given, (Mapping, Sequence)):
        raise InvalidArgument(f"metrics={given!r}: give names out of {', '.join(NAMED)}, or a mapping of names to functions")
    items = given.items() if isinstance(given, Mapping) else [(name, name) for name in given]
    found = []
    for name, value in items:
        measure, direction = value if isinstance(value, tuple) and len(value) == 2 else (value, "max")
        if isinstance(measure, str):
            if measure not in NAMED:
                raise InvalidArgument(f"metrics: {measure!r} is none of {', '.join(NAMED)}; give a function (logits, targets) -> float")
            measure = NAMED[measure]
        if not callable(measure) or isinstance(measure, type):
            raise InvalidArgument(f"metrics: {name!r} is {measure!r}: must be a function (logits, targets) -> float, or (function, 'min')")
        found.append(Reported(Metric(name, direction), measure))
    names = [one.metric.name for one in found]
    twice = [name for name in dict.fromkeys(names) if name in taken or names.count(name) > 1]
    if twice:
        raise InvalidArgument(f"metrics: {', '.join(twice)} is reported already; give another name")
    return tuple(found)


def tried(metrics: Sequence[Reported], targets: Tensor, classes: int) -> None:
    """Call every metric once, on answers that are all right, so that one that cannot work says so before anything is trained.

    Raises:
        InvalidMetrics: one fails, or gives no number."""
    if metrics:
        logits = torch.nn.functional.one_hot(targets, classes).float() * 10
        for one in metrics:
            value = one(logits, targets.clone())
            try:
                float(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InvalidMetrics(f"metric {one.metric.name!r} gives {value!r:.80}: it must be one number ({error})") from error


def identities(metrics: Sequence[Reported]) -> list[list[str]]:
    """What tells these metrics from others: name, direction and function of each."""
    return [[one.metric.name, one.metric.direction, identity(f"metrics[{one.metric.name!r}]", one.measure)] for one in metrics]


def _counts(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per class how often it is predicted rightly, predicted, and wanted, float64, shape: (classes,) each."""
    predictions, classes = logits.argmax(1), logits.shape[1]
    rows = (targets[predictions == targets], predictions, targets)
    hits, predicted, wanted = (torch.bincount(row, minlength=classes).double() for row in rows)
    return hits, predicted, wanted
