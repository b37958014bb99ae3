"""ParetoASHA as a scheduler of Ray Tune, beside Tune's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ranksearch.errors import InvalidArgument

pytest.importorskip("ray.tune")

from ray.tune.schedulers import ASHAScheduler

from ranksearch.runners.for_tune import ParetoASHAScheduler
from ranksearch.schedulers import ParetoASHA


def asked(scheduler: Any, trial: str, **result: Any) -> str:
    return scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial), result)


@pytest.mark.parametrize("eta", [2, 4])
def test_with_one_metric_it_decides_as_tunes_own(eta: int) -> None:
    """But where the newcomer lies between the same two of the others as the percentile that Ray interpolates."""
    rng = np.random.default_rng(eta)
    ours = ParetoASHAScheduler({"accuracy": "max"}, max_t=100, reduction_factor=eta)
    theirs = ASHAScheduler(metric="accuracy", mode="max", max_t=100, grace_period=1, reduction_factor=eta)
    recorded: dict[int, list[float]] = {}
    compared = between = 0
    for trial in range(60):
        one = SimpleNamespace(trial_id=f"t{trial}")
        theirs.on_trial_add(None, one)
        for time in range(1, 20):
            accuracy = float(rng.integers(40)) / 40
            mine, other = (asked(each, one.trial_id, training_iteration=time, accuracy=accuracy) for each in (ours, theirs))
            if time in {eta**k for k in range(5)}:
                before = sorted(recorded.setdefault(time, []), reverse=True)
                place = (len(before) - 1) / eta
                low, high = (before[int(f(place))] for f in (np.floor, np.ceil)) if before else (0, 0)
                recorded[time].append(accuracy)
                compared += 1
                if low > accuracy >= high and low != high:
                    between += 1
                    if mine != other:
                        break
            assert mine == other
            if mine == "STOP":
                break
    assert compared > 60 and between < compared / 4


def test_reports_are_judged_at_rungs_and_within_bands_of_cost() -> None:
    rng = np.random.default_rng(0)
    scheduler = ParetoASHAScheduler({"accuracy": "max", "loss": "min"}, {"macs": "min"}, time_attr="epoch", max_t=9, grace_period=2)
    pure = ParetoASHA(first=2, eta=3).start([False, False, True])
    for trial in range(40):
        accuracy, loss, macs = rng.normal(size=3).tolist()
        report = {"accuracy": accuracy, "loss": loss, "macs": macs}
        assert asked(scheduler, f"t{trial}", epoch=1, **report) == "CONTINUE", "before the first rung"
        expected = pure.goes_on(f"t{trial}", 2.0, [-accuracy, loss, macs])
        assert (asked(scheduler, f"t{trial}", epoch=3, **report) == "CONTINUE") == expected
        assert asked(scheduler, f"t{trial}", epoch=4, **report) == "CONTINUE", "judged there already"
        assert asked(scheduler, f"t{trial}", epoch=9, **report) == "STOP", "at its end"
        assert asked(scheduler, f"t{trial}", epoch=9, accuracy=accuracy) == "CONTINUE", "not all metrics"


@pytest.mark.parametrize(
    "wrong",
    [{"metrics": {}}, {"metrics": {"a": "up"}}, {"metrics": {"a": "max"}, "costs": {"a": "min"}}, {"metrics": {"a": "min"}, "max_t": 0}],
)
def test_bad_input_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        ParetoASHAScheduler(**wrong)
