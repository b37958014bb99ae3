"""Spatial SVD: the kernel's two dimensions are separated between two convolutions (TRP's VH, arXiv 1910.04576;
ALDS's schemes 1 and 2, arXiv 2107.11442; Jaderberg et al. 2014)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from ranksearch.decompositions import weighted_truncation
from ranksearch.decompositions.chain import Link, chain_costs, chain_module
from ranksearch.decompositions.decomposition import BEYOND, Decomposition, Errors, Rank, blank
from ranksearch.decompositions.folding import FOLDINGS
from ranksearch.decompositions.metric import Moments
from ranksearch.decompositions.weighted_truncation import Folded
from ranksearch.sites import Site


class Spatial(Decomposition[Folded]):
    """``first`` is the spatial dimension of the first convolution. "width": 1 x kw to r channels, then kh x 1, folding
    (C_out kh) x (C_in kw), named ``spatial``. "height": the transpose, kh x 1 first, named ``spatial_t``."""

    def __init__(self, first: Literal["width", "height"]) -> None:
        self.name = "spatial" if first == "width" else "spatial_t"
        self._first = 1 if first == "width" else 0
        self._second = 1 - self._first

    def undefined(self, site: Site) -> str | None:
        if site.window is not None:
            return BEYOND
        if site.kind != "conv2d":
            return "needs a two-dimensional kernel"
        if min(site.kernel) == 1:
            return "a kernel that is 1 wide leaves nothing to separate: it equals svd or svd_in"
        if self.name == "spatial_t" and site.c_in == site.groups == site.c_out:
            width_first = SPATIAL.cost(site, (1,))
            if width_first == self.cost(site, (1,)):
                return "the two halves of a depthwise layer commute: it equals spatial"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        rows = site.c_out // site.groups * site.kernel[self._second]
        columns = site.c_in // site.groups * site.kernel[self._first]
        return np.arange(1, min(rows, columns) + 1, dtype=np.int64)[:, None]

    def _links(self, site: Site, rank: Any) -> list[Link]:
        inner = rank * site.groups
        width_first = self._first == 1
        return [
            Link(site.c_in, inner, (not width_first, width_first), site.groups),
            Link(inner, site.c_out, (width_first, not width_first), site.groups),
        ]

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return self._links(site, ranks[:, 0])

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self.links(site, ranks), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> Folded:
        ranks = weighted_truncation.measured_ranks(site, self)
        return weighted_truncation.prepare(site, weight, moments, FOLDINGS[self.name], ranks)

    def errors(self, state: Folded) -> Errors:
        return weighted_truncation.errors(state)

    def factors(self, state: Folded, rank: Rank) -> tuple[Tensor, ...]:
        return weighted_truncation.factors(state, rank[0])  # shapes: (g, co * k_second, r), (g, r, ci * k_first)

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        g, (c_out, c_in, *kernel) = site.groups, site.shape
        return blank((g, c_out // g * kernel[self._second], rank[0]), (g, rank[0], c_in * kernel[self._first]))

    def axes(self, site: Site) -> tuple[str, ...]:
        return ("g oh r", "g r iw") if self._first == 1 else ("g ow r", "g r ih")

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        left, right = factors
        return FOLDINGS[self.name].unfold(site, left @ right)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        left, right = factors
        rank = left.shape[2]
        one = right.reshape(site.groups * rank, site.shape[1], site.kernel[self._first])
        two = left.reshape(site.c_out, site.kernel[self._second], rank).permute(0, 2, 1)
        # a kernel entry stands where its convolution carries it: last for 1 x k, before last for k x 1
        first, second = (-2, -1) if self._first == 1 else (-1, -2)
        return chain_module(site, self._links(site, rank), (one.unsqueeze(first), two.unsqueeze(second)), bias)


SPATIAL = Spatial(first="width")
