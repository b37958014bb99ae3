"""A study as Optuna and MLflow have it."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument, MissingDependency
from ranksearch.evaluation import Fidelity
from ranksearch.space import DENSE
from ranksearch.store import Record
from ranksearch.study import Study
from ranksearch.tasks import Classification


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The dense network, two factorized ones of which one is beaten, and a failure; made up."""
    x, y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2
    task = Classification(train=(x, y), validation=(x, y), batch_size=16, learning_rate=0.05)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    store = tmp_path_factory.mktemp("exported") / "s.db"
    study = Study("sent <b>", model=net, task=task, store=store, fidelity=Fidelity(epochs=0, recalibration=0))
    space = study.space
    with study.open_store(write=True) as store:
        for place, accuracy in ((None, 0.9), (0, 0.5), (1, math.nan), (2, 0.4)):
            indices = space.dense.copy()
            if place is not None:
                indices[0] = place
            found = space.candidate(indices)
            failed = {"status": "failed", "metrics": {}, "error": "no", "error_kind": "code"}
            done = {"status": "done", "metrics": {"accuracy": accuracy, "loss": 1 - accuracy}}
            values: Any = failed if math.isnan(accuracy) else done
            key, configuration = study.fidelity.key, found.configuration
            store.add(Record(configuration.id, configuration.to_json(), key, 0, costs=found.cost, origin="made", seconds=2.0, **values))
    return study


def test_optuna_has_every_evaluation_as_a_trial(study: Study, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    made = study.to_optuna(url)
    every = study.evaluations()
    assert made.study_name == study.name and [d.name for d in made.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert [t.user_attrs["id"] for t in made.trials] == every["id"].tolist()
    assert [t.state.name for t in made.trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    for trial, row in zip(made.trials, every.to_dict("records"), strict=True):
        configuration = study.results.configuration(row["id"])
        for site in ("0", "2"):
            kind, rank = configuration[site]
            assert trial.params[site] == (f"{kind} {'x'.join(map(str, rank))}" if rank else "dense")
        assert trial.duration is not None and trial.duration.total_seconds() == pytest.approx(2)
        if row["status"] == "done":
            assert trial.values == [row["accuracy"], row["macs"], row["params"]]
        assert trial.user_attrs["macs"] == row["macs"] and ("error" in trial.user_attrs) == (row["status"] != "done")
    front = study.front()
    assert {t.user_attrs["id"] for t in made.best_trials} == set(front.loc[front["on_front"], "id"])
    with pytest.raises(InvalidArgument, match="force=True"):
        study.to_optuna(url)
    assert len(study.to_optuna(url, force=True).trials) == 4 and len(study.to_optuna(url, name="another").trials) == 4
    assert len(study.to_optuna().trials) == 4  # in memory
    with pytest.raises(InvalidArgument, match="Optuna cannot use it"):
        study.to_optuna("nonsense://x")


def test_mlflow_has_the_study_and_its_networks(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # made at once; a database takes seconds to make
    uri = (tmp_path / "runs").as_uri()
    client = mlflow.MlflowClient(tracking_uri=uri)
    where = client.create_experiment("mine", artifact_location=(tmp_path / "artifacts").as_uri())
    begin = int(1000 * time.time())
    run = study.log_to_mlflow(uri, experiment="mine", all=True)
    parent = client.get_run(run)
    assert parent.info.status == "FINISHED" and parent.data.params["objectives"] == "accuracy, macs, params"
    curve = [point.value for point in client.get_metric_history(run, "hypervolume")]
    assert curve == pytest.approx(study.results.history()["hypervolume"].tolist())
    kept = (tmp_path / "artifacts" / run / "artifacts" / "evaluations.csv").read_text().splitlines()
    assert len(kept) == 5 and kept[0].startswith("id,fidelity")
    children = client.search_runs([where], filter_string=f"tags.mlflow.parentRunId = '{run}'")
    front = study.front(all=True).set_index("id")
    assert {child.data.params["id"] for child in children} == set(front.index) and len(children) == 3
    for child in children:
        id = child.data.params["id"]
        assert child.data.metrics["accuracy"] == front.loc[id, "accuracy"] and child.data.metrics["macs"] == front.loc[id, "macs"]
        text = (tmp_path / "artifacts" / child.info.run_id / "artifacts" / "configuration.json").read_text()
        assert json.loads(text) == json.loads(study.results.configuration(id).to_json())
        (point,) = client.get_metric_history(child.info.run_id, "accuracy")
        assert begin <= point.timestamp <= 1000 * time.time()
    assert DENSE.id in set(front.index)


def test_mlflow_that_is_not_there(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependency, match=r"ranksearch\[mlflow\]"):
        study.log_to_mlflow()
