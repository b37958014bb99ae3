"""Optuna by ask and tell, in memory: an engine that can be thrown away and rebuilt from observations at any time."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import moocore
import numpy as np

from ranksearch.samplers.sampler import Sampler

if TYPE_CHECKING:
    import optuna


class OptunaSampler(Sampler):
    """One integer parameter per site that has a choice; sites with one option never reach Optuna.

    Optuna goes through all of its trials for every proposal. It is therefore given a part of what is known where that is more than
    `remembered`, and begins anew with such a part whenever it has four times as many: the best by non-dominated rank, of equals the
    latest. Time and memory are then linear in the number of proposals.

    Every refused candidate is a failed trial inside Optuna, which costs time with the square of their number, hence the
    low limit of refusals in a row."""

    refusals = 8

    @property
    def remembered(self) -> int:
        """How many observations Optuna begins with at most."""
        return 256

    def _begin(self, seed: int) -> None:
        self._known: list[np.ndarray] = []  # what succeeded, and
        self._values: list[list[float]] = []  # what it was worth
        self._new: list[int] = []  # of these, what Optuna has not asked for and does not know yet
        self._restart(seed)

    def _restart(self, seed: int) -> None:
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
        self._trials = 0

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
        self._tell_new()
        self._trials += 1
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
        if values is not None:
            self._new.append(len(self._known))
            self._known.append(indices.copy())
            self._values.append(values)
        trials = self._open.pop(indices.tobytes(), [])
        if trials and values is not None:
            self._new.pop()
            study = self._study
            self._tell_new()
            if self._study is not study:  # it began anew, with this one among what is known
                return
        for trial in trials:
            if values is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, values)

    def _tell_new(self) -> None:
        """Give Optuna what it has not asked for, all of it or, where that is too much, the best of all that is known."""
        if len(self._new) <= self.remembered and self._trials + len(self._new) <= 4 * self.remembered:
            told = self._new
        else:
            self._restart(int(self._rng.integers(2**32)))
            ranks = moocore.pareto_rank(np.asarray(self._values))
            told = np.sort(np.lexsort((-np.arange(len(ranks)), ranks))[: self.remembered]).tolist()
        for number in told:
            indices = self._known[number]
            names = zip(self._free, self._distributions, strict=True)
            self._add({name: int(indices[site]) for site, name in names}, self._values[number])
        self._trials += len(told)
        self._new = []
