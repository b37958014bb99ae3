"""Diagonal Fisher: sum_ij F_ij (W - W_r)_ij^2 / 2, F the mean squared per-example gradient of each weight (FWSVD,
arXiv 2207.00112, which sums F over rows so that the weighted problem stays an SVD; a score need not)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from ranksearch.decompositions.folding import split_groups
from ranksearch.errors import InvalidArgument
from ranksearch.proxies.context import ProxyContext
from ranksearch.proxies.residual import Form, ResidualProxy
from ranksearch.sites import Site
from ranksearch.space import SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import Statistics


@dataclass(frozen=True)
class _Weighted(Form):
    """The form sum_ij F_ij R_ij^2 / 2.

    Args:
        weights: F by site, shapes (groups, c_out / groups or 1, d); None: the site counts as 0.
    """

    weights: Mapping[str, Tensor | None]

    def __call__(self, site: Site, residual: Tensor) -> float:
        weight = self.weights[site.name]
        return 0.0 if weight is None else float((weight.to(residual) * residual.square()).sum() / 2)


class DiagonalFisher(ResidualProxy):
    """The unit is that of `FisherError`. The score sees no interaction of weights, not even within a layer.

    Args:
        spectra: that the space was built from.
        statistics: collected with ``diagonal=True``.
        rows: FWSVD's form, one weight per input of the layer (its rows are inputs), the sum of F over outputs.
    """

    name = "fwsvd"
    needs = "statistics"

    def __init__(self, spectra: Spectra, statistics: Statistics, *, rows: bool = False) -> None:
        self.spectra, self.statistics, self.rows = spectra, statistics, rows

    @classmethod
    def make(cls, context: ProxyContext) -> Self:
        return cls(context.spectra, context.statistics)

    def form(self, space: SearchSpace) -> Form:
        weights: dict[str, Tensor | None] = {}
        for ladder in space.ladders:
            site, s = ladder.site, self.statistics.of[ladder.site.name]
            if s.fisher_diagonal is None:
                if site.name in self.uncovered(space):
                    weights[site.name] = None
                    continue
                raise InvalidArgument("statistics were collected without the diagonal of the Fisher; collect with diagonal=True")
            diagonal = split_groups(site, s.fisher_diagonal).flatten(2) / max(s.sampled, 1)
            weights[site.name] = diagonal.mean(dim=1, keepdim=True) if self.rows else diagonal
        return _Weighted(weights)

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        return {
            l.site.name: "no weight gradient is collected for embeddings: counts as 0" for l in space.ladders if l.site.kind == "embedding"
        }
