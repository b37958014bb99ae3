"""A study as runs of MLflow: one for the study, with its frames, and one within it for every network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ranksearch.errors import InvalidArgument, MissingDependency
from ranksearch.results.frames import cost_names, metric_names

_AT_ONCE = {"metrics": 1000, "params": 100}  # what one call of MLflow takes


@dataclass(frozen=True)
class Logged:
    """What a study is logged as.

    Attributes:
        name: of the run.
        params: of the study, in words.
        networks: a front; each row becomes a run.
        configurations: their JSON, by id.
        history: see `ranksearch.results.history.history`; its hypervolume becomes a curve.
        frames: by name, kept with the run as CSV.
    """

    name: str
    params: Mapping[str, str]
    networks: pd.DataFrame
    configurations: Mapping[str, str]
    history: pd.DataFrame
    frames: Mapping[str, pd.DataFrame]


def client(tracking_uri: str | None) -> Any:
    """A client of MLflow.

    Raises:
        MissingDependency: MLflow is not installed.
        InvalidArgument: the address cannot be used.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise MissingDependency("logging to MLflow needs mlflow-skinny: pip install 'ranksearch[mlflow]'") from error
    try:
        return MlflowClient(tracking_uri=tracking_uri)
    except MlflowException as error:
        raise InvalidArgument(f"tracking_uri={tracking_uri!r}: {error}") from error


def log(made: Any, experiment: str, study: Logged) -> str:
    """Log a study; returns the id of its run, which is marked as failed if logging does not come to its end.

    Args:
        made: of `client`.
        experiment: made if there is none of that name.
    """
    found = made.get_experiment_by_name(experiment)
    where = made.create_experiment(experiment) if found is None else found.experiment_id
    parent = made.create_run(where, run_name=study.name).info.run_id
    try:
        _batched(made, parent, params=study.params)
        curve = study.history.dropna(subset=["hypervolume"])
        points = zip(curve["number"], curve["hypervolume"], curve["created"], strict=True)
        _batched(made, parent, metrics=[("hypervolume", float(v), int(at.timestamp() * 1000), int(n)) for n, v, at in points])
        for name, frame in study.frames.items():
            made.log_text(parent, str(frame.to_csv(index=False, lineterminator="\n")), f"{name}.csv")
        values = [*metric_names(study.networks), *cost_names(study.networks)]
        values += [f"{name}_rel" for name in cost_names(study.networks)]
        for row in study.networks.to_dict("records"):
            _network(made, where, parent, row, values, study.configurations[row["id"]])
    except BaseException:
        made.set_terminated(parent, status="FAILED")
        raise
    made.set_terminated(parent)
    return parent


def _network(made: Any, where: str, parent: str, row: Mapping[Any, Any], values: Sequence[str], configuration: str) -> None:
    run = made.create_run(where, run_name=row["id"], tags={"mlflow.parentRunId": parent}).info.run_id
    _batched(made, run, params={name: str(row[name]) for name in ("id", "fidelity", "seeds", "factorized", "origin", "is_dense")})
    now = int(time.time() * 1000)
    _batched(made, run, metrics=[(name, float(row[name]), now, 0) for name in (*values, "seconds") if not pd.isna(row[name])])
    made.log_text(run, configuration, "configuration.json")
    made.set_terminated(run)


def _batched(
    made: Any, run: str, *, metrics: Sequence[tuple[str, float, int, int]] = (), params: Mapping[str, str] | None = None
) -> None:
    from mlflow.entities import Metric, Param

    for part in _parts([Metric(*metric) for metric in metrics], _AT_ONCE["metrics"]):
        made.log_batch(run, metrics=part)
    for part in _parts([Param(name, value) for name, value in (params or {}).items()], _AT_ONCE["params"]):
        made.log_batch(run, params=part)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
