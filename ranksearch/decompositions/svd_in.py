"""SVD on the input channels, (C_out kh kw) x C_in: 1 x 1 to r channels, then kh x kw (ALDS's scheme 3,
arXiv 2107.11442)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from ranksearch.decompositions import weighted_truncation
from ranksearch.decompositions.chain import Link, chain_costs, chain_module
from ranksearch.decompositions.decomposition import Decomposition, Errors, Rank, blank
from ranksearch.decompositions.folding import FOLDINGS
from ranksearch.decompositions.metric import Moments
from ranksearch.decompositions.weighted_truncation import Folded
from ranksearch.sites import Site

FOLDING = FOLDINGS["svd_in"]


class SVDIn(Decomposition[Folded]):
    """At the same rank this type stores fewer numbers than ``svd`` where C_in > C_out. Its 1 x 1 layer runs at the resolution of the
    input, so with a stride, which makes the output smaller, it takes more MACs."""

    name = "svd_in"

    def undefined(self, site: Site) -> str | None:
        if site.kind not in ("conv2d", "conv1d", "conv3d"):
            beyond = "its last layer would be a transposed convolution, which reconstruct does not fit: svd and tucker2 end with 1 x 1"
            return beyond if site.window else "needs a kernel: for a matrix it equals svd"
        if site.kernel == (1, 1):
            return "a 1 x 1 kernel is a matrix: it equals svd"
        if site.c_in == site.groups:
            return "one input channel (per group) has no smaller rank"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        rows = site.c_out // site.groups * math.prod(site.kernel)
        return np.arange(1, min(rows, site.shape[1]) + 1, dtype=np.int64)[:, None]

    def _links(self, site: Site, rank: Any) -> list[Link]:
        inner = rank * site.groups
        return [Link(site.c_in, inner, groups=site.groups), Link(inner, site.c_out, (True, True), site.groups)]

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return self._links(site, ranks[:, 0])

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self.links(site, ranks), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> Folded:
        return weighted_truncation.prepare(site, weight, moments, FOLDING, weighted_truncation.measured_ranks(site, self))

    def errors(self, state: Folded) -> Errors:
        return weighted_truncation.errors(state)

    def factors(self, state: Folded, rank: Rank) -> tuple[Tensor, ...]:
        return weighted_truncation.factors(state, rank[0])  # shapes: (g, co * kh * kw, r), (g, r, ci)

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        g, (c_out, c_in, *kernel) = site.groups, site.shape
        return blank((g, c_out // g * math.prod(kernel), rank[0]), (g, rank[0], c_in))

    def axes(self, site: Site) -> tuple[str, ...]:
        return "g ohw r", "g r i"

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        left, right = factors
        return FOLDING.unfold(site, left @ right)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        left, right = factors
        rank = left.shape[2]
        kernel = left.reshape(site.c_out, math.prod(site.kernel), rank).transpose(1, 2)
        weights = (right.reshape(site.groups * rank, site.shape[1], 1, 1), kernel.reshape(site.c_out, rank, *site.kernel))
        return chain_module(site, self._links(site, rank), weights, bias)
