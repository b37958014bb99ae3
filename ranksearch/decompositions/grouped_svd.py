"""Input channels cut into g groups before lowering, an SVD each: a kernel layer in g groups to g r channels, then 1 x 1
(ALDS, arXiv 2107.11442)."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor, nn

from ranksearch.decompositions import tiles
from ranksearch.decompositions.chain import Link, chain_costs, chain_module
from ranksearch.decompositions.decomposition import BEYOND, Decomposition, Errors, Rank, blank
from ranksearch.decompositions.metric import Moments
from ranksearch.decompositions.tiles import TileState
from ranksearch.sites import Site


class GroupedSVD(Decomposition[TileState]):
    """Rank (g, r), g the divisors of C_in from 2 to ``max_groups``; g = 1 is ``svd``."""

    name = "grouped_svd"
    labels = 1

    def __init__(self, *, max_groups: int = 16) -> None:
        self.max_groups = max_groups

    def _cuts(self, site: Site) -> list[tiles.Cut]:
        return [(1, g) for g in range(2, min(self.max_groups, site.c_in) + 1) if site.c_in % g == 0]

    def undefined(self, site: Site) -> str | None:
        if site.window is not None:
            return BEYOND
        if site.kind not in ("conv2d", "conv1d"):
            return "there is no plain grouped layer for a matrix"
        if site.groups > 1:
            return "the layer is grouped already"
        if site.c_out == 1:
            return "a single row has no smaller rank"
        if not self._cuts(site):
            return f"C_in = {site.c_in} has no divisor from 2 to {self.max_groups}"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        return tiles.tile_ranks(site, self._cuts(site))[:, 1:]

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return tiles.links(site, 1, ranks[:, 0], ranks[:, 1])

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self.links(site, ranks), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> TileState:
        return tiles.prepare(site, weight, tiles.tile_ranks(site, self._cuts(site)), moments)

    def errors(self, state: TileState) -> Errors:
        e = tiles.errors(state)
        return Errors(e.ranks[:, 1:], e.frobenius, e.operator, e.norm, e.frobenius_is, e.operator_is)

    def factors(self, state: TileState, rank: Rank) -> tuple[Tensor, ...]:
        return tiles.factors(state, 1, rank[0], rank[1])  # shapes: (1, g, co, r), (1, g, r, ci / g * kh * kw)

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        groups, r = rank
        return blank((1, groups, site.c_out, r), (1, groups, r, math.prod(site.shape[1:]) // groups))

    def describe(self, site: Site, rank: Rank) -> str:
        return f"{rank[0]} groups, r={rank[1]}"

    def axes(self, site: Site) -> tuple[str, ...]:
        return "g t o r", "g t r ihw"

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        return tiles.compose(site, *factors)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        left, right = factors
        links = tiles.links(site, 1, left.shape[1], left.shape[3])
        return chain_module(site, links, tiles.weights(site, left, right), bias)
