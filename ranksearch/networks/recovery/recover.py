"""Fine-tuning of a compressed network by the task's own steps, at rates that its factors bear, taught by the dense network."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.recovery.rates import factor_rates
from ranksearch.sites import device_of, evaluating, mode, run
from ranksearch.tasks import Task, Training, measured

log = logging.getLogger(__name__)

DISTILLATION = 0.9  # weight of the dense network's answers beside the labels
RATE_BATCHES = 8  # that curvatures are taken on


@dataclass(frozen=True)
class Recovered:
    """How training went.

    Attributes:
        epochs: after so many the network was as it is now; 0: nothing that training came to measured better.
        measured: the task's metrics by epochs, that of the beginning first.
        diverged: whether the loss was no longer finite, which ended training early.
    """

    epochs: float
    measured: Mapping[float, Mapping[str, float]]
    diverged: bool = False


def recover(
    network: nn.Module,
    dense: nn.Module,
    task: Task,
    *,
    epochs: float,
    seed: int = 0,
    distillation: float = DISTILLATION,
    recalibration: int = 16,
) -> Recovered:
    """Train a compressed network in place, so that it ends no worse than it began.

    * Every factor learns at a rate of its own, scaled by its curvature (`factor_rates`), so that the learning rate of the dense network
      suits the factorized one. Gradients are scaled for it: optimisers that normalize these, such as Adam's, find a scale of their own.
    * The loss is (1 - distillation) times the task's and distillation times the divergence from the answers of the dense network to the
      same, augmented, examples (`Task.divergence`; Hinton et al., arXiv 1503.02531). Where a task has no divergence, its loss alone counts.
    * Batch norms are in training mode, and re-estimated before each measurement.
    * The network is measured on the validation split before training and after each epoch, and keeps the state that is best there by the
      first metric of the task; the others decide between equals.

    Args:
        network: from `ranksearch.networks.surgery.build`, reconstructed or not.
        dense: what it was made from; unchanged.
        task: whose `Task.training` gives batches, optimiser and schedule.
        epochs: passes over the training data, may be fractional; 0 changes nothing.
        seed: of batches, dropout and drawn targets.
        distillation: in [0, 1].
        recalibration: batches that batch norms are re-estimated on before every measurement; 0: they keep the statistics of training.

    Raises:
        InvalidArgument: options out of range, or a task that does not train step by step.
        InvalidModel: nothing to train, or outputs that do not fit the task.
        InvalidMetrics: as `ranksearch.tasks.measured`.
    """
    checks.number("epochs", epochs, least=0)
    checks.whole("recalibration", recalibration, least=0, hint="batches")
    if checks.number("distillation", distillation, least=0) > 1:
        raise InvalidArgument(f"distillation={distillation}: must be in [0, 1], the dense network's share of the loss")
    if epochs == 0:
        return Recovered(0.0, {})
    training = task.training(network, epochs=epochs, seed=seed)
    rates = factor_rates(network, dense, task, task.labelled(RATE_BATCHES), seed=seed)
    work = _Work(network, dense, task, training, rates, distillation, recalibration)
    pieces = max(1, math.ceil(epochs))
    found = {0.0: work.measure()}
    best, state = 0.0, work.state()
    device = device_of(network)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout and the like
        for piece in range(pieces):
            if not work.steps(round((piece + 1) * training.steps / pieces) - round(piece * training.steps / pieces)):
                break
            now = epochs * (piece + 1) / pieces
            found[now] = work.measure()
            if work.better(found[now], found[best]):
                best, state = now, work.state()
    network.load_state_dict(state)
    return Recovered(best, found, work.diverged)


@dataclass
class _Work:
    """A network while it is trained."""

    network: nn.Module
    dense: nn.Module
    task: Task
    training: Training
    rates: Mapping[str, float]
    distillation: float
    recalibration: int
    diverged: bool = False

    def steps(self, count: int) -> bool:
        """So many steps; False where the loss is no longer finite."""
        optimizer = self.training.optimizer
        named = dict(self.network.named_parameters())
        with mode(self.network, training=True), torch.enable_grad():
            for _ in range(count):
                inputs, targets = self.training.batch()
                optimizer.zero_grad(set_to_none=True)
                loss = self.loss(inputs, targets)
                if not torch.isfinite(loss):
                    log.warning("the loss became %s: training ends, and the best network before is kept", loss.item())
                    self.diverged = True
                    break
                loss.backward()
                for name, rate in self.rates.items():
                    gradient = named[name].grad
                    if gradient is not None:
                        gradient.mul_(rate)
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return not self.diverged

    def loss(self, inputs: Any, targets: Any) -> Tensor:
        """The loss of one batch."""
        outputs = run(self.network, inputs)
        if not self.distillation:
            return self.task.loss(outputs, targets)
        with evaluating(self.dense):
            answers = run(self.dense, inputs)
        apart = self.task.divergence(outputs, answers)
        if apart is None:
            return self.task.loss(outputs, targets)
        if self.distillation == 1:
            return apart
        return self.distillation * apart + (1 - self.distillation) * self.task.loss(outputs, targets)

    def measure(self) -> dict[str, float]:
        if self.recalibration:
            recalibrate(self.network, self.task.normalization(self.recalibration))
        return measured(self.task, self.network)

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(self.network.state_dict())

    def better(self, mine: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """By the first metric in which they differ. What is not a number is worse than any."""
        for metric in self.task.metrics:
            sign = 1 if metric.direction == "max" else -1
            a, b = (-math.inf if math.isnan(one[metric.name]) else sign * one[metric.name] for one in (mine, other))
            if a != b:
                return a > b
        return False
