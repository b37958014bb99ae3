"""Where a study is logged, told by a client that only answers about experiments; what is logged is tested with MLflow itself."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from ranksearch.results import mlflow_runs
from ranksearch.results.mlflow_runs import Logged, log


class Asked(Exception):
    """The run was asked for: nothing further is of interest."""


class Client:
    def __init__(self, known: dict[str, str]) -> None:
        self.known = known

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.known[name]) if name in self.known else None

    def create_experiment(self, name: str) -> str:
        assert name not in self.known
        return f"new {name}"

    def create_run(self, where: str, *, run_name: str) -> Any:
        raise Asked(f"{run_name} in {where}")


@pytest.mark.parametrize(("known", "where"), [({}, "new mine"), ({"mine": "7"}, "7")])
def test_an_experiment_is_made_if_there_is_none_of_its_name(known: dict[str, str], where: str) -> None:
    with pytest.raises(Asked, match=f"^digits in {where}$"):
        log(Client(known), "mine", SimpleNamespace(name="digits"))  # type: ignore[arg-type]


class Recording(Client):
    """Takes everything down, by run: ``r0`` is the study's, those of networks follow."""

    def __init__(self) -> None:
        super().__init__({"mine": "7"})
        self.runs: list[tuple[str, str, dict[str, str]]] = []
        self.batches: list[tuple[str, str, list]] = []
        self.texts: dict[tuple[str, str], str] = {}
        self.ended: dict[str, str] = {}

    def create_run(self, where: str, *, run_name: str, tags: dict[str, str] | None = None) -> Any:
        self.runs.append((where, run_name, tags or {}))
        return SimpleNamespace(info=SimpleNamespace(run_id=f"r{len(self.runs) - 1}"))

    def log_batch(self, run: str, **what: list) -> None:
        ((kind, items),) = what.items()
        self.batches.append((run, kind, [*items]))

    def log_text(self, run: str, text: str, name: str) -> None:
        self.texts[run, name] = text

    def set_terminated(self, run: str, status: str = "FINISHED") -> None:
        self.ended[run] = status


def logged(configurations: dict[str, str]) -> Logged:
    """Two networks, of which one lacks a metric, and a history of which the first row has no hypervolume."""
    networks = pd.DataFrame(
        {
            "id": ["a", "b"], "fidelity": ["full"] * 2, "seeds": [1, 2], "factorized": [3, 0], "origin": ["tpe", "dense"],
            "is_dense": [False, True], "macs": [50, 100], "macs_rel": [0.5, 1.0], "accuracy": [float("nan"), 0.75],
            "accuracy_delta": [0.0, 0.0], "seconds": [2.0, 3.0],
        }
    )  # fmt: skip
    times = pd.to_datetime(["1970-01-01T00:00:01.000Z", "1970-01-01T00:00:02.500Z"])
    history = pd.DataFrame({"number": [1, 2], "hypervolume": [float("nan"), 0.25], "created": times})
    return Logged("digits", {"space": "own", "seed": "0", "device": "cpu"}, networks, configurations, history, {"front": networks[["id"]]})


@pytest.fixture
def without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics and parameters as plain tuples, at most two in a call, at twelve and a half seconds of the epoch."""
    entities = SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(entities=entities))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(mlflow_runs, "_AT_ONCE", {"metrics": 2, "params": 2})
    monkeypatch.setattr(mlflow_runs.time, "time", lambda: 12.5)


@pytest.mark.usefixtures("without_mlflow")
def test_a_study_is_a_run_with_a_run_for_every_network_in_it() -> None:
    made = Recording()
    assert log(made, "mine", logged({"a": "{A}", "b": "{}"})) == "r0"
    assert made.runs == [("7", "digits", {}), *(("7", name, {"mlflow.parentRunId": "r0"}) for name in ("a", "b"))]
    assert made.ended == {"r0": "FINISHED", "r1": "FINISHED", "r2": "FINISHED"}
    assert made.texts == {("r0", "front.csv"): "id\na\nb\n", ("r1", "configuration.json"): "{A}", ("r2", "configuration.json"): "{}"}
    assert all(0 < len(items) <= 2 for _, _, items in made.batches)

    def of(run: str, kind: str) -> list:
        return [item for at, what, items in made.batches if (at, what) == (run, kind) for item in items]

    assert of("r0", "params") == [("space", "own"), ("seed", "0"), ("device", "cpu")]
    assert of("r0", "metrics") == [("hypervolume", 0.25, 2500, 2)]
    assert dict(of("r1", "params")) == {
        "id": "a", "fidelity": "full", "seeds": "1", "factorized": "3", "origin": "tpe", "is_dense": "False",
    }  # fmt: skip
    assert of("r1", "metrics") == [("macs", 50.0, 12500, 0), ("macs_rel", 0.5, 12500, 0), ("seconds", 2.0, 12500, 0)]
    assert ("accuracy", 0.75, 12500, 0) in of("r2", "metrics")


@pytest.mark.usefixtures("without_mlflow")
def test_a_run_that_does_not_come_to_its_end_is_marked_as_failed() -> None:
    made = Recording()
    with pytest.raises(KeyError):
        log(made, "mine", logged({"a": "{A}"}))
    assert made.ended["r0"] == "FAILED" and made.ended["r1"] == "FINISHED"
