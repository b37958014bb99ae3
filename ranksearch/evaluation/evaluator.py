"""One full evaluation: configuration -> network -> reconstructed -> fine-tuned -> batch norm re-estimated -> measured."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Task


@dataclass(frozen=True)
class Fidelity:
    """How thoroughly a configuration is evaluated. Evaluations of different fidelity are never mixed."""

    epochs: float = 1.0  # of fine-tuning
    recalibration: int = 8  # batches for batch-norm re-estimation; 0: the statistics stay as they are
    name: str = "full"
    reconstruction: int = 0  # batches that last factors are fitted on, see `reconstruct`; 0: they stay as they are

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epochs) and self.epochs >= 0):
            raise InvalidArgument(f"epochs={self.epochs}: must be a finite number, 0 or more")
        if self.recalibration < 0:
            raise InvalidArgument(f"recalibration={self.recalibration}: must be 0 or more batches")
        if self.reconstruction < 0:
            raise InvalidArgument(f"reconstruction={self.reconstruction}: must be 0 or more batches")

    @property
    def key(self) -> str:
        """How the store names it."""
        fitted = f",reconstruction={self.reconstruction}" if self.reconstruction else ""
        return f"{self.name}:epochs={self.epochs:g},recalibration={self.recalibration}{fitted}"

    @staticmethod
    def parse(key: str) -> Fidelity:
        """Inverse of `key`.

        Raises:
            InvalidArgument: no key of a fidelity."""
        found = re.fullmatch(r"(.+):epochs=([^,]+),recalibration=(\d+)(?:,reconstruction=(\d+))?", key)
        try:
            if found is None:
                raise ValueError(key)
            return Fidelity(float(found[2]), int(found[3]), found[1], int(found[4] or 0))
        except ValueError as error:
            raise InvalidArgument(f"fidelity={key!r} is none; one is written like {Fidelity().key}") from error


@dataclass(frozen=True)
class Request:
    """What is to be evaluated. ``origin`` says who asked (a sampler, an exact front); it is no part of the key."""

    configuration: Configuration
    fidelity: Fidelity
    seed: int
    origin: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a request: metrics as the task reports them, or the error of this configuration."""

    request: Request
    status: Literal["done", "failed"]
    metrics: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0


class Evaluator:
    """Evaluates requests for one model and task. Picklable: workers get it once, weights and data included."""

    def __init__(self, spectra: Spectra, task: Task) -> None:
        self.spectra = spectra
        self.task = task

    def network(self, request: Request) -> nn.Module:
        """The network of a request, reconstructed, fine-tuned and with batch norm re-estimated. The same request gives the
        same network on the same machine and thread count."""
        torch.manual_seed(request.seed)
        model = build(self.spectra, request.configuration)
        fidelity = request.fidelity
        if fidelity.reconstruction:
            reconstruct(model, self.spectra.model, self.task.calibration(fidelity.reconstruction))
        if fidelity.epochs:
            self.task.fine_tune(model, epochs=fidelity.epochs, seed=request.seed)
        if fidelity.recalibration:
            recalibrate(model, self.task.normalization(fidelity.recalibration))
        return model.eval()

    def __call__(self, request: Request) -> Outcome:
        """Evaluate; a configuration's own fault (an exception, a metric that is not finite) is an outcome."""
        return outcome_of(request, lambda: self.task.measure(self.network(request)))


def outcome_of(request: Request, measure: Callable[[], Mapping[str, float]]) -> Outcome:
    """What comes of measuring a request; whatever is wrong with it is its outcome."""
    start = time.perf_counter()
    try:
        metrics = measure()
    except Exception as error:  # whatever a candidate network does must not end the study; it is recorded
        return Outcome(request, "failed", error=f"{type(error).__name__}: {error}", seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    wrong = [f"{name}={value}" for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        return Outcome(request, "failed", error=f"not finite: {', '.join(wrong)}", seconds=seconds)
    return Outcome(request, "done", dict(metrics), seconds=seconds)
