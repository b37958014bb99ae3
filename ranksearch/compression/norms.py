"""Which statistics the batch norms of the dense network have while smaller networks are made to answer as it does."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Any, Literal, get_args

from scipy.special import stdtrit
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import recalibrate, running_norms
from ranksearch.proxies.calibration_loss import mean_loss
from ranksearch.search.events import Announced
from ranksearch.sites import copied, evaluating
from ranksearch.tasks import Task

Taken = Literal["own", "re-estimated"]
Norms = Literal["auto", "own", "re-estimated"]
COMPARED = 32  # labelled batches on which two sets of statistics are compared
DOUBT = 0.025  # probability that re-estimated statistics are taken which are no better


def check_norms(given: Any) -> Norms:
    """Raises:
    InvalidArgument: no such choice."""
    if given not in (choices := get_args(Norms)):
        raise InvalidArgument(f"norms={given!r:.80} is none of {', '.join(choices)}")
    return given


def reference(
    model: nn.Module, task: Task, norms: Norms, *, seen: int, recalibration: int, tell: Callable[[Announced], None]
) -> tuple[nn.Module, Taken]:
    """The network that others are made to answer like, and which statistics its batch norms have: ``model`` itself, or a copy with
    re-estimated ones. Training with augmentation may leave statistics that suit plain data badly; a network that imitates them is no
    better than they are.

    Args:
        model: the dense network; never changed.
        norms: "auto" re-estimates where the task's loss on labelled batches of training data is then surely lower: a paired t-test over
            32 batches that the statistics have not seen, one-sided, at 2.5 %. Where there are fewer it is over these, and where there is
            one, or none, statistics stay.
        seen: batches that statistics may be made of; those that follow are compared on.
        recalibration: batches that statistics are re-estimated on.
    """
    if norms == "own" or not running_norms(model):
        return model, "own"
    other = copied(model, share=True)
    recalibrate(other, task.calibration(min(recalibration, seen)))
    if norms == "re-estimated":
        return other, norms
    tell(Announced("comparing the batch norms' statistics with re-estimated ones"))
    before, after = (losses(network, task, seen) for network in (model, other))
    if not surely_lower(after, before):
        return model, "own"
    lost, own = sum(after) / len(after), sum(before) / len(before)
    tell(Announced(f"re-estimating batch norms of the dense network, which then loses {lost:.4g} instead of {own:.4g}"))
    return other, "re-estimated"


def losses(network: nn.Module, task: Task, seen: int) -> list[float]:
    """The task's loss of each of the batches that are compared on: at most 32, those that follow the ``seen`` ones."""
    with evaluating(network):
        return [mean_loss(network, [one], task.loss, task.batch_dim) for one in islice(task.labelled(seen + COMPARED), seen, None)]


def surely_lower(mine: list[float], others: list[float]) -> bool:
    """Whether the mean of paired losses is lower beyond doubt: a one-sided t-test of their differences. Never where there are fewer than
    two pairs, or where one is not a finite number."""
    gains = [other - loss for loss, other in zip(mine, others, strict=True)]
    count = len(gains)
    if count < 2 or not all(math.isfinite(gain) for gain in gains):
        return False
    mean = sum(gains) / count
    deviation = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (count - 1))
    return mean > float(stdtrit(count - 1, 1 - DOUBT)) * deviation / math.sqrt(count)
