"""Measured loss change of one site at a time: the network with a single layer factorized, on a calibration batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np

from ranksearch import checks
from ranksearch.proxies.context import ProxyContext
from ranksearch.proxies.proxy import TableProxy
from ranksearch.space import Configuration, Ladder, SearchSpace
from ranksearch.space.table import Table


class SingleSiteLoss(TableProxy):
    """Sum over sites of L(only this site at this option) - L(dense). It sees no interaction of sites.

    It is measured at ``points`` options per site, spread evenly over the logarithm of the error, and interpolated monotonically
    in that error between them, so that every option has a value and a worse error never scores better.

    Args:
        measure: loss of a configuration on calibration data, see `ranksearch.proxies.CalibrationLoss`.
        points: measurements per site. In all: sites x points + 1.
    """

    name = "single_site_loss"
    needs = "networks"

    def __init__(self, measure: Callable[[Configuration], float], *, points: int = 6) -> None:
        checks.whole("points", points, least=1)
        self.measure, self.points = measure, points

    @classmethod
    def make(cls, context: ProxyContext) -> Self:
        return cls(context.loss)

    def table(self, space: SearchSpace) -> Table:
        dense = self.measure(Configuration())
        return Table(tuple(self._column(space, ladder, dense) for ladder in space.ladders), "sum")

    def _column(self, space: SearchSpace, ladder: Ladder, dense: float) -> np.ndarray:
        errors = np.square(ladder.column("frobenius"))
        options = np.arange(len(errors) - 1)
        if not len(options):
            return np.zeros(1)
        levels = np.log(np.maximum(errors[options], 1e-12))
        wanted = np.linspace(levels.max(), levels.min(), min(self.points, len(options)))
        picked = sorted({int(np.argmin(np.abs(levels - level))) for level in wanted}, key=lambda i: errors[i])
        rises = []
        for i in picked:
            rises.append(max(self.measure(Configuration({ladder.site.name: ladder.choice(i)})) - dense, 0.0))
        return np.interp(errors, [0.0, *errors[picked]], np.maximum.accumulate([0.0, *rises]))

    def uncovered(self, space: SearchSpace) -> dict[str, str]:
        return {
            l.site.name: f"{len(l) - 1 - self.points} of {len(l) - 1} options are interpolated"
            for l in space.ladders
            if len(l) - 1 > self.points
        }
