"""A study's evaluations as trials of Optuna, for what reads those: optuna-dashboard, its plots, importances."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ranksearch.errors import InvalidArgument
from ranksearch.results.choices import Choices
from ranksearch.results.frames import cost_names, metric_names
from ranksearch.results.names import Direction

if TYPE_CHECKING:
    import optuna


def to_optuna(
    frame: pd.DataFrame, choices: Choices, objectives: Mapping[str, Direction], *, name: str, url: str | None, force: bool
) -> optuna.Study:
    """A study of Optuna with a trial for every row of a frame, in order: a categorical parameter per site (``svd 8``, ``dense``), the
    objectives as values, everything else as attributes. What failed, or lacks an objective, is a failed trial.

    Args:
        frame: as `ranksearch.results.frames.evaluations` gives it; each row has its configuration among the choices.
        name: of Optuna's study.
        url: of Optuna's storage; None: in memory.
        force: replace a study of that name.

    Raises:
        InvalidArgument: the storage has a study of that name, or its address cannot be used.
    """
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import FrozenTrial, TrialState

    made = _new_study(objectives, name=name, url=url, force=force)
    words = np.array([" ".join(filter(None, (kind, "x".join(map(str, rank))))) for _, kind, rank in choices.options], dtype=object)
    rows = choices.rows(frame["id"])
    codes = choices.codes[rows]
    distributions: dict[str, Any] = {
        site: CategoricalDistribution(sorted(set(words[np.unique(codes[:, at])].tolist()))) for at, site in enumerate(choices.sites)
    }
    attributes = ["id", "fidelity", "seed", "origin", "factorized", "seconds", "error", "error_kind"]
    attributes += [*cost_names(frame), *metric_names(frame)]
    trials = []
    for number, row in enumerate(frame.to_dict("records")):
        params = dict(zip(choices.sites, words[codes[number]].tolist(), strict=True))
        values = [row[objective] for objective in objectives]
        done = row["status"] == "done" and not any(pd.isna(value) for value in values)
        finished = row["created"].to_pydatetime().astimezone().replace(tzinfo=None)  # Optuna has local times without a zone
        trials.append(FrozenTrial(
            number=number, state=TrialState.COMPLETE if done else TrialState.FAIL, value=None,
            values=[float(value) for value in values] if done else None, datetime_start=finished - pd.Timedelta(seconds=row["seconds"]),
            datetime_complete=finished, params=params, distributions=distributions,
            user_attrs={str(at): row[at] for at in attributes if not pd.isna(row[at])}, system_attrs={}, intermediate_values={},
            trial_id=number,
        ))  # fmt: skip
    made.add_trials(trials)
    return made


def _new_study(objectives: Mapping[str, Direction], *, name: str, url: str | None, force: bool) -> optuna.Study:
    """A study without trials, in the storage at ``url``."""
    import optuna
    from sqlalchemy import exc

    try:
        storage = optuna.storages.InMemoryStorage() if url is None else optuna.storages.get_storage(url)
    except (exc.SQLAlchemyError, ImportError, ValueError) as error:
        raise InvalidArgument(f"url={url!r}: Optuna cannot use it ({error}); give one such as sqlite:///trials.db") from error
    if name in optuna.get_all_study_names(storage):
        if not force:
            raise InvalidArgument(f"name={name!r}: the storage {url!r} has a study of that name; give another name, or force=True")
        optuna.delete_study(study_name=name, storage=storage)
    made = optuna.create_study(
        study_name=name, storage=storage, directions=["minimize" if d == "min" else "maximize" for d in objectives.values()]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made.set_metric_names(list(objectives))
    return made
