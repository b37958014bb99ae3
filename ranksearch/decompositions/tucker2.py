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
from ranksearch.decompositions._spectrum import ratio, split_groups
from ranksearch.sites import Site


@dataclass(frozen=True)
class TuckerState:
    """Higher-order SVD of the two channel modes (De Lathauwer et al. 2000)."""

    core: Tensor  # float64, shape: (groups, co, ci, kh, kw): the weight in the bases below
    output_basis: Tensor  # shape: (groups, co, co), orthonormal columns, strongest first
    input_basis: Tensor  # shape: (groups, ci, ci)


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
        core = split_groups(site, weight).double()
        rows = core.flatten(2)
        columns = core.transpose(1, 2).flatten(2)
        output_basis = torch.linalg.eigh(rows @ rows.mT)[1].flip(-1)
        input_basis = torch.linalg.eigh(columns @ columns.mT)[1].flip(-1)
        core = torch.einsum("goihw,gop,giq->gpqhw", core, output_basis, input_basis)
        return TuckerState(core, output_basis, input_basis)

    def errors(self, state: TuckerState) -> Errors:
        energy = state.core.square().sum(dim=(3, 4)).cpu().numpy()  # (g, co, ci)
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
        ranks = np.stack([g.ravel() for g in np.meshgrid(np.arange(1, c_in + 1), np.arange(1, c_out + 1), indexing="ij")], axis=1)
        return Errors(
            ranks.astype(np.int64), ratio(residual.sum(axis=0).T.ravel(), total), ratio(operator, float(outer.max())),
            total**0.5, operator_is="bound",
        )  # fmt: skip

    def factors(self, state: TuckerState, rank: Rank) -> tuple[Tensor, ...]:
        r_in, r_out = rank
        core = state.core[:, :r_out, :r_in].contiguous()
        return state.input_basis[..., :r_in], core, state.output_basis[..., :r_out]

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
