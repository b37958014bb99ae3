"""Any network whose data come in batches and whose loss is a function: regression, segmentation, several labels, batches as a trainer
makes them; and networks without labels, whose reference is what they answered before they were compressed."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.errors import InvalidArgument, InvalidModel, RanksearchWarning
from ranksearch.sites import BatchDim, batch_size, copied, device_of, map_tensors, mode, run, tensors_of, unwrapped
from ranksearch.tasks._fine_tune import InSteps
from ranksearch.tasks._identity import identity
from ranksearch.tasks._optimizers import AdamW
from ranksearch.tasks._order import sorted_by_class
from ranksearch.tasks.classification import rate
from ranksearch.tasks.task import Metric, Split, Training, check_split, largest_power, logits_of, mean_distance, mean_divergence
from ranksearch.tensors import absorb

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
Function = Callable[[Any, Any], Any]
IDENTIFYING = 8  # batches of training data that the fingerprint is of
LOOKED_AT = 32  # of these, those whose order is looked at
SEED = 0  # of the order in which training data come, where nothing else says


class FromLoss(InSteps):
    """Batches (inputs, targets) and a loss.

    Args:
        train_loader, validation_loader, test_loader: of pairs (inputs, targets): a ``DataLoader``, a list, anything that can be gone
            through again and again; or a function without arguments that gives one, such as a stream. Inputs are a tensor, a tuple of
            arguments or a mapping of keyword arguments; targets anything that ``loss`` takes. Only what is used is read: a stream
            need not end for calibration, nor fit in memory.
        loss: ``loss(outputs, targets)``, the mean over the batch, a scalar that gradients can be taken of.
        metrics: functions ``metric(outputs, targets)`` by name, each the mean over the batch; more is better, unless it is
            ``(function, "min")``. A measurement is the mean over examples.
        learning_rate: the peak of AdamW's, which falls to 0 as a cosine; None: the task cannot fine-tune, and takes ``epochs=0`` alone.
        batch_dim: along which dimension inputs stack examples, see `find_sites`.

    Reports ``loss`` and the metrics. Training data that come sorted by class are a warning: their first batches, which networks are
    calibrated with, have few classes. The order of a shuffled ``DataLoader`` is that of a fixed seed in calibration, and of the run's in
    fine-tuning. The fingerprint is of all validation batches, the first 8 training batches and the source of the functions.

    Raises:
        InvalidArgument: a loader that is none or that an iterator would exhaust, functions that are none, or an option out of range.
    """

    def __init__(
        self,
        train_loader: Batches,
        validation_loader: Batches,
        loss: Function,
        metrics: Mapping[str, Function | tuple[Function, Literal["min", "max"]]] | None = None,
        *,
        test_loader: Batches | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        batch_dim: BatchDim = 0,
    ) -> None:
        given = {"train": train_loader, "validation": validation_loader} | ({} if test_loader is None else {"test": test_loader})
        self._loaders = {name: _loader(f"{name}_loader", loader) for name, loader in given.items()}
        if learning_rate is not None:
            checks.number("learning_rate", learning_rate, above=0)
        checks.number("weight_decay", weight_decay, least=0)
        named: dict[str, tuple[Function, Literal["min", "max"]]] = {
            name: one if isinstance(one, tuple) else (one, "max") for name, one in (metrics or {}).items()
        }
        wrong = [name for name, (function, _) in [("loss", (loss, "min")), *named.items()] if not callable(function)]
        if wrong or "loss" in named:
            raise InvalidArgument(f"metrics: {', '.join(wrong) or 'loss'}: give functions (outputs, targets) by other names than loss")
        self._loss, self._functions = loss, {name: function for name, (function, _) in named.items()}
        self.metrics = (Metric("loss", "min"), *(Metric(name, direction) for name, (_, direction) in named.items()))
        self.learning_rate, self.weight_decay, self.batch_dim = learning_rate, weight_decay, batch_dim

    @cached_property
    def _fingerprint(self) -> str:
        functions = {name: identity(name, function) for name, function in (("loss", self._loss), *self._functions.items())}
        protocol = [functions, [(m.name, m.direction) for m in self.metrics], self.learning_rate, self.weight_decay]
        digest = hashlib.sha256(json.dumps(protocol).encode())
        for name, count in (("validation", None), ("train", IDENTIFYING)):
            for number, pair in enumerate(_first(self._loaders[name], count)):
                absorb(digest, ((f"{name}.{number}.{path}", tensor) for path, tensor in tensors_of(pair)))
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """See `Task.fingerprint`."""
        return self._fingerprint

    def example(self) -> Any:
        """The inputs of the first training batch, cut to one example where the batch is the first dimension."""
        ((inputs, _),) = _first(self._loaders["train"], 1)
        return inputs if self.batch_dim != 0 else map_tensors(lambda t: t[:1] if t.ndim else t, inputs)

    def labelled(self, batches: int) -> Iterator[tuple[Any, Any]]:
        """See `Task.labelled`."""
        checks.whole("batches", batches, least=1)
        return self._labelled(batches)

    def _labelled(self, batches: int) -> Iterator[tuple[Any, Any]]:
        """One batch after the other, since hundreds may not fit into memory. That classes are sorted is told at the end."""
        first: list[Any] = []
        for pair in _first(self._loaders["train"], batches):
            inputs, targets = map_tensors(_kept, pair)
            if len(first) < LOOKED_AT:
                first.append(targets)
            yield inputs, targets
        if (seen := sorted_by_class(first)) is not None:
            warnings.warn(f"{seen}; shuffle train_loader, such as by DataLoader(..., shuffle=True)", RanksearchWarning, stacklevel=2)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The loss that the task was given, of targets brought to the device of the outputs."""
        return self._loss(outputs, _beside(targets, outputs))

    def training(self, model: nn.Module, *, epochs: float, seed: int) -> Training:
        """See `Task.training`."""
        return _Steps(self, model, epochs=epochs, seed=seed)

    def measure(self, model: nn.Module, split: Split = "validation") -> dict[str, float]:
        """See `Task.measure`."""
        check_split(split, self._loaders)
        functions: dict[str, Function] = {"loss": self._loss, **self._functions}
        sums, examples = dict.fromkeys(functions, 0.0), 0
        for inputs, targets in _first(self._loaders[split], None):
            size = batch_size(inputs, self.batch_dim)
            with mode(model, training=False), torch.no_grad():
                outputs = run(model, inputs)
                here = _beside(targets, outputs)
                for name, function in functions.items():
                    sums[name] += float(function(outputs, here)) * size
            examples += size
        if not examples:
            raise InvalidArgument(f"{split}_loader gives no batch")
        return {name: total / examples for name, total in sums.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fingerprint": self._fingerprint}


class Agreement(FromLoss):
    """Networks without labels: how near they stay to what a reference answers, most often the dense network.

    Args:
        train_loader, validation_loader, test_loader: of inputs alone, otherwise as `FromLoss` takes them.
        reference: the network whose answers are wanted; it travels to every worker and runs in every measurement.
        axis: of the classes, where answers are logits; None: they are numbers.

    Reports ``loss``, the mean squared difference of the answers relative to their mean square; with ``axis`` instead the KL divergence
    from the reference's distribution, in nats, and ``agreement``, the share of places at which both have the same likeliest class.
    An answer is a tensor or its ``logits``; of other outputs all floating-point tensors count alike, and with ``axis`` the first tensor.

    For the Fisher metric targets are drawn around the answers (Gaussian noise, or a class), so that the squared gradients are the curvature
    of ``loss``.

    Raises:
        InvalidArgument: as `FromLoss`.
    """

    predictive = "other"

    def __init__(
        self,
        train_loader: Batches,
        validation_loader: Batches,
        reference: nn.Module,
        *,
        test_loader: Batches | None = None,
        axis: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        batch_dim: BatchDim = 0,
    ) -> None:
        reference = copied(unwrapped(reference), share=True)  # of which buffers may change
        compared = _answers if axis is None else _answer
        self._reference, self._unanswered, self._compared = reference, _Answered(train_loader, None, compared), compared
        train, validation = (_Answered(loader, reference, compared) for loader in (train_loader, validation_loader))
        super().__init__(
            train, validation, _Distance() if axis is None else _Divergence(axis), {} if axis is None else {"agreement": _Agreement(axis)},
            test_loader=None if test_loader is None else _Answered(test_loader, reference, compared), learning_rate=learning_rate,
            weight_decay=weight_decay, batch_dim=batch_dim,
        )  # fmt: skip

    def calibration(self, batches: int) -> Iterator[Any]:
        """See `Task.calibration`: without asking the reference."""
        checks.whole("batches", batches, least=1)
        return (map_tensors(_kept, inputs) for inputs, _ in _first(self._unanswered, batches))

    def divergence(self, outputs: Any, reference: Any) -> Tensor:
        """See `Task.divergence`: the loss where the reference's answers are wanted."""
        return self.loss(outputs, self._compared(reference))

    def sample_targets(self, outputs: Any, generator: torch.Generator) -> Any:
        """See `Task.sample_targets`."""
        assert isinstance(self._loss, (_Distance, _Divergence))
        answers = map_tensors(lambda t: t.detach().float(), self._compared(outputs))
        if isinstance(self._loss, _Divergence):
            return self._loss.draw(answers, generator)
        first, dimension = (answers if isinstance(answers, Tensor) else answers[0]), self.batch_dim
        if dimension is None or not first.ndim:
            return self._loss.draw(answers, generator, 1)
        return self._loss.draw(answers, generator, first.shape[dimension if isinstance(dimension, int) and dimension < first.ndim else 0])

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """See `Task.loss`; of drawn targets, the negative log-likelihood."""
        if isinstance(targets, _Drawn):
            assert isinstance(self._loss, (_Distance, _Divergence))
            return self._loss.of_drawn(outputs, _Drawn(*_beside(tuple(targets), outputs)))
        return super().loss(outputs, targets)


class _Steps(Training):
    """AdamW over the batches of a loader, epoch by epoch."""

    def __init__(self, task: FromLoss, model: nn.Module, *, epochs: float, seed: int) -> None:
        checks.number("epochs", epochs, above=0)
        if task.learning_rate is None:
            raise InvalidArgument(f"epochs={epochs:g}: the task was made without learning_rate=, so it cannot train; give one, or epochs=0")
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise InvalidModel("model has no parameter that requires a gradient: call model.requires_grad_(True), or use epochs=0")
        self._task, self._model, self._seed = task, model, seed
        self._peak = task.learning_rate
        self._per_epoch = _length(task._loaders["train"])
        self.steps = max(1, round(epochs * self._per_epoch))
        self.optimizer = AdamW(parameters, lr=self._peak, weight_decay=task.weight_decay)
        self._done = 0
        self._batches: Iterator[tuple[Any, Any]] = iter(())

    def batch(self) -> tuple[Any, Any]:
        if self._done >= self.steps:
            raise InvalidArgument(f"step {self._done + 1}: this training has {self.steps} steps; ask for more epochs")
        if self._done % self._per_epoch == 0:
            self._begin()
        for group in self.optimizer.param_groups:
            group["lr"] = self._peak * rate(self._done, self.steps, "cosine")
        pair = next(self._batches, None)
        if pair is None:
            raise InvalidArgument(f"train_loader gave fewer batches than its length of {self._per_epoch}: an epoch must be of one length")
        self._done += 1
        device = device_of(self._model)
        inputs, targets = (map_tensors(lambda t: t.detach().to(device, copy=True), part) for part in pair)
        return inputs, targets

    def _begin(self) -> None:
        self._batches = _seeded(self._task._loaders["train"], self._seed + self._done // self._per_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._done = int(state["done"])
        self._begin()
        for _ in range(self._done % self._per_epoch):  # a loader has no state of its own: what was seen is drawn again
            next(self._batches)


class _Answered:
    """Inputs with what a reference answers to them; without one, with nothing."""

    def __init__(self, loader: Batches, reference: nn.Module | None, compared: Callable[[Any], Any]) -> None:
        self._inputs, self._reference, self._compared = _loader("loader", loader), reference, compared

    def __len__(self) -> int:
        return _length(self._inputs)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for inputs in self._inputs() if callable(self._inputs) else self._inputs:
            if self._reference is None:
                yield inputs, None
                continue
            with mode(self._reference, training=False), torch.no_grad():
                answer = self._compared(run(self._reference, inputs))
            yield inputs, answer


class _Drawn(NamedTuple):
    """Drawn targets: the loss of ``wanted`` times ``scale`` is their negative log-likelihood, up to a constant; of several tensors each has
    a scale."""

    wanted: Any
    scale: Any


class _Distance:
    """Mean squared difference relative to the mean square of what is wanted; of several tensors the mean of theirs."""

    def draw(self, answers: Tensor | tuple[Tensor, ...], generator: torch.Generator, examples: int) -> _Drawn:
        """With d numbers per example of mean square m, -log N(answer, d m / 2) is the squared difference over d m: the distance. Of k
        tensors, whose mean is taken, it is k times the variance."""
        if isinstance(answers, Tensor):
            return _Drawn(*self._drawn(answers, generator, answers.numel() / examples))
        parts = len(answers)
        wanted, scales = zip(*(self._drawn(answer, generator, parts * answer.numel() / examples) for answer in answers), strict=True)
        return _Drawn(wanted, scales)

    def _drawn(self, answer: Tensor, generator: torch.Generator, numbers: float) -> tuple[Tensor, Tensor]:
        unit = largest_power(answer).to(answer.dtype)
        square = (answer / unit).square().mean().clamp_min(1e-30)
        deviation = unit * (square * numbers / 2).sqrt()
        noise = torch.randn(answer.shape, generator=generator, dtype=answer.dtype, device=generator.device)
        wanted = answer + deviation * noise.to(answer.device)
        return wanted, (wanted / unit).square().mean() / square

    def of_drawn(self, outputs: Any, drawn: _Drawn) -> Tensor:
        """The negative log-likelihood of drawn targets."""
        wanted, scales = ((one,) if isinstance(one, Tensor) else one for one in drawn)
        pairs = zip(_like_wanted(outputs, wanted), wanted, scales, strict=True)
        return torch.stack([scale * mean_distance(output, one) for output, one, scale in pairs]).mean()

    def __call__(self, outputs: Any, wanted: Tensor | tuple[Tensor, ...]) -> Tensor:
        several = (wanted,) if isinstance(wanted, Tensor) else wanted
        return torch.stack([mean_distance(*pair) for pair in zip(_like_wanted(outputs, several), several, strict=True)]).mean()

    def __repr__(self) -> str:
        return "relative squared distance"


class _Divergence:
    """Mean KL divergence of softmax distributions along an axis from those of the logits that are wanted, in nats."""

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def draw(self, answer: Tensor, generator: torch.Generator) -> _Drawn:
        """A class at one place of every example, chosen at random; the others want what they have, where the gradient is 0. The mean of
        the divergences has the curvature of a single one in expectation."""
        logits = answer.movedim(self.axis, -1)
        classes = logits.shape[-1]
        rows = logits.reshape(len(answer), -1, classes).clone()
        places = rows.shape[1]
        place = torch.randint(places, (len(rows), 1, 1), generator=generator, device=generator.device).to(answer.device)
        chosen = rows.gather(1, place.expand(-1, -1, classes))[:, 0]
        drawn = torch.multinomial(chosen.softmax(1).to(generator.device), 1, generator=generator).to(answer.device)
        certain = torch.full_like(chosen, -1e4).scatter_(1, drawn, 1e4)  # a logit beyond which the softmax is 1 in every float
        rows.scatter_(1, place.expand(-1, -1, classes), certain[:, None])
        return _Drawn(rows.reshape(logits.shape).movedim(-1, self.axis), torch.tensor(float(places)))

    def of_drawn(self, outputs: Any, drawn: _Drawn) -> Tensor:
        """The negative log-likelihood of drawn targets."""
        return drawn.scale * self(outputs, drawn.wanted)

    def __call__(self, outputs: Any, wanted: Tensor) -> Tensor:
        return mean_divergence(_answer(outputs, wanted), wanted, self.axis)

    def __repr__(self) -> str:
        return f"divergence along {self.axis}"


class _Agreement(_Divergence):
    """Share of places with the same likeliest class."""

    def __call__(self, outputs: Any, wanted: Tensor) -> Tensor:
        return (_answer(outputs, wanted).argmax(self.axis) == wanted.argmax(self.axis)).float().mean()

    def __repr__(self) -> str:
        return f"agreement along {self.axis}"


def _answer(outputs: Any, wanted: Tensor | None = None) -> Tensor:
    """The tensor that an output is compared by."""
    found = logits_of(outputs)
    found = next((tensor for _, tensor in tensors_of(outputs)), None) if found is None else found
    if found is None or (wanted is not None and found.shape != wanted.shape):
        got = type(outputs).__name__ if found is None else f"shape {tuple(found.shape)}"
        raise InvalidModel(f"model answered with {got}: this task needs {'a tensor' if wanted is None else f'shape {tuple(wanted.shape)}'}")
    return found


def _answers(outputs: Any) -> Tensor | tuple[Tensor, ...]:
    """The tensors that numbers are compared by, or the one that there is."""
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if isinstance(found, Tensor):
        return found
    # a number of the whole batch, such as a loss beside the answers, is of no example
    several = tuple(tensor for _, tensor in tensors_of(outputs) if tensor.is_floating_point() and tensor.ndim and tensor.numel())
    return several if len(several) > 1 else several[0] if several else _answer(outputs)


def _like_wanted(outputs: Any, wanted: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Those of an output, which has as many of the same shapes."""
    found = _answers(outputs)
    several = (found,) if isinstance(found, Tensor) else found
    if (got := [tuple(one.shape) for one in several]) != (needed := [tuple(one.shape) for one in wanted]):
        raise InvalidModel(f"model answered with shapes {got}: this task needs {needed}")
    return several


def _kept(tensor: Tensor) -> Tensor:
    """A copy without a graph behind it: a loader may fill the same tensor again."""
    return tensor.detach().clone()


def _loader(argument: str, given: Batches) -> Batches:
    if not (isinstance(given, Iterable) or callable(given)):
        raise InvalidArgument(f"{argument}={type(given).__name__}: give a DataLoader, a list of batches, or a function that gives one")
    if isinstance(given, Iterator):
        raise InvalidArgument(f"{argument}={type(given).__name__}: can be gone through once; give a function that makes a new one")
    return given


def _length(loader: Batches) -> int:
    try:
        count = len(loader)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidArgument("train_loader has no length, so that an epoch has none: give one that has, or use epochs=0") from error
    if count < 1:
        raise InvalidArgument("train_loader is empty: give at least one batch")
    return count


def _first(loader: Batches, count: int | None) -> Iterator[tuple[Any, Any]]:
    """The first batches in the order that never changes; None: all."""
    return itertools.islice(_seeded(loader, SEED), count)


def _seeded(loader: Batches, seed: int) -> Iterator[tuple[Any, Any]]:
    """The batches of a loader whose random numbers are a stream of their own: torch's are before and after as if none were drawn."""
    state = torch.Generator().manual_seed(seed).get_state()
    batches: Iterator[Any] | None = None
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            if batches is None:
                batches = iter(loader() if callable(loader) else loader)
            pair = next(batches, None)
            state = torch.get_rng_state()
        if pair is None:
            return
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise InvalidArgument(f"a loader gave a batch that is {type(pair).__name__}: must be a pair (inputs, targets)")
        yield pair[0], pair[1]


def _beside(targets: Any, outputs: Any) -> Any:
    """Targets on the device of the outputs."""
    device = next((tensor.device for _, tensor in tensors_of(outputs)), None)
    return targets if device is None else map_tensors(lambda t: t.to(device), targets)
