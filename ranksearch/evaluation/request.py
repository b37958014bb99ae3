"""What is asked of an evaluation, and what comes of it: all that a runner needs to know."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from ranksearch.evaluation.failure import FailureKind, kind_of
from ranksearch.evaluation.fidelity import Fidelity
from ranksearch.evaluation.provenance import provenance
from ranksearch.printable import error_text
from ranksearch.space import Configuration
from ranksearch.tasks import InvalidMetrics


@dataclass(frozen=True)
class Request:
    """What is to be evaluated. ``origin`` says who asked (a sampler, an exact front); it is no part of the key."""

    configuration: Configuration
    fidelity: Fidelity
    seed: int
    origin: str = ""


@dataclass(frozen=True)
class Point:
    """What an evaluation had measured on its way. Its network was in the middle of its training: one that is trained for so many epochs
    alone has another learning rate at the end, so this is no evaluation of a smaller fidelity."""

    epochs: float  # of fine-tuning that it had had
    metrics: Mapping[str, float] = field(hash=False)


Curve = tuple[Point, ...]  # in order of epochs


@dataclass(frozen=True)
class Progress:
    """An evaluation that is under way has come so far, and is asked whether it goes on."""

    request: Request
    curve: Curve  # the last point is new
    seconds: float = 0.0
    provenance: dict[str, Any] | None = None

    def stopped(self) -> Outcome:
        """The outcome of an evaluation that goes no further. It has no metrics: nothing was measured at its fidelity."""
        error = f"stopped early, after {self.curve[-1].epochs:g} of {self.request.fidelity.epochs:g} epochs"
        return Outcome(self.request, "stopped", error=error, seconds=self.seconds, provenance=self.provenance, curve=self.curve)


@dataclass(frozen=True)
class Outcome:
    """What came of a request: metrics as the task reports them; or an error and whose fault it was; or that a scheduler has stopped it
    (`ranksearch.schedulers`), which is neither."""

    request: Request
    status: Literal["done", "failed", "stopped"]
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0
    error_kind: FailureKind | None = None  # of a failure; None where whoever evaluated did not say
    provenance: dict[str, Any] | None = None  # where it was evaluated, see `ranksearch.evaluation.provenance`; None: not known
    curve: Curve = ()  # what was measured on the way, where somebody looked


Evaluate = Callable[[Request], Outcome | Iterator[Progress | Outcome]]
"""Evaluates: at once, or in parts, of which the last is the outcome."""


def outcome_of(
    request: Request, measure: Callable[[], Mapping[str, float]], declared: Collection[str] = (), *, device: torch.device | None = None
) -> Outcome:
    """What comes of measuring a request; whatever is wrong with it is its outcome.

    Args:
        declared: the metrics that must be there.
        device: of the network, for the provenance."""
    start, where = time.perf_counter(), provenance(device)
    try:
        metrics = {name: float(value) for name, value in measure().items()}
        if missing := [name for name in declared if name not in metrics]:
            raise InvalidMetrics(f"{', '.join(missing)} not measured; what was: {', '.join(metrics) or 'nothing'}")
    except (Exception, SystemExit) as error:  # whatever a candidate network does must not end the study; it is recorded
        return replace(failed(request, error, time.perf_counter() - start), provenance=where)
    seconds = time.perf_counter() - start
    wrong = [f"{name}={value}" for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        error = f"not finite: {', '.join(wrong)}"
        return Outcome(request, "failed", error=error, seconds=seconds, error_kind="configuration", provenance=where)
    return Outcome(request, "done", metrics, seconds=seconds, provenance=where)


def failed(request: Request, error: BaseException, seconds: float = 0.0) -> Outcome:
    """The outcome of a request whose evaluation raised an exception."""
    return Outcome(request, "failed", error=error_text(error), seconds=seconds, error_kind=kind_of(error))
