"""Which labels the gradients of a calibration pass are of: labels sampled from the model's own distribution give the true
Fisher, given labels the empirical one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.sites import tensors_of
from ranksearch.tasks.task import logits_of

UNIT = "T^2 nats"  # of squared gradients at a temperature T; part of the key of the cache
Loss = Callable[[Any, Any], Tensor]  # mean loss over a batch of (outputs, targets)
Sample = Callable[[Any, torch.Generator], Any]  # outputs -> targets


class Labels(ABC):
    """Where labels come from, and the loss that is differentiated."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """How many losses, and so backward passes, each batch has."""

    @abstractmethod
    def split(self, batch: Any) -> tuple[Any, Any]:
        """The inputs of a batch, and its targets where it has some."""

    @abstractmethod
    def start(self) -> Callable[[Any, Any], Iterator[Tensor]]:
        """Start a run over the data: a function from the outputs and targets of a batch to its ``passes`` mean losses."""

    @abstractmethod
    def key(self) -> tuple[Any, ...]:
        """What the gradients depend on besides the data: (kind, samples, temperature, seed, name of loss, name of sample)."""


@dataclass(frozen=True)
class SampledLabels(Labels):
    """Labels are drawn from the distribution that the model's outputs stand for; the gradients are those of the true Fisher.

    Args:
        samples: labels drawn per example; each costs a backward pass.
        temperature: T of the default loss, and of ``sample``: the logits are divided by it for both. The loss is then multiplied by T,
            so that G, a mean of *squared* gradients, is that of T^2 times the divergence of the softened outputs: the unit of distillation
            (Hinton et al. 2015), nats of the plain softmax where logits change by less than T. A network is nearly certain of its
            training examples, so that few of them make all of G; a temperature above 1 lets all take part.
        loss: mean loss over the batch, ``loss(outputs, targets)``; cross entropy by default.
        sample: ``sample(outputs, generator)`` draws targets, where T is not 1 from logits over T; categorical over axis 1 by default.
        seed: of the generator.

    Raises:
        InvalidArgument: no sample, or a temperature that is not positive, or one beside a loss that does not know it.
    """

    samples: int = 1
    temperature: float = 1.0
    loss: Loss | None = None
    sample: Sample | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks.whole("samples", self.samples, least=1)
        if checks.number("temperature", self.temperature, above=0) != 1 and self.loss:
            raise InvalidArgument(f"temperature={self.temperature}: must be 1 with a `loss` of your own")

    @property
    def passes(self) -> int:
        return self.samples

    def split(self, batch: Any) -> tuple[Any, Any]:
        return batch, None

    def start(self) -> Callable[[Any, Any], Iterator[Tensor]]:
        generators: dict[torch.device, torch.Generator] = {}
        loss = self.loss or self._cross_entropy
        sample = self.sample or _categorical

        def losses(outputs: Any, _targets: Any) -> Iterator[Tensor]:
            device = next((tensor.device for _, tensor in tensors_of(outputs)), torch.device("cpu"))
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(self.seed)
            softened = outputs if self.temperature == 1 else logits(outputs).detach() / self.temperature
            for _ in range(self.samples):
                with torch.no_grad():
                    drawn = sample(softened, generators[device])
                yield loss(outputs, drawn)

        return losses

    def _cross_entropy(self, outputs: Any, targets: Any) -> Tensor:
        return F.cross_entropy(logits(outputs) / self.temperature, targets) * self.temperature

    def key(self) -> tuple[Any, ...]:
        return "model", self.samples, self.temperature, self.seed, _name(self.loss), _name(self.sample)


@dataclass(frozen=True)
class GivenLabels(Labels):
    """Labels come with the inputs, as pairs ``(inputs, targets)``; the gradients are those of the empirical Fisher.

    Args:
        loss: mean loss over the batch, ``loss(outputs, targets)``; cross entropy by default.
    """

    loss: Loss | None = None

    @property
    def passes(self) -> int:
        return 1

    def split(self, batch: Any) -> tuple[Any, Any]:
        inputs, targets = batch
        return inputs, targets

    def start(self) -> Callable[[Any, Any], Iterator[Tensor]]:
        loss = self.loss or (lambda outputs, targets: F.cross_entropy(logits(outputs), targets))
        return lambda outputs, targets: iter([loss(outputs, targets)])

    def key(self) -> tuple[Any, ...]:
        return "labels", 1, 1.0, 0, _name(self.loss), ""


def _categorical(outputs: Any, generator: torch.Generator) -> Tensor:
    probabilities = logits(outputs).detach().float().movedim(1, -1).softmax(dim=-1)
    flat = probabilities.reshape(-1, probabilities.shape[-1])
    return torch.multinomial(flat, 1, generator=generator).reshape(probabilities.shape[:-1])


def logits(outputs: Any) -> Tensor:
    """The tensor of logits among a model's outputs: they themselves, their ``logits``, or the first of them.

    Raises:
        InvalidArgument: there is none."""
    found = logits_of(outputs)
    if found is None:
        raise InvalidArgument(f"outputs={type(outputs).__name__}: pass `loss` and `sample` for a model that does not return logits")
    return found


def _name(function: Callable[..., Any] | None) -> str:
    return "" if function is None else f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(type(function)))}"
