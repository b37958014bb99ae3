"""The contract of a scheduler: where evaluations are looked at on their way, and which of them go on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import ClassVar, Self, final

import numpy as np

from ranksearch.errors import InvalidArgument


class Scheduler(ABC):
    """Decides of evaluations that are under way whether they go on. All objectives are minimised.

    Evaluations are looked at where they have had so much of their resource (epochs of fine-tuning): at *rungs*. An instance holds
    hyper-parameters alone; `start` gives the one that works on a search. Decisions are asynchronous: each is taken when its evaluation
    arrives, against those that were there before it, so that nobody waits. They depend on the order of arrival alone: there is no chance
    in them.

    A variant implements `rungs` and `_goes_on`.
    """

    name: ClassVar[str]
    constant: tuple[bool, ...] = ()  # of every objective, once started
    _rungs: dict[float, dict[str, tuple[float, ...]]]

    @final
    def start(self, constant: Sequence[bool]) -> Self:
        """A scheduler with these hyper-parameters at the beginning of a search; this one stays as it is.

        Args:
            constant: of every objective, whether training leaves it as it is (a cost such as MACs).

        Raises:
            InvalidArgument: training changes none.
        """
        if all(constant):
            raise InvalidArgument(f"constant={list(constant)}: no objective changes in training, so that nothing tells whom to stop")
        started = copy(self)
        started.constant = tuple(bool(each) for each in constant)
        started._rungs = {}
        return started

    @abstractmethod
    def rungs(self, length: float) -> tuple[float, ...]:
        """Where an evaluation of this length is looked at, rising: above 0, below the length; empty where it is not."""

    @final
    def observe(self, trial: str, rung: float, values: Sequence[float]) -> None:
        """What an evaluation had come to at a rung that nothing is to be decided about (an earlier run did). The first word counts."""
        self._rungs.setdefault(rung, {}).setdefault(trial, self._checked(values))

    @final
    def goes_on(self, trial: str, rung: float, values: Sequence[float]) -> bool:
        """Whether an evaluation that has come to a rung goes on; from now on others are compared with it. It does where it was there
        before.

        Args:
            trial: its name.
            values: of the objectives, to be minimised, shape: (n_objectives,).

        Raises:
            InvalidArgument: so many values there are not, or one that is not finite."""
        row, there = self._checked(values), self._rungs.setdefault(rung, {})
        if trial in there:
            return True
        found = self._goes_on(np.array([*there.values(), row], dtype=np.float64))
        there[trial] = row
        return found

    @abstractmethod
    def _goes_on(self, values: np.ndarray) -> bool:
        """Whether the last row, the newcomer, goes on, among all at its rung; shape: (n, n_objectives)."""

    def _checked(self, values: Sequence[float]) -> tuple[float, ...]:
        row = tuple(float(value) for value in values)
        if len(row) != len(self.constant) or not np.isfinite(row).all():
            raise InvalidArgument(f"values={list(row)}: must be {len(self.constant)} finite numbers, one for each objective")
        return row
