"""How much a network lost, measured on held-out batches of the training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.networks.batch_norm import batch_statistics
from ranksearch.sites import evaluating, run
from ranksearch.tasks import Agreement, Task


@dataclass(frozen=True)
class Judge:
    """Measures networks on batches that no metric and no reconstruction has seen.

    For outputs that are logits it takes the mean Kullback-Leibler divergence from the dense network's predictions, in nats per
    prediction: it is 0 for the dense network, needs no labels and varies less than the loss. For other outputs it takes the task's
    loss. Batch norms normalize by their batch: what re-estimation comes to, without its passes.
    """

    batches: Sequence[tuple[Any, Any]]  # (inputs, what the loss compares the outputs with)
    loss: Callable[[Any, Any], Tensor]  # mean over a batch

    def __call__(self, network: nn.Module) -> float:
        """Mean over the batches, weighted by their examples; infinite where it is not a finite number."""
        total, count = 0.0, 0
        with evaluating(network), batch_statistics(network):
            for inputs, targets in self.batches:
                size = len(targets) if hasattr(targets, "__len__") else 1
                total += float(self.loss(run(network, inputs), targets)) * size
                count += size
        value = total / count
        return value if value == value else float("inf")


def judge(model: nn.Module, task: Task, batches: Sequence[tuple[Any, Any]]) -> Judge:
    """The judge of networks that stand in for ``model``, on batches (inputs, targets)."""
    if task.predictive == "categorical":
        return Judge(_answered(model, batches, lambda outputs: outputs.float().log_softmax(1)), divergence)
    if isinstance(task, Agreement):  # its own targets are what the reference answers with running statistics
        return Judge(_answered(model, batches, task.answer), task.loss)
    return Judge(batches, task.loss)


def _answered(model: nn.Module, batches: Sequence[tuple[Any, Any]], answer: Callable[[Any], Any]) -> list[tuple[Any, Any]]:
    """The inputs of batches with what the dense network answers to them, its batch norms normalizing by their batch."""
    with evaluating(model), batch_statistics(model):
        return [(inputs, answer(run(model, inputs))) for inputs, _ in batches]


def divergence(outputs: Tensor, dense: Tensor) -> Tensor:
    """KL(dense || network), mean over the predictions.

    Args:
        outputs: logits, classes on axis 1.
        dense: log-probabilities, of the same shape.
    """
    divergences = F.kl_div(outputs.float().log_softmax(1), dense, reduction="none", log_target=True).sum(1)
    return divergences.mean()
