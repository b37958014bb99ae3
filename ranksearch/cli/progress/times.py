"""How long the rest takes, and how times are written."""

from __future__ import annotations

import time
from collections.abc import Callable


class TimeLeft:
    """How long the rest takes at the pace so far. The pace counts from where the first evaluation began, not from where
    workers were started; two must be in, since with several at a time the first one says little."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin: float | None = None
        self._finished = 0

    def finished(self, seconds: float) -> None:
        """One more is in, which took so long."""
        if self._begin is None:
            self._begin = self._clock() - seconds
        self._finished += 1

    def seconds(self, remaining: int) -> float | None:
        """How long ``remaining`` evaluations take; None while nothing can be said."""
        if self._begin is None or self._finished < 2 or remaining < 1:
            return None
        return (self._clock() - self._begin) / self._finished * remaining

    def per_minute(self) -> float | None:
        """How many evaluations finish in a minute; None while nothing can be said."""
        each = self.seconds(1)
        return 60 / each if each else None

    def __call__(self, remaining: int) -> str:
        """``m:ss left``; empty while nothing can be said."""
        seconds = self.seconds(remaining)
        return "" if seconds is None else f"{clock(seconds)} left"


def clock(seconds: float) -> str:
    """A duration: 0:42, 12:05, 3:20:00."""
    whole = max(round(seconds), 0)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
