"""The sandwich rule with in-place distillation (universally slimmable networks, arXiv 1903.05134), with ranks in the place of widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor
from torch.nn import functional as F

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.sites import map_tensors
from ranksearch.space import DENSE
from ranksearch.supernet.methods._base import Batch, Loss, Method, projecting
from ranksearch.supernet.network import RankSupernet
from ranksearch.supernet.sampling import FrontGuided, Sampling
from ranksearch.tasks.task import logits_of

Distillation = Callable[[Any, Any], Tensor]  # (outputs of a low-rank network, detached outputs of the dense one) -> scalar


@final
class Sandwich(Method):
    """The loss is L(W) + weight * the sum, over the smallest and ``random`` drawn configurations, of the cross-entropy with the
    dense network's soft labels, which carry no gradient.

    US-Nets train 4 networks a step, hence ``random=2``; their losses are summed, unweighted, at temperature 1; the smallest
    has 0.25 of the width, about 0.06 of the MACs. Here the smallest is the sampling's own, by default the exact front at a
    tenth of the MACs, since ranks of 1 everywhere are no network that anyone wants.

    Args:
        random: configurations drawn per step besides the smallest.
        weight: of every low-rank network's loss.
        temperature: logits of both networks are divided by it, and their cross-entropy is multiplied by its square, so that gradients
            keep their size (Hinton et al., arXiv 1503.02531); 1: the networks' own distributions.
        distillation: for outputs that are not logits with the classes last; see `soft_cross_entropy`.
        sampling: default `FrontGuided`.
    """

    name = "sandwich"
    draws = True

    def __init__(
        self,
        supernet: RankSupernet,
        loss: Loss,
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        random: int = 2,
        weight: float = 1.0,
        temperature: float = 1.0,
        distillation: Distillation | None = None,
    ) -> None:
        checks.whole("random", random, least=0)
        checks.number("weight", weight, above=0)
        checks.number("temperature", temperature, above=0)
        if distillation is not None and not callable(distillation):
            raise InvalidArgument(f"distillation={distillation!r}: must be callable as distillation(outputs, teacher), or None")
        if distillation is not None and temperature != 1:
            raise InvalidArgument(f"temperature={temperature!r}: it is of logits alone; soften the outputs in distillation")
        sampling = FrontGuided(supernet.space, types=projecting(supernet)) if sampling is None else sampling
        super().__init__(supernet, loss, sampling=sampling, seed=seed)
        self.random, self.weight = random, weight
        self.distillation = soft_cross_entropy if distillation is None else distillation
        self._temperature = temperature
        if temperature != 1:  # supernets of earlier versions, all at 1, are found by their options, which have none
            self.temperature = temperature

    def loss(self, batch: Batch) -> Tensor:
        assert self.sampling is not None
        inputs, targets = batch
        outputs = self.run(DENSE, inputs)
        total = self.criterion(outputs, targets)
        teacher = detached(outputs)
        for configuration in (self.sampling.smallest(), *(self.sampling.draw(self.generator) for _ in range(self.random))):
            total = total + self.weight * self._apart(self.run(configuration, inputs), teacher)
        return total

    def _apart(self, outputs: Any, teacher: Any) -> Tensor:
        """What a low-rank network loses by the dense one, at the temperature."""
        if self._temperature == 1:
            return self.distillation(outputs, teacher)
        return self._temperature**2 * self.distillation(logits(outputs) / self._temperature, logits(teacher) / self._temperature)


def soft_cross_entropy(outputs: Any, teacher: Any) -> Tensor:
    """The mean over examples of - sum p log q, where p and q are the softmax of two logits with the classes in the last dimension.
    Of objects with ``logits`` these are taken, and of several answers the first.

    Raises:
        InvalidArgument: no logits.
    """
    student, labels = logits(outputs), logits(teacher).detach()
    q, p = F.log_softmax(student.float() if student.dtype.itemsize < 4 else student, dim=-1), labels.to(student.dtype).softmax(dim=-1)
    return -(p * q).sum(dim=-1).mean()


def logits(outputs: Any) -> Tensor:
    found = logits_of(outputs)
    if found is None or found.ndim < 2:
        got = type(outputs).__name__ if found is None else f"a tensor of shape {tuple(found.shape)}"
        raise InvalidArgument(f"outputs: the network answers with {got}, not logits (..., classes); give a distillation")
    return found


def detached(outputs: Any) -> Any:
    """Outputs without gradient, in whatever containers."""
    return map_tensors(Tensor.detach, outputs)
