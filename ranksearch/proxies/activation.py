"""Activation error: squared error of a site's outputs on calibration inputs, relative to their size (SVD-LLM and BALF,
arXiv 2509.25136, truncate by it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from ranksearch.decompositions.folding import split_groups
from ranksearch.decompositions.metric import residual_energy
from ranksearch.proxies.context import ProxyContext
from ranksearch.proxies.residual import Energies, Form, ResidualProxy
from ranksearch.sites import Site, canonical_weight
from ranksearch.space import SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import Statistics

TINY = 1e-300  # a site whose weight is zero has no error


class ActivationError(ResidualProxy):
    """Sum over sites of |(W - W_r) A^(1/2)|^2 / |W A^(1/2)|^2, whatever metric the factors were made in.

    Args:
        spectra: that the space was built from.
        statistics: collected on the same model and sites.
        center: covariance of the inputs instead of the second moment, see `Statistics.input_moment`.
    """

    name = "activation"
    needs = "statistics"

    def __init__(self, spectra: Spectra, statistics: Statistics, *, center: bool = False) -> None:
        self.spectra, self.statistics, self.center = spectra, statistics, center

    @classmethod
    def make(cls, context: ProxyContext) -> Self:
        return cls(context.spectra, context.statistics)

    def form(self, space: SearchSpace) -> Form:
        moments, norms = self.statistics.moments("activation", center=self.center), {}

        def scale(site: Site) -> float:
            if site.name not in norms:
                weight = split_groups(site, canonical_weight(self.spectra.model.get_submodule(site.name), site)).double().flatten(2)
                norms[site.name] = max(residual_energy(weight, moments[site.name].floored), TINY)
            return 1.0 / norms[site.name]

        return Energies(lambda site: moments[site.name].floored, scale)

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        names = {ladder.site.name for ladder in space.ladders}
        return {site: reason for site, reason in self.statistics.uncovered.items() if site in names and "gradient" not in reason}
