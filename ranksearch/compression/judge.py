"""How much a network loses, measured on held-out batches of the training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ranksearch.networks.batch_norm import batch_statistics
from ranksearch.proxies.calibration_loss import mean_loss
from ranksearch.sites import BatchDim, evaluating, map_tensors, run
from ranksearch.tasks import Task


@dataclass(frozen=True)
class Judge:
    """Measures networks on batches that no metric and no reconstruction has seen.

    Where the task has a divergence of outputs from the dense network's (`Task.divergence`), that is taken: it is 0 for the dense network,
    needs no labels and varies less than the loss. Other tasks have their loss taken. Batch norms normalize by their batch: what
    re-estimation comes to, without its passes.
    """

    batches: Sequence[tuple[Any, Any]]  # (inputs, what the loss compares the outputs with)
    loss: Callable[[Any, Any], Tensor]  # mean over a batch
    batch_dim: BatchDim = 0

    def __call__(self, network: nn.Module) -> float:
        """Mean over the batches, weighted by their examples; infinite where it is not a finite number."""
        with evaluating(network), batch_statistics(network):
            value = mean_loss(network, self.batches, self.loss, self.batch_dim)
        return value if value == value else float("inf")


def judge(model: nn.Module, task: Task, batches: Sequence[tuple[Any, Any]]) -> Judge:
    """The judge of networks that stand in for ``model``, on batches (inputs, targets); the dense network's answers to all of them stay in
    memory."""
    with evaluating(model), batch_statistics(model):
        answers = [(inputs, map_tensors(lambda t: t.detach(), run(model, inputs))) for inputs, _ in batches]
    if all(task.divergence(answer, answer) is not None for _, answer in answers[:1]):
        return Judge(answers, task.divergence, task.batch_dim)  # pyright: ignore[reportArgumentType]
    return Judge(batches, task.loss, task.batch_dim)
