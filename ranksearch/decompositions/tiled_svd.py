"""The lowered matrix cut into tiles of rows and input channels, an SVD each: a grouped kernel layer, a channel shuffle, a
grouped 1 x 1 layer (two-dimensional lowering of Learning Low-Rank Approximation for CNNs, arXiv 1905.10145)."""

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

CUTS: tuple[tiles.Cut, ...] = ((2, 1), (2, 2), (2, 4), (4, 1), (4, 2), (4, 4))  # (row tiles, input-channel tiles)


class TiledSVD(Decomposition[TileState]):
    """Rank (p, t, r), (p, t) one of ``cuts``. One row tile is ``grouped_svd`` (or ``svd``), so p > 1."""

    name = "tiled_svd"
    labels = 2

    def __init__(self, *, cuts: tuple[tiles.Cut, ...] = CUTS) -> None:
        self.cuts = cuts

    def _cuts(self, site: Site) -> list[tiles.Cut]:
        return [(p, t) for p, t in self.cuts if site.c_out % p == 0 and site.c_in % t == 0 and p < site.c_out]

    def undefined(self, site: Site) -> str | None:
        if site.window is not None:
            return BEYOND
        if site.kind not in ("conv2d", "conv1d"):
            return "there is no plain grouped layer for a matrix"
        if site.groups > 1:
            return "the layer is grouped already"
        if not site.batched:
            return "a channel shuffle needs a batch dimension"
        if site.c_in * site.kernel[0] * site.kernel[1] == 1:
            return "a single column has no smaller rank"
        if not self._cuts(site):
            return f"no tile shape divides C_out = {site.c_out} and C_in = {site.c_in}"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        return tiles.tile_ranks(site, self._cuts(site))

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return tiles.links(site, ranks[:, 0], ranks[:, 1], ranks[:, 2])

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self.links(site, ranks), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> TileState:
        return tiles.prepare(site, weight, self.ranks(site), moments)

    def errors(self, state: TileState) -> Errors:
        return tiles.errors(state)

    def factors(self, state: TileState, rank: Rank) -> tuple[Tensor, ...]:
        return tiles.factors(state, *rank)  # shapes: (p, t, co / p, r), (p, t, r, ci / t * kh * kw)

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        p, t, r = rank
        return blank((p, t, site.c_out // p, r), (p, t, r, math.prod(site.shape[1:]) // t))

    def describe(self, site: Site, rank: Rank) -> str:
        return f"{rank[0]} x {rank[1]} tiles, r={rank[2]}"

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        return tiles.compose(site, *factors)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        left, right = factors
        links = tiles.links(site, left.shape[0], left.shape[1], left.shape[3])
        return chain_module(site, links, tiles.weights(site, left, right), bias)
