"""Asynchronous successive halving on one metric (Li et al. 2020, "A system for massively parallel hyperparameter tuning", arXiv
1810.05934), in the form that stops evaluations instead of pausing them, as Ray Tune has it."""

from __future__ import annotations

from typing import final

import numpy as np

from ranksearch.schedulers._halving import among_best, checked, rungs
from ranksearch.schedulers.scheduler import Scheduler


@final
class ASHA(Scheduler):
    """Goes on with the best 1 / eta in the first objective that training changes, whatever the costs: of networks of several sizes
    those are the large ones. It is here to compare with; `ParetoASHA` is for several objectives."""

    name = "asha"

    def __init__(self, *, first: float = 1.0, eta: float = 3.0) -> None:
        """
        Args:
            first: epochs to the first rung; the next ones are ``eta`` times as far.
            eta: one of so many goes on at each rung.

        Raises:
            InvalidArgument: ``first`` not above 0, ``eta`` below 2."""
        self.first, self.eta = checked(first, eta)

    def rungs(self, length: float) -> tuple[float, ...]:
        """See `Scheduler.rungs`."""
        return rungs(self.first, self.eta, length)

    def _goes_on(self, values: np.ndarray) -> bool:
        metric = values[:, self.constant.index(False)]
        return among_best(int((metric < metric[-1]).sum()), len(metric), self.eta)
