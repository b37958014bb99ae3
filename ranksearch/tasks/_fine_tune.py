"""Fine-tuning by a task's own steps and loss."""

from __future__ import annotations

import torch
from torch import nn

from ranksearch import checks
from ranksearch.sites import device_of, mode, run
from ranksearch.tasks.task import Diverged, Task


def fine_tune_in_steps(task: Task, model: nn.Module, *, epochs: float, seed: int) -> None:
    """What `Task.fine_tune` promises, for a task whose `Task.training` says how it trains.

    Raises:
        Diverged, InvalidArgument, InvalidModel: as `Task.fine_tune`.
    """
    if checks.number("epochs", epochs, least=0) == 0:
        return
    training = task.training(model, epochs=epochs, seed=seed)
    device = device_of(model)
    forked = [device] if device.type == "cuda" else []
    with mode(model, training=True), torch.random.fork_rng(devices=forked), torch.enable_grad():
        torch.manual_seed(seed)  # dropout and the like
        for step in range(training.steps):
            inputs, targets = training.batch()
            training.optimizer.zero_grad(set_to_none=True)
            loss = task.loss(run(model, inputs), targets)
            if not torch.isfinite(loss):
                rate = training.optimizer.defaults["lr"]  # the peak
                raise Diverged(f"loss={loss.item()} at step {step + 1} of {training.steps}: lower learning_rate={rate:g}")
            loss.backward()
            training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
