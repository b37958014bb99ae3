"""Tucker-2: projections of the input and output channels around a small core (Kim et al. 2016): 1 x 1 to r_in
channels, kh x kw to r_out, 1 x 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions._base import Decomposition, Errors, Moments, Rank
from ranksearch.decompositions._chain import Link, chain_costs, chain_module
from ranksearch.decompositions._folding import ENOUGH, Metric, affordable, better_right, bounded, coordinates, fold_metric
from ranksearch.decompositions._spectrum import half, ratio, split_groups
from ranksearch.sites import Site


@dataclass(frozen=True)
class TuckerState:
    """Higher-order SVD of the two channel modes (De Lathauwer et al. 2000), in the metric: output rows whitened,
    input channels strongest first, the core in coordinates that are orthonormal in the metric."""

    weight: Tensor  # float64, shape: (groups, co, kh kw, ci)
    core: Tensor  # shape: (groups, co, ci, kh kw)
    output_basis: Tensor  # shape: (groups, co, co), orthonormal columns, strongest first
    input_basis: Tensor  # shape: (groups, ci, ci): columns
    output_half: Tensor | None
    metric: Metric | None  # None: no input moment
    kernel: tuple[int, int]


class Tucker2(Decomposition[TuckerState]):
    """Rank (r_in, r_out). One HOSVD gives the truncation error of every rank pair exactly: the energy of the core
    outside the kept block, a two-dimensional cumulative sum."""

    name = "tucker2"

    def undefined(self, site: Site) -> str | None:
        if site.kind not in ("conv2d", "conv1d"):
            return "needs a kernel: for a matrix it equals svd"
        if site.kernel == (1, 1):
            return "a 1 x 1 kernel has no core to keep: it equals svd"
        if site.c_in == site.groups:
            return "one input channel (per group) has no smaller rank: it equals svd"
        if site.c_out == site.groups:
            return "one output channel (per group) has no smaller rank: it equals svd_in"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        c_in, c_out = site.c_in // site.groups, site.c_out // site.groups
        grid = np.meshgrid(np.arange(1, c_in + 1), np.arange(1, c_out + 1), indexing="ij")
        return np.stack([g.ravel() for g in grid], axis=1).astype(np.int64)

    def _links(self, site: Site, r_in: Any, r_out: Any) -> list[Link]:
        g = site.groups
        return [
            Link(site.c_in, r_in * g, groups=g),
            Link(r_in * g, r_out * g, (True, True), g),
            Link(r_out * g, site.c_out, groups=g),
        ]

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self._links(site, ranks[:, 0], ranks[:, 1]), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> TuckerState:
        moments = moments or Moments()
        blocks = split_groups(site, weight).double().flatten(3).transpose(2, 3).contiguous()  # (g, o, s, i)
        metric = fold_metric(moments, blocks, (1, 2, 0), site.shape[1:])
        output_half = None if moments.output is None else half(moments.output, blocks)
        rows = blocks if output_half is None else torch.einsum("gpo,gpsi->gosi", output_half, blocks)
        if metric is None:
            input_basis = torch.linalg.eigh(torch.einsum("gosi,gosj->gij", rows, rows))[1].flip(-1)
            core = torch.einsum("gosi,giq->goqs", rows, input_basis)
        else:
            tap_half, channel_half = torch.linalg.cholesky(metric.taps), torch.linalg.cholesky(metric.channels)
            white = torch.einsum("gts,goti,gij->gosj", tap_half, rows, channel_half)
            basis = torch.linalg.eigh(torch.einsum("gosi,gosj->gij", white, white))[1].flip(-1)
            input_basis = torch.linalg.solve_triangular(channel_half.mT, basis, upper=True)
            core = coordinates(metric, blocks, input_basis.mT)[1].permute(0, 3, 1, 2)
        output_basis = torch.linalg.eigh(torch.einsum("goqs,gpqs->gop", core, core))[1].flip(-1)
        core = torch.einsum("goqs,gop->gpqs", core, output_basis)
        return TuckerState(blocks, core, output_basis, input_basis, output_half, metric, site.kernel)

    def errors(self, state: TuckerState) -> Errors:
        energy = state.core.square().sum(dim=3).cpu().numpy()  # (g, co, ci)
        groups, c_out, c_in = energy.shape
        tails = np.zeros((groups, c_out, c_in + 1))  # energy of row o from column i on
        tails[..., :c_in] = np.cumsum(energy[..., ::-1], axis=2)[..., ::-1]
        below = np.zeros((groups, c_out + 1))  # energy of all rows from o on
        below[:, :c_out] = np.cumsum(tails[:, ::-1, 0], axis=1)[:, ::-1]
        beside = np.cumsum(tails, axis=1)  # energy of rows 0..o from column i on
        # only sums of non-negative terms: no cancellation near full rank
        residual = below[:, 1:, None] + beside[:, :, 1:]  # (g, r_out - 1, r_in - 1)
        # operator norm of the C_out x (C_in kh kw) residual: rows outside the kept block are singular vectors,
        # the rest is bounded by its Frobenius norm
        outer = np.zeros((groups, c_out + 1))
        outer[:, :c_out] = tails[:, :, 0]
        operator = (outer[:, 1:, None] + beside[:, :, 1:]).max(axis=0).T.ravel()
        total = float(below[:, 0].sum())
        grid = np.meshgrid(np.arange(1, c_in + 1), np.arange(1, c_out + 1), indexing="ij")
        ranks = np.stack([g.ravel() for g in grid], axis=1).astype(np.int64)
        squared = residual.sum(axis=0).T.ravel()
        if state.metric is not None:
            return bounded(ranks, squared, total, float(outer.max()))
        return Errors(ranks, ratio(squared, total), ratio(operator, float(outer.max())), total**0.5, operator_is="bound")

    def factors(self, state: TuckerState, rank: Rank) -> tuple[Tensor, ...]:
        """Input basis (g, ci, r_in), core (g, r_out, r_in, kh, kw), output basis (g, co, r_out). With an input moment:
        alternately the best core and output basis for an input basis (reduced-rank regression, exact) and a better
        input basis for them."""
        r_in, r_out = rank
        first, last = state.input_basis[..., :r_in], state.output_basis[..., :r_out]
        if state.metric is None:
            core = state.core[:, :r_out, :r_in].unflatten(3, state.kernel).contiguous()
            return first, core, _unwhiten(state.output_half, last)
        core, last = _regress(state, first, r_out)
        if bool((state.weight != 0).any()):
            for _ in range(affordable(state.weight, r_in)):
                left = torch.einsum("gop,gpqs->gosq", last, core)
                rows, gain = better_right(state.metric, state.weight, left, first.mT)
                first = torch.linalg.qr(rows.mT)[0]
                core, last = _regress(state, first, r_out)
                if gain < ENOUGH:
                    break
        return first, core.unflatten(3, state.kernel), last

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        return torch.einsum("giq,gpqhw,gop->goihw", *factors).reshape(site.shape)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        first, core, last = factors
        r_in, r_out = core.shape[2], core.shape[1]
        weights = (
            first.mT.reshape(site.groups * r_in, site.shape[1], 1, 1),
            core.reshape(site.groups * r_out, r_in, *site.kernel),
            last.reshape(site.c_out, r_out, 1, 1),
        )
        return chain_module(site, self._links(site, r_in, r_out), weights, bias)


def _regress(state: TuckerState, first: Tensor, r_out: int) -> tuple[Tensor, Tensor]:
    """The best core (g, r_out, r_in, s) and output basis (g, co, r_out) for an input basis: the unrestricted optimum in
    coordinates that are orthonormal in the metric, truncated by SVD (reduced-rank regression, Izenman 1975)."""
    assert state.metric is not None
    factor, z = coordinates(state.metric, state.weight, first.mT)  # z: (g, r_in, s, o)
    groups, r_in, s, o = z.shape
    z = z.reshape(groups, r_in * s, o)
    output = torch.linalg.eigh(z.mT @ z)[1].flip(-1)[..., :r_out]
    core = torch.linalg.solve_triangular(factor.mT, z @ output, upper=True)
    core = core.reshape(groups, r_in, s, r_out).permute(0, 3, 1, 2).contiguous()
    return core, _unwhiten(state.output_half, output)


def _unwhiten(output_half: Tensor | None, columns: Tensor) -> Tensor:
    return columns if output_half is None else torch.linalg.solve_triangular(output_half.mT, columns, upper=True)
