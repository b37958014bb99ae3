"""Narrower dense networks of the same architecture: what a user would train instead of compressing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ranksearch import checks
from ranksearch.errors import InvalidArgument


def _untrained(width: float) -> None:
    """Of no width is anything known but its cost."""
    del width


@dataclass(frozen=True)
class Narrower:
    """The rivals of a study's networks: its own architecture with fewer channels. A study that measures latency measures theirs beside it.

        Narrower(lambda width: resnet(width=width), metrics=lambda width: task.measure(trained[width]) if width in trained else None)

    Attributes:
        network: from a share of the channels of every layer to the network, trained or not: latency does not depend on weights.
        widths: the shares, each above 0 and below 1.
        metrics: from a share to what was measured of the network where it was *trained*, by the names of the task's metrics; None where
            it was not. It is asked when latency is measured, and what it says is kept with the study.

    Raises:
        InvalidArgument: no width, or one that is not between 0 and 1.
    """

    network: Callable[[float], nn.Module]
    widths: Sequence[float] = (0.85, 0.7, 0.6, 0.5, 0.4)
    metrics: Callable[[float], Mapping[str, float] | None] = _untrained

    def __post_init__(self) -> None:
        if not self.widths:
            raise InvalidArgument("widths is empty: give the shares of the channels that narrower networks have, such as (0.7, 0.5)")
        for width in self.widths:
            checks.number("widths", width, above=0, below=1, hint="shares of the channels of every layer")
