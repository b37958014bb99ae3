"""How fast a study goes, from when its evaluations were finished and how long they took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LAST = 20  # evaluations that the pace is taken from


@dataclass(frozen=True)
class Pace:
    """None: not known."""

    per_minute: float | None
    at_a_time: int  # most evaluations that ran at the same time, of the last ones
    left: float | None  # seconds until ``planned`` are there, at this pace


def pace(finished: Sequence[float], seconds: Sequence[float], *, planned: int | None = None) -> Pace:
    """The pace of the last evaluations.

    Args:
        finished: when each was, in seconds since any moment, in any order.
        seconds: that each took.
        planned: how many evaluations the study is to have.
    """
    order = sorted(range(len(finished)), key=lambda i: finished[i])[-LAST:]
    spans = [(finished[i] - seconds[i], finished[i]) for i in order]
    per_minute = None
    if len(spans) > 1 and spans[-1][1] > spans[0][1]:
        per_minute = 60 * (len(spans) - 1) / (spans[-1][1] - spans[0][1])
    left = None
    if planned is not None and (rest := planned - len(finished)) >= 0 and (per_minute or not rest):
        left = 60 * rest / per_minute if per_minute else 0.0
    return Pace(per_minute, _at_a_time(spans), left)


def _at_a_time(spans: Sequence[tuple[float, float]]) -> int:
    """Most intervals that have a moment in common; one that ends as another begins has none with it."""
    most = now = 0
    for _, step in sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans]):
        now += step
        most = max(most, now)
    return most
