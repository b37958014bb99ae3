"""Fine-tuning by a task's own steps and loss, at once or in parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.sites import device_of, mode, run
from ranksearch.tasks.randomness import random_state, set_random_state
from ranksearch.tasks.task import Diverged, Task


class FineTuning:
    """A fine-tuning that can be left between two steps and taken up again: whatever the parts, and whatever happens between them, it
    comes to the weights that it comes to at once. `state_dict`, with the model's and the optimiser's, is all that it takes to go on
    in another process."""

    def __init__(self, task: Task, model: nn.Module, *, epochs: float, seed: int) -> None:
        """
        Args:
            task: whose `Task.training` says how it trains.
            epochs: of the whole; above 0.

        Raises:
            InvalidArgument, InvalidModel: as `Task.training`."""
        self.task, self.model, self.epochs = task, model, epochs
        self.training = task.training(model, epochs=epochs, seed=seed)
        self.done = 0  # steps
        self._seed = seed
        self._random: dict[str, Tensor] | None = None  # states of torch's generators within training; None: not begun
        self._device = device_of(model)

    def advance(self, epochs: float) -> None:
        """Train on until so many epochs are done, counted from the beginning, at most the whole.

        Raises:
            Diverged: the loss is no longer finite."""
        training = self.training
        until = min(training.steps, round(training.steps * epochs / self.epochs))
        with mode(self.model, training=True), self._generators(), torch.enable_grad():
            for step in range(self.done, until):
                inputs, targets = training.batch()
                training.optimizer.zero_grad(set_to_none=True)
                loss = self.loss(inputs, targets)
                if not torch.isfinite(loss):
                    rate = training.optimizer.defaults["lr"]  # the peak
                    raise Diverged(f"loss={loss.item()} at step {step + 1} of {training.steps}: lower learning_rate={rate:g}")
                loss.backward()
                self.scale()
                training.optimizer.step()
                self.done = step + 1
        training.optimizer.zero_grad(set_to_none=True)

    def loss(self, inputs: Any, targets: Any) -> Tensor:
        """What is minimised: the task's loss."""
        return self.task.loss(run(self.model, inputs), targets)

    def scale(self) -> None:
        """Change the gradients before a step: they stay as they are."""

    def settle(self, model: nn.Module) -> None:
        """Give the model, or a copy of it, the weights that the fine-tuning hands out so far: those of the last step."""

    def state_dict(self) -> dict[str, Any]:
        """Where the stream and the random numbers are; model and optimiser have their own."""
        return {"done": self.done, "training": self.training.state_dict(), "random": self._random}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.done, self._random = int(state["done"]), state["random"]
        self.training.load_state_dict(state["training"])

    @contextlib.contextmanager
    def _generators(self) -> Iterator[None]:
        """Torch's random numbers (dropout and the like) are those of the fine-tuning meanwhile, and the caller's afterwards."""
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            if self._random is None:
                torch.manual_seed(self._seed)
            else:
                set_random_state(self._random, self._device)
            yield
            self._random = random_state(self._device)


class InSteps(Task):
    """A task whose fine-tuning is its own steps (`Task.training`) with its own loss."""

    def fine_tune(self, model: nn.Module, *, epochs: float, seed: int) -> None:
        """See `Task.fine_tune`."""
        if checks.number("epochs", epochs, least=0) > 0:
            FineTuning(self, model, epochs=epochs, seed=seed).advance(epochs)
