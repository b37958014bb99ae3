"""Times of several works against one of them, taken in turn, so that whatever else the machine does falls on all alike: medians of
paired ratios with confidence intervals that assume no distribution (order statistics, David and Nagaraja 2003, section 7.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

Work = Callable[[], object]  # does the work once; an accelerator may still be at it when this returns
CONFIDENCE = 0.95
GROUP = 8  # works between two runs of the reference: pairs lie close together in time


@dataclass(frozen=True)
class Interval:
    """A median and the interval that covers the true one with a probability of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Precision:
    """How long works are repeated.

    Attributes:
        width: half of an interval, relative to its median, at which a work is known well enough.
        least, most: rounds, in each of which every work is timed once.
        sample: seconds that one timing takes at least; shorter works are repeated within it.
        seconds: after which no further round begins.
    """

    width: float = 0.02
    least: int = 11
    most: int = 61
    sample: float = 5e-4
    seconds: float = 20.0


@dataclass(frozen=True)
class Timing:
    """What was measured of some works."""

    reference: float  # seconds of one run of the reference, median
    ratios: tuple[Interval, ...]  # seconds of each other work over those of the reference in the same round


def paired(
    reference: Work,
    others: Sequence[Work],
    *,
    precision: Precision,
    clock: Callable[[], float] = time.perf_counter,
    settle: Callable[[], None] = lambda: None,
    runs: int = 1,
) -> Timing:
    """Time works against a reference. Rounds alternate in their order, so that neither a drift of the machine nor what ran before
    favours one side.

    Args:
        reference: what the others are divided by.
        clock: seconds; a test gives one of its own.
        settle: waits until the device is done; called once per timing, after all repeats, so that what it costs is not counted once
            per run and an accelerator gets its work as fast as in a network.
        runs: how often a work runs what is timed in one call.
    """
    times: list[np.ndarray] = []
    ratios: list[Interval] = []
    for start in range(0, max(len(others), 1), GROUP):
        works = [reference, *others[start : start + GROUP]]
        found = _rounds(works, precision, _Stopwatch(clock, settle, runs))
        times.append(found[:, 0])
        ratios += [median_interval(column / found[:, 0]) for column in found.T[1:]]
    return Timing(float(np.median(np.concatenate(times))), tuple(ratios))


def median_interval(values: np.ndarray) -> Interval:
    """The median of independent values, shape: (n,), and its 95 % interval; the range where values are too few for one."""
    ordered = np.sort(values)
    n = len(ordered)
    below = int(np.searchsorted(bdtr(np.arange(n), n, 0.5), (1 - CONFIDENCE) / 2))  # values[below - 1] and its mirror still cover
    low = max(below - 1, 0)
    return Interval(float(np.median(ordered)), float(ordered[low]), float(ordered[n - 1 - low]))


@dataclass(frozen=True)
class _Stopwatch:
    clock: Callable[[], float]
    settle: Callable[[], None]
    runs: int

    def seconds(self, work: Work, repeats: int) -> float:
        """Of one run."""
        begin = self.clock()
        for _ in range(repeats):
            work()
        self.settle()
        return max((self.clock() - begin) / (repeats * self.runs), 1e-12)

    def repeats(self, work: Work, sample: float) -> int:
        """How often a work must run for one timing to take ``sample`` seconds; it runs a few times for that, which warms up."""
        work()
        self.settle()
        once = self.runs * min(self.seconds(work, 1) for _ in range(3))
        return max(1, round(sample / once))


def _rounds(works: Sequence[Work], precision: Precision, watch: _Stopwatch) -> np.ndarray:
    """Seconds per run, shape: (n_rounds, n_works)."""
    repeats = [watch.repeats(work, precision.sample) for work in works]
    rows: list[list[float]] = []
    begin = watch.clock()
    while len(rows) < precision.most:
        row = [0.0] * len(works)
        order = range(len(works)) if len(rows) % 2 == 0 else range(len(works) - 1, -1, -1)
        for k in order:
            row[k] = watch.seconds(works[k], repeats[k])
        rows.append(row)
        if len(rows) >= precision.least and (watch.clock() - begin > precision.seconds or _precise(np.array(rows), precision.width)):
            break
    return np.array(rows)


def _precise(times: np.ndarray, width: float) -> bool:
    columns = times.T[1:] / times[:, 0] if times.shape[1] > 1 else times.T
    intervals = [median_interval(column) for column in columns]
    return all(i.high - i.low <= 2 * width * i.value for i in intervals)
