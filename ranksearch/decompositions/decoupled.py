"""Every filter, C_in x (kh kw), is a sum of q pointwise-times-spatial products: 1 x 1 to q channels per filter, then
kh x kw in C_out groups (TRP's ND, arXiv 1910.04576; network decoupling, Guo et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.linalg import solve_triangular

from ranksearch.decompositions.chain import Link, chain_costs, chain_module
from ranksearch.decompositions.decomposition import BEYOND, Decomposition, Errors, Rank, blank
from ranksearch.decompositions.folded_metric import FoldedMetric, fold_metric
from ranksearch.decompositions.folding import FOLDINGS, split_groups
from ranksearch.decompositions.metric import Moments, conditioned, half, is_weight_metric, residual_energy
from ranksearch.decompositions.spectrum import Spectrum, equal_norms, ratio, spectrum, spectrum_errors, truncate
from ranksearch.decompositions.weighted_truncation import bounded, largest
from ranksearch.sites import Site

FOLDING, BLOCKS = FOLDINGS["decoupled"], FOLDINGS["svd_in"]


@dataclass(frozen=True)
class FilterState:
    """Spectra of the filters, each whitened by the marginals of the input moment over taps and channels."""

    weight: Tensor  # float64, shape: (groups, o, ci, kh, kw)
    spectrum: Spectrum  # of matrices ci x (kh kw), one per filter: shape (c_out, ci, kh kw)
    channel_half: Tensor | None  # shape: (groups, ci, ci)
    tap_half: Tensor | None  # shape: (groups, kh kw, kh kw)
    metric: FoldedMetric | None  # of the blocks (groups, o, kh kw, ci); None without an input moment
    moments: Moments  # conditioned


class Decoupled(Decomposition[FilterState]):
    """Rank (q,). In a metric the factors are each filter's best in the marginals (channels times taps) of the input
    moment; what the moments couple beyond that, filters among them, is not refined but is in the errors."""

    name = "decoupled"

    def undefined(self, site: Site) -> str | None:
        if site.window is not None:
            return BEYOND
        if site.kind not in ("conv2d", "conv1d"):
            return "needs a kernel"
        if site.kernel == (1, 1):
            return "a 1 x 1 filter has nothing to decouple"
        if site.c_in == site.groups:
            return "one input channel (per group) has nothing to decouple"
        if site.c_out == site.groups:
            return "one filter (per group): it equals svd_in"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        return np.arange(1, min(site.shape[1], math.prod(site.kernel)) + 1, dtype=np.int64)[:, None]

    def _links(self, site: Site, q: Any) -> list[Link]:
        inner = q * site.c_out
        return [Link(site.c_in, inner, groups=site.groups), Link(inner, site.c_out, (True, True), site.c_out)]

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return self._links(site, ranks[:, 0])

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self.links(site, ranks), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> FilterState:
        weight = weight.double()
        moments = conditioned(moments, weight)
        metric = fold_metric(moments, BLOCKS, site)
        filters = BLOCKS.blocks(site, weight).transpose(2, 3)  # (g, o, ci, kh kw)
        channel_half = tap_half = None
        if metric is not None:
            assert isinstance(metric.channels, Tensor), "columns are channels alone"
            channel_half, tap_half = half(metric.channels), half(metric.taps)
            filters = channel_half.mT[:, None] @ filters @ tap_half[:, None]
        return FilterState(split_groups(site, weight), spectrum(filters.flatten(0, 1)), channel_half, tap_half, metric, moments)

    def errors(self, state: FilterState) -> Errors:
        if is_weight_metric(state.moments):
            return spectrum_errors(state.spectrum)
        full = state.spectrum.full
        squared = np.array([residual_energy(state.weight - self._dense(state, q), state.moments) for q in range(1, full)] + [0.0])
        total = residual_energy(state.weight, state.moments)
        ranks = np.arange(1, full + 1, dtype=np.int64)[:, None]
        if state.metric is not None:
            top = largest(state.metric, state.weight.flatten(3).transpose(2, 3))
        else:
            assert state.moments.output is not None
            top = float(torch.linalg.matrix_norm(half(state.moments.output).mT @ state.weight.flatten(2), 2).max()) ** 2
        errors = bounded(ranks, squared, total, top)
        return Errors(ranks, ratio(squared, total), errors.operator, errors.norm, "exact", "bound")

    def _dense(self, state: FilterState, q: int) -> Tensor:
        points, taps = self.factors(state, (q,))
        return (points @ taps).reshape(state.weight.shape)

    def factors(self, state: FilterState, rank: Rank) -> tuple[Tensor, ...]:
        points, taps = truncate(state.spectrum, rank[0])  # (c_out, ci, q), (c_out, q, kh kw)
        if state.channel_half is not None and state.tap_half is not None:
            groups = len(state.channel_half)
            points = solve_triangular(state.channel_half.mT[:, None], points.unflatten(0, (groups, -1)), upper=True).flatten(0, 1)
            taps = taps.unflatten(0, (groups, -1))
            taps = solve_triangular(state.tap_half[:, None], taps, upper=False, left=False).flatten(0, 1)
        return equal_norms(points, taps)

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        c_out, c_in, *kernel = site.shape
        return blank((c_out, c_in, rank[0]), (c_out, rank[0], math.prod(kernel)))

    def describe(self, site: Site, rank: Rank) -> str:
        return f"{rank[0]} per filter"

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        points, taps = factors
        return FOLDING.unfold(site, points @ taps)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        points, taps = factors
        q = points.shape[2]
        weights = (points.transpose(1, 2).reshape(site.c_out * q, site.shape[1], 1, 1), taps.reshape(site.c_out, q, *site.kernel))
        return chain_module(site, self._links(site, q), weights, bias)
