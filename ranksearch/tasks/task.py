"""The contract of a task: what a search must know about the user's data, training and metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import InvalidArgument, InvalidModel, RanksearchError
from ranksearch.results.names import unusable
from ranksearch.sites import BatchDim

Split = Literal["validation", "test"]
Predictive = Literal["categorical", "other"]


class Diverged(RanksearchError, ArithmeticError):
    """Training came to a loss that is not finite."""


class InvalidMetrics(RanksearchError, ValueError):
    """What a task measured is not what it declares."""


@dataclass(frozen=True)
class Metric:
    """A number that a task reports, and which way is better.

    Raises:
        InvalidArgument: a name that conditions cannot use, or that a column of results or a cost has.
    """

    name: str
    direction: Literal["min", "max"]

    def __post_init__(self) -> None:
        if (why := unusable(self.name)) is not None:
            raise InvalidArgument(f"name={self.name!r} of a metric: {why}; give another name")
        if self.direction not in ("min", "max"):
            raise InvalidArgument(f"direction={self.direction!r} of metric {self.name!r}: must be 'min' or 'max'")


class Training(ABC):
    """One run of training in steps: it has the data stream, optimiser and schedule; what is computed with a batch is the caller's.

        for step in range(training.steps):
            inputs, targets = training.batch()
            ...; training.optimizer.step()

    All that decides how the run goes on is in `state_dict`, so that it can be interrupted between two steps."""

    steps: int  # of the whole run
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def batch(self) -> tuple[Any, Any]:
        """(inputs, targets) of the next step, on the model's device; sets that step's learning rate.

        Raises:
            InvalidArgument: the run is over."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as tensors and values that JSON can hold. The optimiser's state is not in it."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""


def logits_of(outputs: Any) -> Tensor | None:
    """The logits among what a model answers: the answer itself, its ``logits`` (models of transformers), or the first of several; None:
    there are none."""
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if found is None and isinstance(outputs, (tuple, list)) and outputs:
        found = outputs[0]
    return found if isinstance(found, Tensor) else None


def mean_divergence(logits: Tensor, reference: Tensor, axis: int) -> Tensor:
    """KL(reference || network) of softmax distributions along an axis, mean over all others, in nats."""
    mine, other = (one.float().log_softmax(axis) for one in (logits, reference.to(logits.device)))
    if bool((never := other.isneginf()).any()):  # classes that the reference rules out: their terms are 0 then
        mine, other = mine.masked_fill(never, 0.0), other.masked_fill(never, 0.0)
    return F.kl_div(mine, other, reduction="none", log_target=True).sum(axis).mean()


def mean_distance(outputs: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference from the reference, relative to the mean square of that; whatever the scale of both. Where both are the same
    infinity, as logits of what is ruled out are, they do not differ."""
    dtype = torch.float64 if reference.dtype == torch.float64 else torch.float32
    mine, wanted = outputs.to(dtype), reference.to(dtype)
    if bool((alike := wanted.isinf() & (mine == wanted)).any()):
        mine, wanted = mine.masked_fill(alike, 0.0), wanted.masked_fill(alike, 0.0)
    unit = largest_power(wanted).to(dtype)
    return ((mine - wanted) / unit).square().mean() / (wanted / unit).square().mean().clamp_min(1e-30)


def largest_power(tensor: Tensor) -> Tensor:
    """The power of two near the largest magnitude in a tensor, in whose unit squares are numbers; 1 where that is 0 or none. Float64."""
    largest = tensor.detach().abs().amax().double() if tensor.numel() else tensor.new_zeros((), dtype=torch.float64)
    return torch.where(largest.isfinite() & (largest > 0), torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent), 1.0)


class Task(ABC):
    """Data, fine-tuning and metrics for one kind of network.

    Tasks are picklable and hold CPU tensors, which may be read-only memory shared with other processes: whatever
    a method hands out is a copy. Batches are moved to the model's device by the task where it gets the model."""

    metrics: tuple[Metric, ...]  # what `measure` reports, in order
    batch_dim: BatchDim = 0  # along which dimension `example` stacks examples, see `find_sites`; 1 where sequences come first

    predictive: Predictive | None = None
    """The distribution of targets that a network's outputs stand for. ``categorical``: outputs are logits, classes on axis 1,
    and `loss` is their cross entropy, so that statistics may soften them by a temperature. ``other``: `sample_targets` draws
    from it and `loss` is its negative log-likelihood. None: none is known, and Fisher statistics are the empirical ones, of the
    given targets. A task that wraps another one passes on ``predictive`` and `sample_targets`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Content hash of the data and the protocol, which is all that decides what `measure` gives for ``split="validation"``
        after `fine_tune`. It is cached after the first call."""

    @abstractmethod
    def example(self) -> Any:
        """Input of one forward pass: a batch of one."""

    @abstractmethod
    def labelled(self, batches: int) -> Iterator[tuple[Any, Any]]:
        """At most ``batches`` batches of training data (inputs, targets), without augmentation: the same ones at
        every call, drawn without replacement.

        Raises:
            InvalidArgument: ``batches`` below 1.
        """

    def calibration(self, batches: int) -> Iterator[Any]:
        """The inputs of `labelled`, for second moments and measured losses."""
        return (inputs for inputs, _ in self.labelled(batches))

    def normalization(self, batches: int) -> Iterator[Any]:
        """Inputs for batch-norm statistics, the same ones at every call. They are as training shows them, augmented if it augments,
        since that is what trained weights are used to. (Reconstruction fits norms to plain ones, and a reconstructed network that is not
        trained after it takes the statistics of `calibration`.) Unless a task says otherwise they are those of `calibration`."""
        return self.calibration(batches)

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Mean training loss of one batch, a scalar that gradients can be taken of."""

    def divergence(self, outputs: Any, reference: Any) -> Tensor | None:
        """How far a network's outputs are from those of a reference for the same inputs, a scalar: 0 where they are equal. None: the
        task has no such measure, and networks are compared by `loss`. Of categorical outputs it is the mean Kullback-Leibler divergence
        KL(reference || network), in nats.

        Raises:
            InvalidModel: categorical outputs without logits (`logits_of`)."""
        if self.predictive != "categorical":
            return None
        mine, wanted = logits_of(outputs), logits_of(reference)
        if mine is None or wanted is None:
            got = type(outputs if mine is None else reference).__name__
            raise InvalidModel(f"model answered with {got}: {type(self).__name__} is about networks that answer with logits")
        return mean_divergence(mine, wanted, 1)

    def sample_targets(self, outputs: Any, generator: torch.Generator) -> Any:
        """Targets drawn from the distribution that ``outputs`` stand for, one per example, as `loss` takes them: gradients of the
        loss at such targets give the true Fisher information.

        Raises:
            InvalidArgument: the task declares no such distribution.
        """
        raise InvalidArgument(
            f"task={type(self).__name__} does not say how to sample targets: give it sample_targets() and an attribute predictive"
        )

    @abstractmethod
    def fine_tune(self, model: nn.Module, *, epochs: float, seed: int) -> None:
        """Train ``model`` in place for ``epochs`` passes, which may be fractional; 0 changes nothing. The same seed
        gives the same weights on one machine and thread count.

        Raises:
            Diverged: the loss is no longer finite.
            InvalidArgument: ``epochs`` negative or not finite.
            InvalidModel: nothing to train, or outputs that do not fit the task.
        """

    def training(self, model: nn.Module, *, epochs: float, seed: int) -> Training:
        """The steps of `fine_tune` one by one, for training with another loss: the same stream, optimiser (of all parameters
        of ``model`` that require a gradient) and schedule.

        Raises:
            InvalidArgument: ``epochs`` not above 0, or the task trains in no such steps.
            InvalidModel: nothing to train.
        """
        raise InvalidArgument(f"task={type(self).__name__} does not say how it trains step by step: give it a method training()")

    @abstractmethod
    def measure(self, model: nn.Module, split: Split = "validation") -> dict[str, float]:
        """Every metric of ``metrics`` by name, and nothing else: floats, or what holds one number. One that is missing, not
        declared, no number or not finite fails the evaluation, which is recorded with its name. The model is evaluated in
        evaluation mode and given back as it was.

        Raises:
            InvalidArgument: the task has no such split.
            InvalidModel: outputs that do not fit the task.
        """


def measured(task: Task, model: nn.Module, split: Split = "validation") -> dict[str, float]:
    """What ``task.measure`` reports, as numbers by name, in the order of ``task.metrics``: exactly these.

    Raises:
        InvalidMetrics: no mapping, a metric that is missing or that the task does not declare, or a value that is no number.
    """
    found: Any = task.measure(model) if split == "validation" else task.measure(model, split)  # a task may know one split alone
    kind, wanted = type(task).__name__, [metric.name for metric in task.metrics]
    if not isinstance(found, Mapping):
        raise InvalidMetrics(f"{kind}.measure() returned {type(found).__name__}: it must return a dict of {', '.join(wanted)}")
    missing = [name for name in wanted if name not in found]
    if missing:
        had = ", ".join(map(str, found)) or "nothing"
        raise InvalidMetrics(f"{kind}.measure() does not report {', '.join(missing)}, which {kind}.metrics declares; it reports {had}")
    extra = [str(name) for name in found if name not in wanted]
    if extra:
        raise InvalidMetrics(f"{kind}.measure() reports {', '.join(extra)}, which {kind}.metrics does not declare: add a Metric for it")
    return {name: _number(f"{kind}.measure(): {name}", found[name]) for name in wanted}


def _number(what: str, value: Any) -> float:
    """A real number, or a tensor or array that holds one."""
    one = value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1 else value
    if not isinstance(one, (int, float)):
        raise InvalidMetrics(f"{what} is {value!r:.80} ({type(value).__name__}): a metric is one real number, such as a float")
    try:
        return float(one)
    except OverflowError as error:
        raise InvalidMetrics(f"{what} is too large for a float: {error}") from error


def check_split(split: str, splits: Iterable[str]) -> None:
    """Check that a split of a task is there to be measured on.

    Raises:
        InvalidArgument: it is not."""
    there = [name for name in splits if name != "train"]
    if split not in there:
        raise InvalidArgument(f"split={split!r}: this task has {', '.join(there)}")


def declared_metrics(task: Task) -> dict[str, Literal["min", "max"]]:
    """The metrics that a task declares, and their directions.

    Raises:
        InvalidArgument: none, one twice, or what is no `Metric`."""
    metrics, kind = getattr(task, "metrics", ()), type(task).__name__
    wrong = [metric for metric in metrics if not isinstance(metric, Metric)] if isinstance(metrics, (tuple, list)) else [metrics]
    if wrong or not metrics:
        given = f"{wrong[0]!r} is no Metric" if wrong else "there are none"
        raise InvalidArgument(f"{kind}.metrics: {given}; give a tuple such as (Metric('accuracy', 'max'),)")
    names = [metric.name for metric in metrics]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InvalidArgument(f"{kind}.metrics: {', '.join(twice)} comes twice; rename one")
    return {metric.name: metric.direction for metric in metrics}
