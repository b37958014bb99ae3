"""What is asked of an evaluation, and what comes of it: all that a runner needs to know."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
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
class Outcome:
    """What came of a request: metrics as the task reports them, or an error and whose fault it was."""

    request: Request
    status: Literal["done", "failed"]
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0
    error_kind: FailureKind | None = None  # of a failure; None where whoever evaluated did not say
    provenance: dict[str, Any] | None = None  # where it was evaluated, see `ranksearch.evaluation.provenance`; None: not known


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
