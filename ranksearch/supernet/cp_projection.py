"""CP as a projection of the dense weight: with its rank-one kernels a_j x b_j x c_j held fixed, a CP of rank r is the best
combination of r separable filters for every output channel, W_r = W A K (K^T A K)^+ K^T, the columns of K being those
kernels and A the metric on patches. It is linear in W, so that it has a gradient like every other projection, and no gradient
passes through the fit. It is not from a paper. A CP has no closed form: no basis of one rank serves another, and each is fitted by
itself, by alternating least squares that go on from the kernels it had before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ranksearch.decompositions import Moments, Rank
from ranksearch.decompositions.cp import CP
from ranksearch.decompositions.cp_fit import rank_one
from ranksearch.decompositions.metric import conditioned
from ranksearch.decompositions.refinement import projector, refine, refit_output
from ranksearch.sites import Site
from ranksearch.supernet._bases import Bases, Projection, Side, moved

SWEEPS = 1  # of alternating least squares per fit: the kernels are near from the fit before


@final
class CPProjection(Projection):
    """Sides of its bases: the projector's two halves, K (1, d, r) and (K^T A K)^+ K^T A (1, r, d); then the kernels by mode,
    (1, n, r) and transposed: channels, and one for each kernel side above 1."""

    name = "cp"
    fitted = True

    def __init__(self) -> None:
        self.decomposition = CP()

    def full(self, site: Site, labels: Rank) -> Rank:
        return (int(self.decomposition.ranks(site)[-1, 0]),)

    def key(self, rank: Rank) -> Rank:
        return tuple(rank)

    def bases(self, site: Site, weight: Tensor, rank: Rank, moments: Moments | None = None) -> Bases:
        self.split_rank(site, rank)
        state = self.decomposition.prepare(site, weight.detach().double(), moments)
        return self.fit(site, weight, self.decomposition.factors(state, rank)[1:], moments, sweeps=0)

    def kernels(self, bases: Bases) -> tuple[Tensor, ...]:
        """The fixed rank-one kernels by mode, shape (n, r) each: what a later fit goes on from."""
        return tuple(side.out[0].clone() for side in bases.sides[1:])

    def fit(self, site: Site, weight: Tensor, start: Sequence[Tensor], moments: Moments | None, *, sweeps: int = SWEEPS) -> Bases:
        """Bases for one rank, fitted on the processor in float64.

        Args:
            weight: canonical, shape (c_out, c_in, kh, kw).
            start: kernels by mode, shape (n, r) each.
        """
        with torch.no_grad():
            dense = weight.detach().double().cpu()
            metric = conditioned(moments, dense)
            kernels = [k.double().cpu() for k in start]
        if sweeps and bool(dense.any()):

            def compose(parts: Sequence[Tensor]) -> Tensor:
                return (parts[0] @ rank_one(parts[1:]).mT).reshape(1, *dense.shape)

            with torch.no_grad():
                out = refit_output(dense.flatten(1), rank_one(kernels).mT, metric)
            _, *kernels = refine(compose, (out, *kernels), dense[None], metric, sweeps=sweeps)
        with torch.no_grad():
            kernels = [k / k.norm(dim=0).clamp_min(torch.finfo(k.dtype).tiny) for k in kernels]
            columns = rank_one(kernels)
            onto = projector(columns.mT, metric).mT  # of any weight
            whole = Side(columns[None], onto[None].contiguous(), columns.new_zeros(1, columns.shape[1]))
            modes = [Side(k[None].contiguous(), k.mT[None].contiguous(), k.new_zeros(1, k.shape[1])) for k in kernels]
            return moved(Bases(False, (whole, *modes)), weight)

    def factors(self, site: Site, weight: Tensor, bases: Bases, rank: Rank, *, balanced: bool = False) -> tuple[Tensor, ...]:
        kernels = [side.out[0].to(weight.dtype) for side in bases.sides[1:]]
        out = weight.flatten(1) @ bases.sides[0].into[0].mT.to(weight.dtype)
        if balanced:  # columns of equal norm in all modes; kernels have norm 1
            norm = out.norm(dim=0)
            even = norm ** (1.0 / (1 + len(kernels)))
            out = out * (even / norm.clamp_min(torch.finfo(norm.dtype).tiny))
            kernels = [k * even for k in kernels]
        return (out, *kernels)
