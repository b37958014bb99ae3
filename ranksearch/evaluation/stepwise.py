"""An evaluation that can be left on its way: it says at rungs how far it has come, and goes on from a checkpoint where it was cut short."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import checkpoint
from ranksearch.evaluation.evaluator import Evaluator
from ranksearch.evaluation.request import Curve, Outcome, Point, Progress, Request
from ranksearch.sites import copied, device_of
from ranksearch.space import DENSE
from ranksearch.tasks import FineTuning, Task, measured
from ranksearch.tasks.randomness import random_state, set_random_state

log = logging.getLogger(__name__)
FORMAT = "ranksearch-evaluation-2"  # 1: without the rates of recovery and random numbers outside of training
Place = Callable[[Request], Path | None]


def nowhere(request: Request) -> None:
    """No place for a checkpoint."""


class Stepwise:
    """Evaluates as its `Evaluator` does, to the same metrics bit for bit, and stops at rungs to measure a copy. What it measures there has
    batch norm re-estimated as at the end. The dense network is evaluated at once: all are compared with it, so that it always goes on.
    As picklable as the evaluator."""

    def __init__(self, evaluator: Evaluator, rungs: Sequence[float], place: Place = nowhere) -> None:
        """
        Args:
            rungs: epochs of fine-tuning, rising; those that a request does not reach are left out.
            place: the file that a request's checkpoint goes to, after every rung; None for none. Where its folder is not there, as on
                another machine, none is written.
        """
        self.evaluator, self.rungs, self.place = evaluator, tuple(rungs), place

    def __call__(self, request: Request) -> Iterator[Progress | Outcome]:
        """One `Progress` at every rung, then the outcome. A request whose checkpoint is there goes on from it, and tells of it first."""
        rungs = [rung for rung in self.rungs if rung < request.fidelity.epochs]
        if not rungs or request.configuration == DENSE:
            yield self.evaluator(request)
            return
        saved = self._saved(request)
        curve = () if saved is None else _curve(saved["curve"])
        seconds = 0.0 if saved is None else float(saved["seconds"])
        if curve:
            yield Progress(request, curve, seconds)
        network = _Network(self.evaluator, request, saved)
        for rung in (*(rung for rung in rungs if not curve or rung > curve[-1].epochs), None):
            part = self.evaluator.outcome(request, lambda rung=rung: network.measured(rung))
            seconds += part.seconds
            if rung is None or part.status != "done":
                yield Outcome(request, part.status, part.metrics, part.error, seconds, part.error_kind, part.provenance, curve)
                return
            curve = (*curve, Point(rung, part.metrics))
            self._save(request, {**network.state_dict(), "curve": _plain(curve), "seconds": seconds})
            yield Progress(request, curve, seconds, part.provenance)

    def _save(self, request: Request, state: Mapping[str, Any]) -> None:
        path = self.place(request)
        if path is None or not path.parent.is_dir():
            return
        try:
            checkpoint.write(path, state, FORMAT)
        except (OSError, SafetensorError, InvalidArgument) as error:  # it must not cost the evaluation
            log.warning("no checkpoint of %s was written: %s", request.configuration.id, error)

    def _saved(self, request: Request) -> dict[str, Any] | None:
        path = self.place(request)
        if path is None or not path.exists():
            return None
        try:
            return checkpoint.read(path, FORMAT)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            log.warning("the checkpoint of %s cannot be read, so it begins anew: %s", request.configuration.id, error)
            return None


def check_stepwise(task: Task) -> None:
    """Refuse a task whose fine-tuning cannot be left on its way.

    Raises:
        InvalidArgument: it does not say how it trains step by step."""
    if type(task).training is Task.training:
        raise InvalidArgument(
            f"task={type(task).__name__} does not say how it trains step by step, so no evaluation can be stopped early: give it a method "
            "training(), or search with scheduler='none'"
        )


class _Network:
    """The network of a request on its way."""

    def __init__(self, evaluator: Evaluator, request: Request, saved: Mapping[str, Any] | None) -> None:
        self.evaluator, self.request, self.saved = evaluator, request, saved
        self.tuning: FineTuning | None = None  # made where its errors are outcomes

    def measured(self, rung: float | None) -> dict[str, float]:
        """Metrics after so many epochs; None: of the finished network."""
        if self.tuning is None:
            self.tuning = self._begun()
        fidelity, task, model = self.request.fidelity, self.evaluator.task, self.tuning.model
        self.tuning.advance(fidelity.epochs if rung is None else rung)
        if rung is None:
            self.tuning.settle(model)
            return measured(task, self.evaluator.finished(model, fidelity))
        device = device_of(model)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # what is measured here changes nothing later
            other = copied(model)
            self.tuning.settle(other)
            return measured(task, self.evaluator.finished(other, fidelity))

    def _begun(self) -> FineTuning:
        request, saved = self.request, self.saved
        model = (self.evaluator.untrained if saved is None else self.evaluator.built)(request)
        tuning = self.evaluator.tuning(model, request)
        if saved is not None:
            model.load_state_dict(saved["model"])
            tuning.training.optimizer.load_state_dict(saved["optimizer"])
            tuning.load_state_dict(saved["tuning"])
            set_random_state(saved["random"], device_of(model))
        return tuning

    def state_dict(self) -> dict[str, Any]:
        tuning = self.tuning
        assert tuning is not None  # something was measured
        state = {"model": tuning.model.state_dict(), "optimizer": tuning.training.optimizer.state_dict(), "tuning": tuning.state_dict()}
        return state | {"random": random_state(device_of(tuning.model))}


def _plain(curve: Curve) -> list[list[Any]]:
    return [[point.epochs, dict(point.metrics)] for point in curve]


def _curve(plain: Sequence[Sequence[Any]]) -> Curve:
    return tuple(Point(float(epochs), {str(name): float(value) for name, value in metrics.items()}) for epochs, metrics in plain)
