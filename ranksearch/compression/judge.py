"""How much a network loses, measured on held-out batches of the training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ranksearch.networks.batch_norm import batch_statistics, re_estimated, running_norms
from ranksearch.proxies.calibration_loss import mean_loss
from ranksearch.sites import BatchDim, evaluating, map_tensors, run
from ranksearch.tasks import Task


@dataclass(frozen=True)
class Judge:
    """Measures networks on batches that no metric and no reconstruction has seen.

    Where the task has a divergence of outputs from the dense network's (`Task.divergence`), that is taken: it is 0 for the dense network,
    needs no labels and varies less than the loss. Other tasks have their loss taken.

    Attributes:
        batches: inputs, and what the loss compares outputs with.
        loss: mean over a batch.
        statistics: inputs of batches that running statistics are re-estimated on, as those of the network that is handed out. None: batch
            norms normalize by their batch, which costs no passes. The dense network is then another one too, with noise that networks
            share as far as they are like it: that tells networks apart which were made in one way, and no factors as they come from
            fitted ones (`docs/results/reconstruction.md`).
    """

    batches: Sequence[tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor]
    batch_dim: BatchDim = 0
    statistics: Sequence[Any] | None = None

    def __call__(self, network: nn.Module) -> float:
        """Mean over the batches, weighted by their examples; infinite where it is not a finite number. The network is as it was then."""
        with batch_statistics(network) if self.statistics is None else re_estimated(network, self.statistics):
            return self.as_given(network)

    def as_given(self, network: nn.Module) -> float:
        """The same with the running statistics that a network has."""
        with evaluating(network):
            value = mean_loss(network, self.batches, self.loss, self.batch_dim)
        return value if value == value else float("inf")

    @property
    def passes(self) -> int:
        """Forward passes of one batch that a network takes."""
        return len(self.batches) + len(self.statistics or ())


def judge(model: nn.Module, task: Task, batches: Sequence[tuple[Any, Any]], *, statistics: int = 0) -> Judge:
    """The judge of networks that stand in for ``model``, on batches (inputs, targets); the dense network's answers to all of them stay in
    memory.

    Args:
        statistics: batches that running statistics are re-estimated on (`Task.calibration`: plain ones, which reconstruction fits norms
            to), where ``model`` has any; 0: norms normalize by their batch.
    """
    known = list(task.calibration(statistics)) if statistics and running_norms(model) else None
    with evaluating(model), nullcontext() if known else batch_statistics(model):
        answers = [(inputs, map_tensors(lambda t: t.detach(), run(model, inputs))) for inputs, _ in batches]
    if all(task.divergence(answer, answer) is not None for _, answer in answers[:1]):
        return Judge(answers, task.divergence, task.batch_dim, known)  # pyright: ignore[reportArgumentType]
    return Judge(batches, task.loss, task.batch_dim, known)
