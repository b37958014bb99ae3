"""The simulated clock on which schedulers are compared, on curves whose answers are known by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ranksearch.rankbench import load
from ranksearch.schedulers import ASHA, NoStopping, ParetoASHA

SCRIPT = Path(__file__).parents[2] / "analysis" / "early_stopping.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("early_stopping", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["early_stopping"] = module
    spec.loader.exec_module(module)
    return module


def table(script: ModuleType):
    """Four runs of 9 epochs and 9 seconds, one rung after 1; losses 0.1 to 0.4 at a cost of 0.5; the dense network loses 0 at 1."""
    runs = [script.Run([[loss, 0.5], [loss, 0.5]], 9.0) for loss in (0.1, 0.2, 0.3, 0.4)]
    return script.Tabulated([False, True], [1.0, 9.0], [0.0, 1.0], runs)


def test_without_stopping_all_take_their_time(script: ModuleType) -> None:
    finished, stopped = script.simulate(table(script), NoStopping(), [3, 2, 1, 0], workers=2)
    assert stopped == 0 and [(one.time, one.run) for one in finished] == [(9, 3), (9, 2), (18, 1), (18, 0)]
    assert script.volume(table(script), finished, 8.9) == 0 and table(script).seconds == 36
    # the dense network loses 0, and losses count from it in units of 1: (1 - 0.3) * (1 - 0.5), then (1 - 0.1) * (1 - 0.5)
    assert script.volume(table(script), finished, 9) == pytest.approx(0.35)
    assert script.volume(table(script), finished, 18) == pytest.approx(0.45)


@pytest.mark.parametrize("kind", [ASHA, ParetoASHA])
def test_who_is_stopped_frees_its_worker(script: ModuleType, kind: type) -> None:
    """The best comes first and goes on; all after it are worse than it and are stopped at the rung, after a second each."""
    finished, stopped = script.simulate(table(script), kind(first=1, eta=9), [0, 1, 2, 3], workers=1)
    assert stopped == 3 and [(one.time, one.run) for one in finished] == [(9, 0)]
    finished, stopped = script.simulate(table(script), kind(first=1, eta=9), [1, 2, 3, 0], workers=1)
    assert stopped == 2 and [(one.time, one.run) for one in finished] == [(9, 1), (20, 0)]


def test_the_table_has_a_row_for_each_scheduler(script: ModuleType) -> None:
    lines = script.compared([table(script)], [NoStopping(), ParetoASHA(first=1, eta=2)], seeds=3, workers=1)
    assert len(lines) == 4 and lines[2].startswith("| `none` | 0 | 4 |") and lines[3].startswith("| `pareto_asha` |")


def test_seeds_take_the_tables_in_turn_and_the_bench_has_one_per_seed(script: ModuleType) -> None:
    other = script.Tabulated([False, True], [1.0, 9.0], [0.0, 1.0], table(script).runs[:2])
    lines = script.compared([table(script), other], [NoStopping()], seeds=4, workers=1)
    assert lines[2].startswith("| `none` | 0 | 3 |")  # four runs in two seeds, two in the others
    bench = load("digits")
    tables = script.of_bench(bench)
    assert len(tables) == 3 and {len(t.runs) for t in tables} == {300} and tables[0].epochs == [1.0, 2.0, 4.0]
    curve = bench.curves[(bench.curves["row"] == bench.curves["row"].min()) & (bench.curves["seed"] == 1) & (bench.curves["epochs"] > 0)]
    values = np.array(tables[1].runs[0].values)
    assert np.allclose(values[:, 0], -curve.sort_values("epochs")["accuracy"]) and tables[1].constant == [False, True, True]
    assert set(values[:, 1]) == {float(bench.configurations["macs"][curve["row"].iloc[0]])}
