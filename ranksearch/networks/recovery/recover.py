"""Fine-tuning of a compressed network by the task's own steps, at rates that its factors bear, taught by the dense network."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.recovery.rates import factor_rates
from ranksearch.sites import device_of, evaluating, map_tensors, run
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Diverged, FineTuning, Task, measured

log = logging.getLogger(__name__)

DISTILLATION = 0.9  # weight of the dense network's answers beside the labels
TEMPERATURE = 3.0  # of both networks' distributions where these are compared
RECALIBRATION = 16  # batches


@dataclass(frozen=True)
class Recovered:
    """How training went.

    Attributes:
        epochs: after so many the network was as it is now; 0: nothing that training came to measured better.
        measured: the task's metrics by epochs, that of the beginning first.
        diverged: whether the loss was no longer finite, or a metric no longer a number, which ended training early.
    """

    epochs: float
    measured: Mapping[float, Mapping[str, float]]
    diverged: bool = False


def recover(
    network: nn.Module,
    spectra: Spectra,
    configuration: Configuration,
    task: Task,
    *,
    epochs: float,
    seed: int = 0,
    distillation: float = DISTILLATION,
    temperature: float = TEMPERATURE,
    recalibration: int = RECALIBRATION,
) -> Recovered:
    """Train a compressed network in place, so that it ends no worse than it began.

    * Every factor learns at a rate of its own, by what the others make of its steps (`factor_rates`), so that the learning rate of the
      dense network suits the factorized one. Gradients are scaled for it: optimisers that normalize these, such as Adam's, find a scale of
      their own.
    * The loss is (1 - distillation) times the task's and distillation times the divergence from the answers of the dense network to the
      same, augmented, examples (`Task.divergence`; Hinton et al., arXiv 1503.02531). Categorical outputs are divided by the temperature
      before, and their divergence is multiplied by its square. Where a task has no divergence, its loss alone counts.
    * Batch norms are in training mode, and re-estimated before each measurement.
    * The network is measured on the validation split before training and after each epoch, and keeps the state that is best there by the
      first metric of the task; the others decide between equals.

    Args:
        network: from `ranksearch.networks.surgery.build`, with the same ``spectra`` and ``configuration``, reconstructed or not.
        spectra: the dense network, which stays as it is, and its types.
        configuration: types and ranks.
        task: whose `Task.training` gives batches, optimiser and schedule.
        epochs: passes over the training data, may be fractional; 0 changes nothing.
        seed: of batches, dropout and the like.
        distillation: in [0, 1].
        temperature: above 0; 1: the networks' own distributions. It counts for tasks of categorical outputs (`Task.predictive`).
        recalibration: batches that batch norms are re-estimated on before every measurement; 0: they keep the statistics of training.

    Raises:
        InvalidArgument: options out of range, another configuration than the network's, or a task that does not train step by step.
        InvalidModel: nothing to train, or outputs that do not fit the task.
        InvalidMetrics: as `ranksearch.tasks.measured`.
    """
    checks.number("epochs", epochs, least=0)
    checks.whole("recalibration", recalibration, least=0, hint="batches")
    if checks.number("distillation", distillation, least=0) > 1:
        raise InvalidArgument(f"distillation={distillation}: must be in [0, 1], the dense network's share of the loss")
    checks.number("temperature", temperature, above=0)
    if epochs == 0:
        return Recovered(0.0, {})
    options = {"distillation": distillation, "temperature": temperature, "recalibration": recalibration}
    recovery = Recovery(network, spectra, configuration, task, epochs=epochs, seed=seed, **options)
    recovery.advance(epochs)
    recovery.settle(network)
    return recovery.report()


class Recovery(FineTuning):
    """`recover` in parts. The network is measured where it begins and at the end of every epoch, whatever the parts."""

    def __init__(
        self, network: nn.Module, spectra: Spectra, configuration: Configuration, task: Task, *, epochs: float, seed: int,
        distillation: float = DISTILLATION, temperature: float = TEMPERATURE, recalibration: int = RECALIBRATION,
    ) -> None:  # fmt: skip
        super().__init__(task, network, epochs=epochs, seed=seed)
        self._layers = spectra, configuration
        self._rates: dict[str, float] = {}  # of factors by name, as they are where training begins
        self._dense, self._distillation, self._recalibration = spectra.model, distillation, recalibration
        self._temperature = temperature if task.predictive == "categorical" else 1.0
        self._measured: dict[float, dict[str, float]] = {}
        self._best = 0.0
        self._state: dict[str, Any] = {}  # of the network, where it was best
        self._diverged = False

    def advance(self, epochs: float) -> None:
        """See `FineTuning.advance`. A loss that is no longer finite ends training, and so does a metric that is no longer a number."""
        if not self._measured:
            self._rates = factor_rates(self.model, *self._layers)
            self._measure(0.0)
        pieces = max(1, math.ceil(self.epochs))
        ends = [self.epochs * (piece + 1) / pieces for piece in range(pieces)]
        try:
            for end in (end for end in ends if end <= epochs and end not in self._measured and not self._diverged):
                super().advance(end)
                self._measure(end)
            if not self._diverged:
                super().advance(epochs)
        except Diverged as error:
            log.warning("training ends, and the best network before is kept: %s", error)
            self._diverged = True

    def loss(self, inputs: Any, targets: Any) -> Tensor:
        """The task's loss, and the divergence from the dense network's answers."""
        outputs = run(self.model, inputs)
        if not self._distillation:
            return self.task.loss(outputs, targets)
        with evaluating(self._dense):
            answers = run(self._dense, inputs)
        apart = self._apart(outputs, answers)
        if apart is None:
            return self.task.loss(outputs, targets)
        if self._distillation == 1:
            return apart
        return self._distillation * apart + (1 - self._distillation) * self.task.loss(outputs, targets)

    def _apart(self, outputs: Any, answers: Any) -> Tensor | None:
        """The divergence from the dense network's answers, of softened distributions in the size of those that are not."""
        temperature = self._temperature
        if temperature == 1:
            return self.task.divergence(outputs, answers)
        soft, wanted = (map_tensors(lambda t: t / temperature if t.is_floating_point() else t, one) for one in (outputs, answers))
        apart = self.task.divergence(soft, wanted)
        return None if apart is None else temperature**2 * apart

    def scale(self) -> None:
        """Every factor's gradient by its rate."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and name in self._rates:
                parameter.grad.mul_(self._rates[name])

    def settle(self, model: nn.Module) -> None:
        """The weights that measured best."""
        model.load_state_dict(self._state)

    def report(self) -> Recovered:
        """How it went so far."""
        return Recovered(self._best, dict(self._measured), self._diverged)

    def state_dict(self) -> dict[str, Any]:
        """See `FineTuning.state_dict`."""
        mine = {
            "measured": [[end, found] for end, found in self._measured.items()],
            "best": self._best, "state": self._state, "diverged": self._diverged, "rates": self._rates,
        }  # fmt: skip
        return {**super().state_dict(), "recovery": mine}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        super().load_state_dict(state)
        mine = state["recovery"]
        self._best, self._state, self._diverged = float(mine["best"]), mine["state"], bool(mine["diverged"])
        self._rates = {str(name): float(rate) for name, rate in mine["rates"].items()}
        self._measured = {float(end): dict(found) for end, found in mine["measured"]}

    def _measure(self, end: float) -> None:
        with self._aside():
            if self._recalibration:  # before training on plain batches, which norms were fitted to if they were
                recalibrate(self.model, (self.task.normalization if end else self.task.calibration)(self._recalibration))
            found = self._measured[end] = measured(self.task, self.model)
        if lost := _undefined(found) - _undefined(self._measured[0.0]):
            raise Diverged(f"{', '.join(sorted(lost))} is not a number after {end:g} epochs: lower the learning rate")
        if not self._state or self._better(found, self._measured[self._best]):
            self._best, self._state = end, copy.deepcopy(self.model.state_dict())

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """What draws random numbers beside training draws the same ones wherever that was cut."""
        device = device_of(self.model)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self._seed)
            yield

    def _better(self, mine: Mapping[str, float], other: Mapping[str, float]) -> bool:
        """By the first metric in which they differ. A network with a metric that is not a number is worse than any without."""
        if len(_undefined(mine)) != len(_undefined(other)):
            return len(_undefined(mine)) < len(_undefined(other))
        for metric in self.task.metrics:
            sign = 1 if metric.direction == "max" else -1
            a, b = (-math.inf if math.isnan(one[metric.name]) else sign * one[metric.name] for one in (mine, other))
            if a != b:
                return a > b
        return False


def _undefined(metrics: Mapping[str, float]) -> set[str]:
    """Those that are not a number, such as all of a network with such weights; some are none by nature, as of a constant answer."""
    return {name for name, value in metrics.items() if math.isnan(value)}
