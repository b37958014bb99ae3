"""Optuna by ask and tell, in memory: an engine that can be thrown away and rebuilt from observations at any time."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ranksearch.samplers.sampler import Sampler

if TYPE_CHECKING:
    import optuna


class OptunaSampler(Sampler):
    """One integer parameter per site that has a choice; sites with one option never reach Optuna.

    Every refused candidate is a failed trial inside Optuna, which costs time with the square of their number, hence the
    low limit of refusals in a row."""

    refusals = 8

    def _begin(self, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._free = [site for site, count in enumerate(self.shape) if count > 1]
        self._distributions: dict[str, Any] = {
            f"{site:04d}": optuna.distributions.IntDistribution(0, self.shape[site] - 1) for site in self._free
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            engine = self._engine(seed)
        self._study = optuna.create_study(directions=["minimize" for _ in range(self.n_objectives)], sampler=engine)
        self._open: dict[bytes, list[optuna.trial.Trial]] = defaultdict(list)  # asked, not yet told

    @abstractmethod
    def _engine(self, seed: int) -> optuna.samplers.BaseSampler:
        """The sampler of Optuna's that does the work."""

    @abstractmethod
    def _add(self, params: dict[str, int], values: list[float]) -> None:
        """Give an observation to Optuna that it did not ask for."""

    def _candidate(self) -> np.ndarray:
        import optuna

        indices = np.zeros(len(self.shape), dtype=np.int64)
        if not self._free:
            return indices
        trial = self._study.ask(self._distributions)
        for site, value in zip(self._free, trial.params.values(), strict=True):
            indices[site] = value
        if self._admissible(indices):
            self._open[indices.tobytes()].append(trial)
        else:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return indices

    def _learn(self, indices: np.ndarray, values: list[float] | None) -> None:
        import optuna

        if not self._free:
            return
        # a vector asked for more than once is answered everywhere at once
        trials = self._open.pop(indices.tobytes(), [])
        for trial in trials:
            if values is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, values)
        if not trials and values is not None:
            self._add({name: int(indices[site]) for site, name in zip(self._free, self._distributions, strict=True)}, values)
