"""Fisher error, two-sided: tr(G (W - W_r) A (W - W_r)^T) / 2, the estimated rise of the mean loss (K-FAC for
convolutions, arXiv 1602.01407; two-sided as in GFWSVD), whatever metric the factors were made in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from ranksearch.proxies.context import ProxyContext
from ranksearch.proxies.residual import Energies, Form, ResidualProxy
from ranksearch.space import SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import Statistics


class FisherError(ResidualProxy):
    """In the unit of T^2 times the divergence of the outputs softened by the temperature T that labels were sampled at (nats per
    example at T = 1), so sites are comparable and their sum means something. Second order: large changes, and the interaction of
    sites, are beyond it.

    Args:
        spectra: that the space was built from.
        statistics: with gradients, of the same model and sites.
        center: see `Statistics.input_moment`.
        exact_trace: scale every site so that the trace of its Fisher is the exact one, see `Statistics.fisher_ratio`.
    """

    name = "fisher"
    needs = "statistics"

    def __init__(self, spectra: Spectra, statistics: Statistics, *, center: bool = False, exact_trace: bool = False) -> None:
        self.spectra, self.statistics, self.center, self.exact_trace = spectra, statistics, center, exact_trace

    @classmethod
    def make(cls, context: ProxyContext) -> Self:
        return cls(context.spectra, context.statistics)

    def form(self, space: SearchSpace) -> Form:
        moments = self.statistics.moments("fisher", center=self.center)
        scales = {l.site.name: (self.statistics.fisher_ratio(l.site.name) if self.exact_trace else None) or 1.0 for l in space.ladders}

        return Energies(lambda site: moments[site.name].floored, lambda site: 0.5 * scales[site.name])

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        names = {ladder.site.name for ladder in space.ladders}
        return {site: reason for site, reason in self.statistics.uncovered.items() if site in names}
