"""Classification of tensors held in memory: cross-entropy, SGD with Nesterov momentum, one learning-rate cycle."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch import checks
from ranksearch.errors import InvalidArgument, InvalidModel, RanksearchWarning
from ranksearch.sites import device_of, fitted, mode, run
from ranksearch.tasks._fine_tune import InSteps
from ranksearch.tasks._identity import identity
from ranksearch.tasks._optimizers import SGD
from ranksearch.tasks.metrics import Metrics, identities, reported, tried
from ranksearch.tasks.task import Metric, Split, Training, check_split, logits_of
from ranksearch.tensors import absorb

Array = Tensor | np.ndarray
Augment = Callable[[Tensor, torch.Generator], Tensor]
Schedule = Literal["cosine", "one_cycle"]
ClassWeights = Literal["balanced"] | Sequence[float] | Array | None
INPUT_TYPES = (torch.uint8, torch.int64, torch.float32, torch.float64)
WIDENED = {torch.int32: torch.int64, torch.float16: torch.float32, torch.bfloat16: torch.float32}  # read as what holds the same values
CALIBRATION_SEED = 0
WARM_UP = 0.3  # share of a one-cycle run in which the learning rate rises


@final
class Classification(InSteps):
    """Inputs ``x`` with one class each. Networks answer with logits, shape (n, classes), or with what has them as ``logits`` or first.

    Args:
        train, validation, test: pairs (x, y). x has shape (n, ...) and dtype uint8, int64, float32 or float64; y has
            shape (n,), integers from 0. uint8 stays uint8 in memory and is scaled to [0, 1] batch by batch; int64, such as
            tokens, reaches the network as it is. int32 is read as int64, 16-bit floats as float32. The network gets floating-point
            inputs in its own type (`ranksearch.sites.forward.fitted`). Tensors are kept, not copied: do not change them afterwards.
        learning_rate: the peak of the schedule.
        batch_size: of training, measuring and calibration. A last incomplete batch is not trained on.
        momentum: Nesterov's; 0 for plain SGD.
        weight_decay: on all parameters.
        schedule: ``cosine`` falls from the peak to 0; ``one_cycle`` rises linearly for 30 % of the steps first.
        augment: called as ``augment(x, generator)`` on every training batch as it is in memory (uint8, not yet
            normalized); returns a new tensor of the same dtype. Picklable. The fingerprint knows functions by
            their source, dataclasses by their fields, other objects by their repr.
        normalize: (mean, std), numbers or one per channel (dimension 1), applied after the scaling of uint8.
        classes: how many there are; default: the largest label of ``train`` + 1.
        metrics: what is measured besides accuracy and loss, over all examples of a split at once: names of
            `ranksearch.tasks.metrics.NAMED` (``f1``, ``balanced_accuracy``, ``top3``, ``top5``), or a mapping of names to functions
            ``(logits, targets) -> float`` of CPU tensors of shape (n, classes) and (n,), or to pairs ``(function, "min")`` where less
            is better. Functions of scikit-learn come in `ranksearch.tasks.metrics.OfPredictions`. Picklable; the fingerprint
            knows them as it does ``augment``. Each is called once at the beginning, on answers that are all right.
        class_weights: a positive factor for each class in training and in the loss, which is sum w l / sum w; ``balanced``: n /
            (classes * count of the class) in ``train``. Outputs then stand for no distribution (`Task.predictive`): Fisher
            statistics are the empirical ones.

    Reports ``accuracy``, a fraction in 0..1, ``loss``, the mean cross-entropy in nats, and ``metrics``.

    Raises:
        InvalidArgument: data that is empty, misshapen, of another dtype or not finite; labels out of range;
            an option out of range; a metric or class weights that cannot be used.
        InvalidMetrics: a metric that fails when it is tried, or gives no number.
    """

    metrics = (Metric("accuracy", "max"), Metric("loss", "min"))
    predictive = "categorical"

    def __init__(
        self,
        *,
        train: tuple[Array, Array],
        validation: tuple[Array, Array],
        test: tuple[Array, Array] | None = None,
        learning_rate: float,
        batch_size: int = 128,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        schedule: Schedule = "cosine",
        augment: Augment | None = None,
        normalize: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
        classes: int | None = None,
        metrics: Metrics = (),
        class_weights: ClassWeights = None,
    ) -> None:
        checks.number("learning_rate", learning_rate, above=0)
        checks.number("weight_decay", weight_decay, least=0)
        checks.whole("batch_size", batch_size, least=1)
        checks.number("momentum", momentum, least=0, below=1)
        if schedule not in ("cosine", "one_cycle"):
            raise InvalidArgument(f"schedule={schedule!r} is none of cosine, one_cycle")
        if augment is not None and not callable(augment):
            raise InvalidArgument(f"augment={augment!r}: must be callable as augment(x, generator), or None")
        self._splits: dict[str, tuple[Tensor, Tensor]] = {"train": _pair("train", train), "validation": _pair("validation", validation)}
        if test is not None:
            self._splits["test"] = _pair("test", test)
        self.classes = int(self._splits["train"][1].max()) + 1 if classes is None else classes
        _check_splits(self._splits, self.classes)
        self._affine = _affine(normalize, self._splits["train"][0])
        self.learning_rate, self.batch_size, self.momentum, self.weight_decay = learning_rate, batch_size, momentum, weight_decay
        self.schedule: Schedule = schedule
        self.augment = augment
        self._protocol = {
            "task": "classification", "classes": self.classes, "learning_rate": learning_rate, "batch_size": batch_size,
            "momentum": momentum, "weight_decay": weight_decay,
            "schedule": schedule, "augment": None if augment is None else identity("augment", augment),
            "affine": [t.tolist() for t in self._affine],
        }  # fmt: skip
        if augment is not None:
            self._protocol["normalization"] = "augmented"
        self._set_measures(metrics, class_weights)

    def _set_measures(self, metrics: Metrics, class_weights: ClassWeights) -> None:
        """What is measured beside accuracy, and by what weights; a part of the protocol only where it is given."""
        self._reported = reported(metrics, [metric.name for metric in type(self).metrics])
        for split, (_, y) in self._splits.items():
            if split != "train":
                tried(self._reported, y, self.classes)
        self.metrics = (*type(self).metrics, *(one.metric for one in self._reported))
        if self._reported:
            self._protocol["metrics"] = identities(self._reported)
        self.class_weights = _class_weights(class_weights, self._splits["train"][1], self.classes)
        if self.class_weights is not None:
            self._protocol["class_weights"] = self.class_weights.tolist()
            self.predictive = None

    def sizes(self) -> dict[str, int]:
        """How many examples each split has."""
        return {name: len(y) for name, (_, y) in self._splits.items()}

    def cut(self, *, seed: int | None = None, **counts: int) -> Classification:
        """The same task with only so many examples of some splits, such as ``cut(test=1000)``. It is quicker; where train
        or validation are cut, it is another task, with another fingerprint. A training set that is left without a class is a warning.

        Args:
            seed: examples are drawn by it, and stay in their order; None: they are the first, which of data that is sorted by class
                are of one class alone.

        Raises:
            InvalidArgument: no such split, or a count outside 1 and its size.
        """
        other = copy.copy(self)
        vars(other).pop("_fingerprint", None)
        other._splits = dict(self._splits)
        for name, count in counts.items():
            size = self.sizes().get(name)
            if size is None or not 1 <= count <= size:
                raise InvalidArgument(f"{name}={count!r}: this task has {', '.join(f'{n} of {k}' for n, k in self.sizes().items())}")
            taken = slice(count) if seed is None else _drawn(size, count, seed)
            other._splits[name] = tuple(part[taken] for part in self._splits[name])  # type: ignore[assignment]
        if seed is None and "train" in counts:
            before, after = (len(task._splits["train"][1].unique()) for task in (self, other))
            if after < before:
                why = f"the first {counts['train']} of train have {after} of its {before} classes"
                warnings.warn(f"{why}: give seed=0, and they are drawn at random", RanksearchWarning, stacklevel=2)
        return other

    def judged_on_test(self, count: int) -> Classification:
        """The same task with its first ``count`` test examples in place of the validation ones. For weights that have seen the whole
        training set, whose measurements on a part of it would be too good; nothing is left then that a choice could be judged on.

        Raises:
            InvalidArgument: no test set, or a count outside 1 and its size.
        """
        other = self.cut(test=count)
        other._splits["validation"] = other._splits["test"]
        return other

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self._protocol, sort_keys=True).encode())
        absorb(digest, ((name, tensor) for name in ("train", "validation") for tensor in self._splits[name]))
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """See `Task.fingerprint`. The test set is no part of it: no evaluation depends on it, so one may be added later."""
        return self._fingerprint

    def example(self) -> Tensor:
        """The first training input, shape: (1, ...)."""
        return self._inputs(self._splits["train"][0][:1], torch.device("cpu"))

    def labelled(self, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Task.labelled`. Ends early where the training set does."""
        checks.whole("batches", batches, least=1)
        return self._draw(batches, None)

    def normalization(self, batches: int) -> Iterator[Tensor]:
        """See `Task.normalization`: the images of `labelled`, augmented."""
        checks.whole("batches", batches, least=1)
        return (inputs for inputs, _ in self._draw(batches, self.augment))

    def _draw(self, batches: int, augment: Augment | None) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self._splits["train"]
        generator = torch.Generator().manual_seed(CALIBRATION_SEED)
        order = torch.randperm(len(y), generator=generator)
        for chosen in order.split(self.batch_size)[:batches]:
            batch = x[chosen] if augment is None else augment(x[chosen], generator)
            yield self._inputs(batch, torch.device("cpu")), y[chosen]

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Mean cross-entropy, by class weights where there are any.

        Args:
            outputs: logits, shape (n, classes), or what has them as ``logits`` or first.
            targets: shape (n,).
        """
        logits = self._logits(outputs, len(targets))
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        return F.cross_entropy(logits, targets, weights)

    def sample_targets(self, outputs: Any, generator: torch.Generator) -> Tensor:
        """See `Task.sample_targets`: classes with the probabilities of the softmax, int64, shape: (n,)."""
        return torch.multinomial(self._logits(outputs).detach().float().softmax(dim=-1), 1, generator=generator)[:, 0]

    def training(self, model: nn.Module, *, epochs: float, seed: int) -> Training:
        """See `Task.training`."""
        return _Steps(self, model, epochs=epochs, seed=seed)

    def measure(self, model: nn.Module, split: Split = "validation") -> dict[str, float]:
        """See `Task.measure`."""
        check_split(split, self._splits)
        x, y = self._splits[split]
        device = device_of(model)
        correct, loss, weight = 0, 0.0, 0.0
        logits: list[Tensor] = []
        with mode(model, training=False), torch.no_grad():
            for part, targets in zip(x.split(self.batch_size), y.split(self.batch_size), strict=True):
                answers = self._logits(run(model, self._inputs(part, device)), len(targets))
                share = len(targets) if self.class_weights is None else float(self.class_weights[targets].sum())
                targets = targets.to(device)
                loss, weight = loss + float(self.loss(answers, targets)) * share, weight + share
                correct += int((answers.argmax(1) == targets).sum())
                if self._reported:
                    logits.append(answers.float().cpu())
        found = {"accuracy": correct / len(y), "loss": loss / weight}
        return found | {one.metric.name: one(torch.cat(logits), y.clone()) for one in self._reported}

    def _inputs(self, batch: Tensor, device: torch.device) -> Tensor:
        """What the network sees: a new tensor on ``device``, floating-point but for tokens."""
        if batch.dtype == torch.int64:
            return batch.to(device, copy=True)
        scale, shift = (t.to(device) for t in self._affine)
        return batch.to(device).to(scale.dtype) * scale + shift

    def _logits(self, outputs: Any, count: int | None = None) -> Tensor:
        """The logits among what a model answers, of ``count`` examples or of however many there are."""
        found = logits_of(outputs)
        if found is None or found.ndim != 2 or found.shape[1] != self.classes or count not in (None, len(found)):
            got = type(outputs).__name__ if found is None else f"shape {tuple(found.shape)}"
            wanted = f"({'examples' if count is None else count}, {self.classes})"
            raise InvalidModel(f"model answered with {got}: this task needs logits of shape {wanted}, one per class")
        return found

    # Tensors travel as numpy arrays: pickle keeps those out of band, so that processes of one machine share them.
    def __getstate__(self) -> dict[str, Any]:
        splits = {name: (x.numpy(), y.numpy()) for name, (x, y) in self._splits.items()}
        return {**self.__dict__, "_splits": splits, "_fingerprint": self._fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            # such arrays may be read-only; nothing here writes to them, and what is handed out is a copy
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            splits = {name: (torch.from_numpy(x), torch.from_numpy(y)) for name, (x, y) in state["_splits"].items()}
        for name, value in (state | {"_splits": splits}).items():
            setattr(self, name, value)


class _Steps(Training):
    """SGD over shuffled, augmented batches; a new order every epoch."""

    def __init__(self, task: Classification, model: nn.Module, *, epochs: float, seed: int) -> None:
        checks.number("epochs", epochs, above=0)
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise InvalidModel("model has no parameter that requires a gradient: call model.requires_grad_(True), or use epochs=0")
        self.device = device_of(model)
        self.model = model
        self.task = task
        self.per_epoch = max(1, task.sizes()["train"] // task.batch_size)
        self.steps = max(1, round(epochs * self.per_epoch))
        self.optimizer = SGD(
            parameters, lr=task.learning_rate, momentum=task.momentum, nesterov=task.momentum > 0, weight_decay=task.weight_decay
        )
        self.done = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)

    def batch(self) -> tuple[Tensor, Tensor]:
        if self.done >= self.steps:
            raise InvalidArgument(f"step {self.done + 1}: this training has {self.steps} steps; ask for more epochs")
        task, (x, y) = self.task, self.task._splits["train"]
        place = self.done % self.per_epoch
        if place == 0:
            self.order = torch.randperm(len(y), generator=self.generator)
        chosen = self.order[place * task.batch_size : (place + 1) * task.batch_size]
        batch = x[chosen]
        if task.augment is not None:
            batch = task.augment(batch, self.generator)
        for group in self.optimizer.param_groups:
            group["lr"] = task.learning_rate * rate(self.done, self.steps, task.schedule)
        self.done += 1
        return fitted(task._inputs(batch, self.device), self.model), y[chosen].to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "order": self.order, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.done = int(state["done"])
        self.order = state["order"].cpu().to(torch.int64)
        self.generator.set_state(state["generator"].cpu())


def rate(step: int, steps: int, schedule: Schedule) -> float:
    """Learning rate of a step as a share of the peak, in (0, 1]."""
    done = (step + 0.5) / steps
    if schedule == "one_cycle":
        if done < WARM_UP:
            return done / WARM_UP
        done = (done - WARM_UP) / (1 - WARM_UP)
    return 0.5 * (1 + math.cos(math.pi * done))


def _drawn(size: int, count: int, seed: int) -> Tensor:
    """So many different places of ``size``, ascending."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count].sort().values


def _pair(split: str, pair: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise InvalidArgument(f"{split} is a {type(pair).__name__}: must be a pair (x, y) of tensors or arrays")
    for name, part in zip("xy", pair, strict=True):
        if not isinstance(part, (Tensor, np.ndarray)):
            raise InvalidArgument(
                f"{split}: {name} is a {type(part).__name__}; must be one tensor or array. Networks of several inputs, such as mappings of "
                "keyword arguments, have the task FromLoss (docs/language_models.md) or one of your own (docs/tasks.md)"
            )
    try:
        x, y = (part.detach().cpu().contiguous() if isinstance(part, Tensor) else torch.tensor(part) for part in pair)
    except TypeError as error:
        raise InvalidArgument(f"{split}: holds an array that is no tensor ({error}); give numbers") from error
    if x.ndim < 2 or not x.numel():
        raise InvalidArgument(f"{split}: x has shape {tuple(x.shape)}; must be (n, ...), not empty")
    x = x.to(WIDENED.get(x.dtype, x.dtype))
    if x.dtype not in INPUT_TYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*INPUT_TYPES, *WIDENED))
        raise InvalidArgument(f"{split}: x is {x.dtype}; must be one of {known}: convert values with x.float(), tokens with x.long()")
    if x.is_floating_point() and not torch.isfinite(x).all():
        raise InvalidArgument(f"{split}: x holds NaN or infinite values; clean the data first")
    if y.dtype.is_floating_point or y.dtype.is_complex or y.dtype == torch.bool:
        raise InvalidArgument(f"{split}: y is {y.dtype}; labels must be integers: convert with y.long()")
    if tuple(y.shape) != (len(x),):
        raise InvalidArgument(f"{split}: y has shape {tuple(y.shape)}; must be ({len(x)},), one label per row of x")
    return x, y.long()


def _check_splits(splits: dict[str, tuple[Tensor, Tensor]], classes: int) -> None:
    checks.whole("classes", classes, least=2, hint="labels count from 0")
    x = splits["train"][0]
    for name, (other, y) in splits.items():
        if other.shape[1:] != x.shape[1:] or other.dtype != x.dtype:
            raise InvalidArgument(
                f"{name}: x is {other.dtype} with rows of shape {tuple(other.shape[1:])}; "
                f"must be like train: {x.dtype}, {tuple(x.shape[1:])}"
            )
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= classes:
            raise InvalidArgument(f"{name}: labels run from {low} to {high}; must be in 0..{classes - 1}; give classes= if there are more")


def _affine(normalize: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, shift) such that the network sees x * scale + shift."""
    if x.dtype == torch.int64 and normalize is not None:
        raise InvalidArgument(f"normalize={normalize!r}: int64 inputs reach the network as they are; leave normalize out")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    unit = 1 / 255 if x.dtype == torch.uint8 else 1.0
    if normalize is None:
        return torch.tensor(unit, dtype=dtype), torch.tensor(0.0, dtype=dtype)
    try:
        mean, std = (torch.as_tensor(part, dtype=torch.float64) for part in normalize)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"normalize={normalize!r}: must be (mean, std), numbers or one per channel") from error
    channels = x.shape[1]
    if any(part.ndim > 1 or (part.ndim == 1 and len(part) not in (1, channels)) for part in (mean, std)):
        raise InvalidArgument(f"normalize={normalize!r}: mean and std must be numbers or hold one value for each of {channels} channels")
    if not torch.isfinite(mean).all() or not torch.isfinite(std).all() or (std <= 0).any():
        raise InvalidArgument(f"normalize={normalize!r}: the mean must be finite, the std positive")
    view = (-1, *[1] * (x.ndim - 2))
    return (unit / std).reshape(view).to(dtype), (-mean / std).reshape(view).to(dtype)


def _class_weights(given: ClassWeights, targets: Tensor, classes: int) -> Tensor | None:
    """A factor per class, float64, shape: (classes,)."""
    if given is None:
        return None
    if isinstance(given, str):
        if given != "balanced":
            raise InvalidArgument(f"class_weights={given!r}: must be 'balanced', or one number for each of {classes} classes")
        counts = torch.bincount(targets, minlength=classes).double()
        if not bool(counts.all()):
            absent = ", ".join(str(k) for k in torch.nonzero(counts == 0).flatten().tolist())
            raise InvalidArgument(f"class_weights='balanced': train has no example of class {absent}; give a number for each class")
        return len(targets) / (classes * counts)
    try:
        weights = torch.as_tensor(given, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"class_weights={given!r}: must be 'balanced', or one number for each of {classes} classes") from error
    if tuple(weights.shape) != (classes,) or not bool(torch.isfinite(weights).all()) or bool((weights <= 0).any()):
        raise InvalidArgument(f"class_weights={given!r}: must hold one positive finite number for each of {classes} classes")
    return weights
