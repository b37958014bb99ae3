"""What is shown while a search goes on: the time left, the front so far."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

from ranksearch.cli.progress import SiteProgress, clock
from ranksearch.cli.progress.front import Front
from ranksearch.cli.progress.times import TimeLeft
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.search.events import Announced, Profiled
from ranksearch.space import Configuration


def test_the_time_left_counts_from_where_evaluations_began_and_needs_two() -> None:
    now = 0.0
    left = TimeLeft(clock=lambda: now)
    assert left(10) == ""
    now = 60.0  # a minute of starting workers, then two evaluations of 4 s at the same time
    left.finished(4.0)
    assert left(39) == "", "one says little"
    left.finished(4.0)
    assert left(38) == "1:16 left" and left.per_minute() == 30  # two every 4 s
    now = 64.0
    left.finished(3.9)
    left.finished(3.9)
    assert left(36) == "1:12 left"
    assert left(0) == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00"), (-3, "0:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


class _Study:
    """What `Front` asks of a study."""

    baseline = MappingProxyType({"params": 1, "macs": 1000})

    def __init__(self, rows: list[tuple[str, int, str, int, float, float]], objectives: tuple[str, ...] = ("accuracy", "macs")) -> None:
        self.rows, self.objectives, self.directions = rows, objectives, {"accuracy": "max", "macs": "min", "params": "min"}

    def evaluations(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=["fidelity", "seed", "status", "factorized", "accuracy", "macs"]).assign(params=1.0)


def test_the_front_is_of_the_runs_fidelity_and_seed_and_relative_to_dense() -> None:
    key = Fidelity().key
    rows = [
        (key, 0, "done", 0, 0.8, 1000.0),
        (key, 0, "done", 3, 0.8, 500.0),  # half of the costs at no loss: half of the box
        (key, 0, "done", 3, 0.4, 250.0),  # a quarter of the costs, half of the accuracy: another eighth
        (key, 0, "done", 3, 0.4, 300.0),  # beaten
        (key, 0, "failed", 3, np.nan, 1.0),
        (key, 1, "done", 3, 0.9, 10.0),  # another seed
        ("other", 0, "done", 3, 0.9, 10.0),
    ]
    outcome = Outcome(Request(Configuration(), Fidelity(), 0), "done")
    assert str(Front(_Study(rows))(outcome)) == "front: 2 networks, hypervolume 0.625"  # type: ignore[arg-type]
    assert str(Front(_Study(rows[:1]))(outcome)) == "front: 0 networks, hypervolume 0.000"  # type: ignore[arg-type]
    assert Front(_Study(rows[1:]))(outcome) is None, "the dense network is not measured"  # type: ignore[arg-type]
    assert str(Front(_Study(rows, ("params",)))(outcome)) == "front: 3 networks, hypervolume 0.000"  # type: ignore[arg-type]


def test_profiled_sites_are_counted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("ranksearch.cli.progress.sites.time.monotonic", lambda: now)
    with SiteProgress(terminal=False) as progress:
        progress.event(Announced("profiling 4 sites"))
        for done in range(1, 5):
            now += 3.0
            progress.event(Profiled("site", done, 4, [0.1, 0.2, 0.5, 1.0][done - 1]))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["profiling 4 sites ...", "site 1 of 4 profiled", "site 2 of 4 profiled, 0:24 left", "site 3 of 4 profiled, 0:09 left"]
