"""A study in the hands of other tools: Optuna, MLflow. Files are what frames write themselves: ``frame.to_parquet(...)``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ranksearch.results import mlflow_runs, optuna_trials
from ranksearch.results.names import Direction
from ranksearch.study import options

if TYPE_CHECKING:
    import optuna

    from ranksearch.study.study import Study


@dataclass(frozen=True)
class Exports:
    """What a study's evaluations are to other tools.

    Raises:
        StoreError: by every call, where there is no store or it is another study's.
    """

    study: Study

    def to_optuna(
        self, url: str | None = None, *, name: str | None = None, fidelity: str | None = None, force: bool = False
    ) -> optuna.Study:
        """The evaluations of one fidelity as trials of a study of Optuna: a categorical parameter per site, the objectives as values, ids,
        costs and metrics as attributes. What reads Optuna's storages, such as ``optuna-dashboard URL``, shows them.

        Args:
            url: of Optuna's storage, such as ``sqlite:///trials.db``; default: in memory.
            name: of Optuna's study; default: this one's.
            fidelity: as for `Results.front`; default: the study's.
            force: replace a study of that name in the storage.

        Raises:
            InvalidArgument: the storage has a study of that name, or its address cannot be used.
        """
        study = self.study
        frame: Any = study.results.evaluations(fidelity=fidelity or study.fidelity.key)
        with study.open_store(write=False) as store:
            chosen = options.choices(study, store, frame["id"].tolist())
        wanted: dict[str, Direction] = {objective: study.directions[objective] for objective in study.objectives}
        return optuna_trials.to_optuna(frame, chosen, wanted, name=name or study.name, url=url, force=force)

    def to_mlflow(
        self, tracking_uri: str | None = None, *, experiment: str | None = None, fidelity: str | None = None, all: bool = False
    ) -> str:
        """Log the study as a run of MLflow: frames as files, the hypervolume as a curve, and a run within it for every network of the front
        with its metrics, costs and configuration.

        Args:
            tracking_uri: of MLflow's server or database; default: as MLflow is set up.
            experiment: default: the study's name.
            fidelity: as for `Results.front`; default: the study's.
            all: a run for dominated networks, too.

        Returns:
            the id of the run.

        Raises:
            MissingDependency: MLflow is not installed: ``pip install 'ranksearch[mlflow]'``.
            InvalidArgument: an address that MLflow does not take.
        """
        made = mlflow_runs.client(tracking_uri)
        study, results = self.study, self.study.results
        networks = results.front(fidelity=fidelity, all=all)
        with study.open_store(write=False) as store:
            blocks = store.configurations(networks["id"].tolist())
            texts = {id: text for ids, found in blocks for id, text in zip(ids.to_pylist(), found.to_pylist(), strict=True)}
            shown = store.url
        key = str(networks["fidelity"].iloc[0]) if len(networks) else study.fidelity.key
        params = {"study": study.name, "store": shown, "fingerprint": study.fingerprint, "fidelity": key, "seed": str(study.seed)}
        params |= {"objectives": ", ".join(study.objectives), "options": json.dumps(study.options)}
        params |= {f"dense_{name}": str(amount) for name, amount in study.baseline.items()}
        frames = {"evaluations": results.evaluations(), "front": results.front(fidelity=fidelity), "failures": results.failures()}
        logged = mlflow_runs.Logged(study.name, params, networks, texts, results.history(fidelity=fidelity), frames)
        return mlflow_runs.log(made, experiment or study.name, logged)
