"""How fast a study goes."""

from __future__ import annotations

import pytest

from ranksearch.report.pace import LAST, Pace, pace


def test_pace() -> None:
    assert pace([], []) == Pace(None, 0, None)
    assert pace([5.0], [2.0], planned=3) == Pace(None, 1, None)
    found = pace([30.0, 10.0, 20.0], [10.0, 10.0, 10.0], planned=9)
    assert found == Pace(6.0, 1, 60.0), "one ends where the next begins"
    assert pace([10.0, 12.0, 20.0, 22.0], [10.0, 10.0, 10.0, 10.0]).at_a_time == 2
    assert pace([10.0, 20.0], [1.0, 1.0], planned=2).left == 0.0
    assert pace([10.0, 20.0], [1.0, 1.0], planned=1).left is None, "there are more than were planned"


def test_only_the_last_evaluations_count() -> None:
    slow, fast = [100.0 * i for i in range(50)], [4900.0 + i for i in range(1, LAST + 1)]
    assert pace([*slow, *fast], [1.0] * (50 + LAST)).per_minute == pytest.approx(60.0)
