"""A supernet is trained with the task's own stream, optimiser and schedule; the training can be interrupted between any two
steps."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.home import user_path
from ranksearch.sites import device_of, mode
from ranksearch.supernet import _checkpoint
from ranksearch.supernet.network import RankSupernet
from ranksearch.tasks import Diverged, Task
from ranksearch.tasks.randomness import random_state, set_random_state
from ranksearch.tasks.task import Training
from ranksearch.tensors import absorb

if TYPE_CHECKING:
    from ranksearch.supernet.methods import Method


@dataclass(frozen=True)
class TrainingStep:
    """One step is done."""

    step: int  # 1 after the first
    steps: int
    loss: float
    saved: bool  # a checkpoint was written after it


@dataclass(frozen=True)
class TrainingSummary:
    """What a call of `train` did."""

    steps: int  # of the whole run, all of them done
    resumed: int  # how many of them had been done before
    loss: float | None  # of the last step; None where nothing was left to do
    seconds: float
    checkpoint: Path | None


def train(
    supernet: RankSupernet,
    task: Task,
    method: Method,
    *,
    epochs: float,
    seed: int,
    folder: str | Path | None = None,
    every: int = 100,
    on_event: Callable[[TrainingStep], None] | None = None,
) -> TrainingSummary:
    """Train in place for ``epochs`` passes with the task's stream, optimiser and schedule: those of `Task.fine_tune` at the
    same seed, so that the method ``plain`` gives the weights of ``task.fine_tune``, bit for bit.

    Args:
        method: what the loss of a batch is, and what happens after a step; made with this supernet.
        folder: where the checkpoint ``supernet.safetensors`` is kept: weights, both sets of statistics, momentum, bases,
            the states of the method, the stream and the random generators. A run that was stopped, at any step and by
            whatever, goes on from there and ends in the very same weights (one machine, one thread count); a finished one
            is loaded. Build supernet and method as for the first call.
        every: steps between checkpoints. The result does not depend on it.
        on_event: called after every step. An interrupt (Ctrl-C, also one that this raises) takes effect between two
            steps, after a checkpoint; a second Ctrl-C does not wait.

    Raises:
        InvalidArgument: ``epochs`` not above 0, ``every`` below 1, a method of another supernet, a folder that cannot be
            used, or one with the checkpoint of another run: the message says what differs.
        Diverged: the loss or the weights are no longer finite; the last checkpoint stays.
        KeyboardInterrupt: interrupted.
    """
    checks.whole("every", every, least=1, hint="checkpoints are so many steps apart")
    if method.supernet is not supernet:
        raise InvalidArgument("method was made with another supernet: make it with the one to be trained")
    begin = time.perf_counter()
    training = task.training(supernet, epochs=epochs, seed=seed)
    where = None if folder is None else user_path(folder)
    run = _Run(supernet, method, training, identity(supernet, task, method, epochs, seed), where, every)
    device = device_of(supernet)
    forked = [device] if device.type == "cuda" else []
    loss: float | None = None
    with mode(supernet, training=True), torch.random.fork_rng(devices=forked), torch.enable_grad(), _interrupts() as stop:
        torch.manual_seed(seed)  # dropout and the like
        first = run.begin()
        for number in range(first + 1, training.steps + 1):
            loss = run.step(number)
            saved = run.save_if_due(number)
            if on_event is not None:
                try:
                    on_event(TrainingStep(number, training.steps, loss, saved))
                except KeyboardInterrupt:
                    stop.set()
            if stop.is_set():
                if not saved:
                    run.save(number)
                raise KeyboardInterrupt
    training.optimizer.zero_grad(set_to_none=True)
    return TrainingSummary(training.steps, first, loss, time.perf_counter() - begin, None if where is None else where / _checkpoint.NAME)


def load_trained(supernet: RankSupernet, folder: str | Path) -> int:
    """Weights and statistics of a checkpoint, for evaluation; returns how many steps it was trained for.

    Raises:
        InvalidArgument: no checkpoint there, or one of another space or network."""
    state = _checkpoint.read(user_path(folder))
    if state is None:
        raise InvalidArgument(f"folder={str(folder)!r} holds no {_checkpoint.NAME}: train a supernet there first")
    if state["identity"]["space"] != supernet.space.fingerprint:
        raise InvalidArgument(f"folder={str(folder)!r} holds a supernet of another space: train one of this space")
    _load_weights(supernet, state)
    supernet.load_bases_state(state["bases"]["tensors"], state["bases"]["layout"])
    supernet.refresh()  # fitted ones go on from where they were, on the weights as they are
    return int(state["step"])


@dataclass
class _Run:
    """A training between two steps, and its checkpoints; without a folder it has none."""

    supernet: RankSupernet
    method: Method
    training: Training
    identity: dict[str, Any]
    folder: Path | None
    every: int  # steps between checkpoints

    def begin(self) -> int:
        """Go on from the checkpoint, or write the first one; returns how many steps are done."""
        done = self.resume()
        if not done:
            self.save(0)
        return done

    def step(self, number: int) -> float:
        """Make one step; returns the loss of its batch.

        Raises:
            Diverged: the loss or the weights are not finite."""
        batch = self.training.batch()
        self.training.optimizer.zero_grad(set_to_none=True)
        remedy = self._remedy(number)
        try:
            loss = self.method.loss(batch)
            value = float(loss.detach())
            if not torch.isfinite(loss).all():
                raise Diverged(f"loss={value} {remedy}")
            loss.backward()
            self.training.optimizer.step()
            self.method.after_step(number)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]  weights not finite
            raise Diverged(f"weights without a decomposition ({error}) {remedy}") from error
        return value

    def _remedy(self, number: int) -> str:
        return f"at step {number} of {self.training.steps}: lower the task's learning rate"

    def save_if_due(self, number: int) -> bool:
        """Write a checkpoint where one is due after this step; returns whether it was written.

        Raises:
            Diverged: it is due, or the step was the last, and weights are not finite."""
        last = number == self.training.steps
        due = self.folder is not None and (number % self.every == 0 or last)
        if due or last:
            self.save(number)
        return due

    def save(self, step: int) -> None:
        """Write a checkpoint, if there is a folder.

        Raises:
            Diverged: weights are not finite, and the checkpoint before stays: a loss is known before the step that it leads to."""
        if not all(bool(torch.isfinite(one).all()) for one in self.supernet.parameters() if one.requires_grad):
            raise Diverged(f"weights are not finite {self._remedy(step)}")
        if self.folder is None:
            return
        random = random_state(device_of(self.supernet))
        tensors, layout = self.supernet.bases_state()
        _checkpoint.write(
            self.folder,
            {
                "identity": self.identity,
                "step": step,
                "weights": self.supernet.state_dict(),
                "bases": {"tensors": tensors, "layout": layout},
                "optimizer": self.training.optimizer.state_dict(),
                "stream": self.training.state_dict(),
                "method": self.method.state_dict(),
                "random": random["cpu"],
                "random_cuda": random.get("cuda"),
            },
        )

    def resume(self) -> int:
        """Load the checkpoint, if there is one; returns how many steps are done."""
        start = self.identity["start"]
        known = self.supernet.__dict__.get("_start")  # of an earlier call with this very supernet, which has moved since
        state = None if self.folder is None else _checkpoint.read(self.folder)
        if state is None:
            self.supernet.__dict__["_start"] = start
            return 0
        found = state["identity"]
        if known is not None and found.get("start") == known:
            self.identity["start"] = start = known
        other = [key for key in sorted({*found, *self.identity}) if found.get(key) != self.identity.get(key)]
        if other:
            listed = "; ".join(f"{key}: {_short(found.get(key))} there, {_short(self.identity.get(key))} here" for key in other)
            where = f"folder={str(self.folder)!r} holds the checkpoint of another run"
            raise InvalidArgument(f"{where} ({listed}); give another folder, or what that run was given")
        self.supernet.__dict__["_start"] = start
        _load_weights(self.supernet, state)
        self.supernet.load_bases_state(state["bases"]["tensors"], state["bases"]["layout"])
        self.training.optimizer.load_state_dict(state["optimizer"])
        self.training.load_state_dict(state["stream"])
        self.method.load_state_dict(state["method"])
        random = {name: state[key] for name, key in (("cpu", "random"), ("cuda", "random_cuda")) if state[key] is not None}
        set_random_state(random, device_of(self.supernet))
        return int(state["step"])


def _load_weights(supernet: RankSupernet, state: Mapping[str, Any]) -> None:
    try:
        supernet.load_state_dict(state["weights"])
    except RuntimeError as error:
        raise InvalidArgument(f"the checkpoint's weights do not fit this supernet: {error}") from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:100] + "..."


def identity(supernet: RankSupernet, task: Task, method: Method, epochs: float, seed: int) -> dict[str, Any]:
    """All that decides how a run goes, as JSON."""
    digest = hashlib.sha256()
    absorb(digest, supernet.state_dict().items())
    sampling = getattr(method, "sampling", None)
    return {
        "start": digest.hexdigest()[:16],
        "space": supernet.space.fingerprint,
        "refresh": supernet.refresh_every,
        "task": task.fingerprint(),
        "method": method.name,
        "options": _plain(method),
        "sampling": None if sampling is None else [type(sampling).__name__, _plain(sampling)],
        "epochs": float(epochs),
        "seed": int(seed),
    }


def _plain(thing: Any) -> dict[str, Any]:
    """The public attributes of an object that JSON can hold: its hyper-parameters."""
    found = {name: _value(value) for name, value in vars(thing).items() if not name.startswith("_")}
    return {name: value for name, value in sorted(found.items()) if value is not _OTHER}


_OTHER = object()


def _value(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_value(item) for item in value]
        return _OTHER if any(item is _OTHER for item in items) else items
    return _OTHER


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event, which the first Ctrl-C sets; the second one interrupts at once. Outside the main thread signals are left as they
    are."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handler(_number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
