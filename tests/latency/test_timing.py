"""Paired, interleaved timing on a clock of our own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ranksearch.latency.timing import Interval, Precision, Timing, median_interval, paired


class Clock:
    """Goes on by what works take, times a load that changes as it goes on; remembers who ran when."""

    def __init__(self, load: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now, self.load = 0.0, load
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.order.append(name)
            self.now += seconds * self.load(self.now)

        return run


def timed(clock: Clock, *seconds: float, **precision: float) -> Timing:
    works = [clock.work(f"w{k}", s) for k, s in enumerate(seconds)]
    settings = Precision(**{"least": 9, "most": 9, "sample": 0.0, **precision})  # type: ignore[arg-type]
    return paired(works[0], works[1:], precision=settings, clock=clock)


def test_ratios_and_reference_of_a_steady_machine() -> None:
    found = timed(Clock(), 2.0, 1.0, 5.0)
    assert found.reference == pytest.approx(2.0)
    assert [r.value for r in found.ratios] == pytest.approx([0.5, 2.5])
    assert all(r.low == pytest.approx(r.value) == pytest.approx(r.high) for r in found.ratios)


def test_a_drift_of_the_machine_falls_on_both_sides() -> None:
    clock = Clock(load=lambda now: 1.0 + now / 100)  # ends several times slower than it began
    found = timed(clock, 1.0, 1.0)
    assert clock.load(clock.now) > 1.15
    assert found.ratios[0].value == pytest.approx(1.0, abs=0.01)
    assert found.ratios[0].low < 1.0 < found.ratios[0].high  # who goes first alternates


def test_works_take_turns_and_the_reference_stays_near() -> None:
    clock = Clock()
    seconds = [1.0] * 20  # three groups
    found = timed(clock, *seconds)
    assert len(found.ratios) == 19
    order = [int(name[1:]) for name in clock.order]
    rounds = order[-4 * 9 :]  # of the last group: the reference and three others
    assert rounds[:8] == [0, 17, 18, 19, 19, 18, 17, 0]
    gaps = np.diff(np.flatnonzero(np.array(order) == 0))
    assert gaps.max() <= 2 * 9 + 4 * 8  # once per round; before the first, every other work of a group warms up


def test_short_works_are_repeated_within_a_sample() -> None:
    clock = Clock()
    timed(clock, 1e-3, 1e-1, sample=0.1)
    counts = {name: clock.order.count(name) for name in ("w0", "w1")}
    assert counts["w0"] == pytest.approx(9 * 100 + 4, abs=1) and counts["w1"] == 9 + 4


def test_rounds_end_when_intervals_are_narrow_or_time_is_up() -> None:
    steady, noisy, capped = Clock(), Clock(), Clock()
    generator = np.random.default_rng(0)
    noisy.load = capped.load = lambda now: float(generator.uniform(0.5, 1.5))
    settings = {"least": 5, "most": 40, "seconds": 1e9}
    timed(steady, 1.0, 1.0, **settings)
    timed(noisy, 1.0, 1.0, **settings)
    timed(capped, 1.0, 1.0, **{**settings, "seconds": 20.0})
    assert steady.order.count("w1") - 4 == 5 and noisy.order.count("w1") - 4 == 40
    assert 5 < capped.order.count("w1") - 4 < 20


def test_an_outlier_does_not_move_the_median() -> None:
    values = np.ones(21)
    values[3] = 1000.0
    assert median_interval(values) == Interval(1.0, 1.0, 1.0)


def test_the_interval_covers_the_true_median() -> None:
    generator = np.random.default_rng(0)
    for n in (9, 15, 31, 60):
        covered = [i.low <= np.log(2) <= i.high for i in (median_interval(generator.exponential(size=n)) for _ in range(2000))]
        assert 0.94 < np.mean(covered) < 0.995, n
    few = median_interval(np.array([3.0, 1.0, 2.0]))
    assert (few.low, few.value, few.high) == (1.0, 2.0, 3.0)


def test_the_device_is_waited_for_once_a_timing() -> None:
    """Works of a queue return at once; what they take shows when the queue is waited for, which has a price of its own."""
    clock = Clock()
    queued: list[float] = []
    waits: list[int] = []

    def work(seconds: float) -> Callable[[], None]:
        return lambda: queued.append(seconds)

    def settle() -> None:
        waits.append(len(queued))
        clock.now += sum(queued) + 1e-5
        queued.clear()

    precision = Precision(least=9, most=9, sample=0.1)
    found = paired(work(1e-3), [work(4e-3)], precision=precision, clock=clock, settle=settle, runs=2)
    assert found.reference == pytest.approx(1e-3 / 2, rel=1e-3)  # two runs of what is timed in a call; the wait is shared by a hundred
    assert found.ratios[0].value == pytest.approx(4.0, rel=1e-3)
    assert max(waits) == 99  # 1.01 ms each, with the wait
