"""Asynchronous successive halving for several objectives: ranks by non-dominated sorting, ties by coverage (MO-ASHA with an
epsilon-net, Schmucker et al. 2021, arXiv 2106.12639), within bands of cost."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from ranksearch import checks
from ranksearch.schedulers._halving import among_best, checked, rungs
from ranksearch.schedulers._places import bands, places_before
from ranksearch.schedulers.scheduler import Scheduler


@final
class ParetoASHA(Scheduler):
    """Goes on with the best 1 / eta of a band of cost.

    A cost is the same at every rung (params, MACs). Where it takes part in domination nearly every network is non-dominated, the
    worst of the smallest too, and nothing is stopped; where it does not, only the largest go on. So those at a rung are sorted by
    cost, by the sum of their places in the costs where there are several, and cut into bands of about the same count, as many as have
    ``eta`` members each, at most ``bands``. A newcomer is compared with its band: by non-dominated sorting in what training changes,
    ties by non-dominated sorting in all objectives, and ties of these by coverage: farthest point first from the most balanced one. As
    long as there is one band, all objectives come first, since costs differ much in it.

    Everything goes by places in the order of each objective, so that a strictly increasing transformation of one changes no
    decision, and neither does an objective that is the same for all. What dominates all others is never stopped. Where
    arrivals are exchangeable and no two equal, of those that arrive as the n-th of a band ceil(n / eta) / n go on in expectation.
    With one objective it is `ASHA`.
    """

    name = "pareto_asha"

    def __init__(self, *, first: float = 1.0, eta: float = 3.0, bands: int = 8) -> None:
        """
        Args:
            first: epochs to the first rung; the next ones are ``eta`` times as far.
            eta: one of so many goes on at each rung.
            bands: of cost, at most.

        Raises:
            InvalidArgument: ``first`` not above 0, ``eta`` below 2, ``bands`` below 1."""
        self.first, self.eta = checked(first, eta)
        self.bands = checks.whole("bands", bands, least=1)

    def rungs(self, length: float) -> tuple[float, ...]:
        """See `Scheduler.rungs`."""
        return rungs(self.first, self.eta, length)

    def _goes_on(self, values: np.ndarray) -> bool:
        constant = np.array(self.constant)
        of = bands(values[:, constant], least=math.ceil(self.eta), most=self.bands)
        several = len(np.unique(of)) > 1
        rivals = values[of == of[-1]]
        changing = rivals[:, ~constant]
        return among_best(places_before([changing, rivals] if several else [rivals]), len(rivals), self.eta)
