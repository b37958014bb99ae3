"""Metrics of a task in a study: refused where they cannot work before anything is paid for, and where an evaluation reports others,
that evaluation fails by name while the store stays usable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranksearch.costs import COSTS, CostModel
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.study import Study
from ranksearch.tasks import Classification, InvalidMetrics, Metric, Task, measured


class Reporting(Task):
    """A task that reports what it is told to, in the order of its evaluations; the last one again and again."""

    def __init__(self, metrics: Any, *reports: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(60, 8, generator=generator)
        y = (x[:, 0] > 0).long()
        self.base = Classification(train=(x[:40], y[:40]), validation=(x[40:], y[40:]), learning_rate=0.01)
        self.metrics, self.reports, self.done = metrics, reports, 0

    def fingerprint(self) -> str:
        return self.base.fingerprint()

    def example(self) -> Tensor:
        return self.base.example()

    def labelled(self, batches: int) -> Any:
        return self.base.labelled(batches)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return self.base.loss(outputs, targets)

    def fine_tune(self, model: nn.Module, *, epochs: float, seed: int) -> None:
        self.base.fine_tune(model, epochs=epochs, seed=seed)

    def measure(self, model: nn.Module, split: Any = "validation") -> Any:
        report = self.reports[min(self.done, len(self.reports) - 1)]
        self.done += 1
        return report


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))


def _study(task: Task, objectives: Any = ("score", "macs"), **options: Any) -> Study:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    return Study("metrics", model=model, task=task, objectives=objectives, fidelity=Fidelity(epochs=0, recalibration=0), **options)


SCORE = (Metric("score", "max"),)
GOOD = {"score": 0.5}


@pytest.mark.parametrize(
    ("report", "named"),
    [
        ({}, "score"), ({"loss": 0.1}, "score"), ({"score": float("nan")}, "score=nan"), ({"score": float("inf")}, "score=inf"),
        ({"score": "0.5"}, "score is '0.5'"), ({"score": None}, "score is None"), ({"score": 1j}, "score is 1j"),
        ({"score": torch.tensor([0.1, 0.2])}, "score is tensor"), ({"score": 10**400}, "score is too large"),
        ({"score": 0.5, "extra": 1.0}, "extra"), (0.5, "float"), (None, "NoneType"),
    ],
    ids=repr,
)  # fmt: skip
def test_an_evaluation_that_reports_something_else_fails_by_name_and_the_study_goes_on(report: Any, named: str) -> None:
    study = _study(Reporting(SCORE, GOOD, report, GOOD))
    study.run(trials=4, runner="local")
    every = study.evaluations()
    assert len(every) == 4 and list(every["status"]) == ["done", "failed", "done", "done"]
    assert named in every["error"].iloc[1]
    assert len(study.front("score > 0.1")) >= 1
    again = _study(Reporting(SCORE, GOOD))  # the store is not blocked
    again.run(trials=6, runner="local")
    assert len(again.evaluations()) == 6


@pytest.mark.parametrize(
    "value", [1, True, 0.5, np.float32(0.5), np.array([0.5]), torch.tensor(0.5), torch.tensor([2]), np.float64(2)],
    ids=repr,
)  # fmt: skip
def test_whatever_holds_one_number_is_one(value: Any) -> None:
    found = measured(Reporting(SCORE, {"score": value}), nn.Linear(8, 2))
    assert type(found["score"]) is float and found["score"] == np.asarray(value, dtype=np.float64).item()


def test_the_order_is_that_of_the_declared_metrics() -> None:
    task = Reporting((Metric("b", "max"), Metric("a", "min")), {"a": 1.0, "b": 2.0})
    assert list(measured(task, nn.Linear(8, 2))) == ["b", "a"]
    with pytest.raises(InvalidMetrics, match=r"Reporting\.measure\(\).* b,.*reports a"):
        measured(Reporting(task.metrics, {"a": 1.0}), nn.Linear(8, 2))


class Seconds(CostModel):
    name, label, unit = "latency", "latency", "s"

    def options(self, layer: Any) -> np.ndarray:
        return np.asarray(layer.params, dtype=np.float64)

    def rest(self, network: Any) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("metrics", "named"),
    [
        ((), "none"), (("accuracy",), "accuracy"), ((Metric("a", "max"), Metric("a", "min")), "a comes twice"),
        ((Metric("macs_rel", "max"),), "macs_rel"), ((Metric("a", "max"), Metric("a_delta", "max")), "a_delta"),
        ((Metric("latency", "min"),), "latency"), ((Metric("latency_rel", "min"),), "latency_rel"), (Metric("a", "max"), "no Metric"),
    ],
    ids=repr,
)  # fmt: skip
def test_metrics_that_cannot_work_are_refused_when_the_study_is_made(metrics: Any, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        _study(Reporting(metrics, GOOD), objectives=("macs",), costs=(*COSTS, Seconds()))


def test_evaluations_without_an_objective_that_came_later_count_and_teach_nothing() -> None:
    _study(Reporting(SCORE, GOOD)).run(trials=5, runner="local")
    both: Mapping[str, float] = {"score": 0.5, "f1": 0.4}
    later = _study(Reporting((*SCORE, Metric("f1", "max")), both), objectives=("f1", "macs"))
    later.run(trials=8, runner="local")
    every = later.evaluations()
    assert len(every) == 8 and every["f1"].isna().sum() == 5
    assert later.front()["f1"].notna().any()


@pytest.mark.parametrize("name", ["NaN_share", "Infinity", "NaN"])
def test_metrics_may_be_called_like_numbers_that_are_none(name: str) -> None:
    study = _study(Reporting((Metric(name, "max"),), {name: 0.5}), objectives=(name, "macs"))
    study.run(trials=2, runner="local")
    assert study.front()[name].notna().any() and study.evaluations()[name].eq(0.5).all()
