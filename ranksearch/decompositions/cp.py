"""CP, a sum of r rank-one kernels (Lebedev et al. 2015): 1 x 1 to r channels, kh x 1 and 1 x kw depthwise, 1 x 1.

Alternating least squares fit the ranks of a geometric grid. Every rank starts from the factors of the one before, plus the
leading components of what they leave over; its error is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.decompositions import cp_fit
from ranksearch.decompositions.chain import Link, chain_costs, chain_module
from ranksearch.decompositions.decomposition import BEYOND, Decomposition, Errors, Rank, blank
from ranksearch.decompositions.metric import Moments, channel_moment, conditioned, is_weight_metric, residual_energy, whitener
from ranksearch.decompositions.symmetric import eigh
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site

SWEEPS = 12  # of alternating least squares per rank in the weight metric
WHITE_SWEEPS = 8  # in another metric, where they only begin what `cp_fit.refine` goes on with
WORK = 2e9  # multiply-adds of them per rank; fewer sweeps on larger weights, never under 3
ENOUGH, WHITE_ENOUGH = 1e-4, 3e-3  # they end where one gains less than this share of the squared error
REFINE_SWEEPS, REFINE_WORK = 3, 3e8  # in a metric; and their multiply-adds per rank: fewer on larger weights, never under 1
RIDGES = (1e-8, 1e-2)  # penalty on the squared factors, per component of a weight of norm 1: rounding; then one that tames
NORM_LIMIT = 10.0  # a component may be so many times larger than the whole weight
COSINE_LIMIT = -0.98  # two components this opposed cancel each other: a degenerate, diverging pair


@dataclass(frozen=True)
class CPState:
    """Sound factors per rank of the grid, and their measured errors."""

    ranks: np.ndarray  # int64, shape: (n_ranks, 1)
    factors: tuple[tuple[Tensor, ...], ...]  # per rank: (c_out, r), (c_in, r), one (k, r) per kernel side above 1
    frobenius: np.ndarray  # shape: (n_ranks,)
    norm: float
    refused: tuple[int, ...]  # ranks whose components diverged


class CP(Decomposition[CPState]):
    """Rank (r,) on a geometric grid: up to the rank that costs what the dense layer does, and to ``max_rank``."""

    name = "cp"
    nested = False
    exact = False

    def __init__(self, *, max_rank: int = 512) -> None:
        self.max_rank = max_rank

    def undefined(self, site: Site) -> str | None:
        if site.window is not None:
            return BEYOND
        if site.kind not in ("conv2d", "conv1d"):
            return "needs a kernel: for a matrix it equals svd"
        if site.kernel == (1, 1):
            return "a 1 x 1 kernel is a matrix: it equals svd"
        if site.groups > 1:
            return f"groups={site.groups}: the 1 x 1 convolutions of a grouped CP are not provided"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        sides = [site.c_out, site.c_in, *_sides(site)]
        numel = math.prod(sides)
        top = max(1, min(self.max_rank, numel // sum(sides), numel // max(sides)))
        return np.array(_grid(top), dtype=np.int64)[:, None]

    def _links(self, site: Site, rank: Any) -> list[Link]:
        links = [Link(site.c_in, rank)]
        if len(_sides(site)) == 2:
            links += [Link(rank, rank, (True, False), rank), Link(rank, rank, (False, True), rank)]
        else:
            links += [Link(rank, rank, (True, True), rank)]
        return [*links, Link(rank, site.c_out)]

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return self._links(site, ranks[:, 0])

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self.links(site, ranks), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> CPState:
        dense = weight.double()
        moments = conditioned(moments, dense)
        grid = [int(r) for r in self.ranks(site)[:, 0]]
        sides = (site.c_out, site.c_in, *_sides(site))
        if is_weight_metric(moments):
            sound, refused = _ladder(dense.reshape(sides), grid, SWEEPS, ENOUGH)
            norm = float(dense.norm())
        else:
            # whitened by what acts on the channels alone, so that rank-one kernels stay rank-one; then refined
            root_out, unroot_out = whitener(moments.output, site.c_out, dense[None])
            root_in, unroot_in = whitener(channel_moment(moments, site.c_in), site.c_in, dense[None])
            white = torch.einsum("po,oihw,iq->pqhw", root_out[0], dense, root_in[0])
            sweeps, enough = (SWEEPS, ENOUGH) if moments.input is None else (WHITE_SWEEPS, WHITE_ENOUGH)
            sound, refused = _ladder(white.reshape(sides), grid, sweeps, enough)
            sound = {r: (unroot_out[0] @ out, unroot_in[0] @ into, *kernel) for r, (out, into, *kernel) in sound.items()}
            if moments.input is not None:
                target = cp_fit.target(dense, moments)
                sound = {r: tuple(cp_fit.refine(f, target, sweeps=_refine_sweeps(target, r))) for r, f in sound.items()}
            norm = residual_energy(dense[None], moments) ** 0.5
        sound = {r: tuple(_even(f)) for r, f in sound.items()}
        ranks = sorted(sound)
        energies = [residual_energy((dense - cp_fit.compose(sound[r]).reshape(dense.shape))[None], moments) for r in ranks]
        frobenius = np.sqrt(np.array(energies)) / norm if norm > 0 else np.zeros(len(ranks))
        return CPState(
            np.array(ranks, dtype=np.int64)[:, None], tuple(sound[r] for r in ranks), frobenius, norm, tuple(refused)
        )  # fmt: skip

    def errors(self, state: CPState) -> Errors:
        nothing = np.full(len(state.ranks), np.nan)  # a CP truncates no folding
        return Errors(state.ranks, state.frobenius, nothing, state.norm, frobenius_is="measured", operator_is="measured")

    def factors(self, state: CPState, rank: Rank) -> tuple[Tensor, ...]:
        position = np.flatnonzero(state.ranks[:, 0] == rank[0])
        if not len(position):
            why = "its components diverged" if rank[0] in state.refused else "not on the grid"
            raise InvalidArgument(f"rank={rank} of cp: {why}; ranks are {state.ranks[:, 0].tolist()}")
        return state.factors[int(position[0])]

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        return blank(*((side, rank[0]) for side in (site.c_out, site.c_in, *_sides(site))))

    def axes(self, site: Site) -> tuple[str, ...]:
        return "o r", "i r", *(f"{letter} r" for letter, side in zip("hw", site.kernel, strict=True) if side > 1)

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        return cp_fit.compose(factors).reshape(site.shape)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        out, into, *kernel = factors
        rank = out.shape[1]
        weights = [into.mT[:, :, None, None]]
        if len(kernel) == 2:
            weights += [kernel[0].mT[:, None, :, None], kernel[1].mT[:, None, None, :]]
        else:
            weights += [kernel[0].mT.reshape(rank, 1, *site.kernel)]
        return chain_module(site, self._links(site, rank), [*weights, out[:, :, None, None]], bias)


def _sides(site: Site) -> list[int]:
    return [k for k in site.kernel if k > 1]


def _grid(top: int) -> list[int]:
    """Powers of sqrt(2) up to ``top``, rounded to multiples at which kernels are fast, and ``top`` itself if the last is well below it."""
    grid = set()
    value = 1.0
    while value <= top:
        unit = 8 if value >= 32 else 4 if value >= 16 else 2 if value >= 8 else 1
        grid.add(min(top, max(1, unit * round(value / unit))))
        value *= math.sqrt(2.0)
    return sorted(grid if 1.12 * max(grid) > top else grid | {top})


def _ladder(tensor: Tensor, grid: list[int], sweeps: int, enough: float) -> tuple[dict[int, tuple[Tensor, ...]], list[int]]:
    """Factors of ``tensor`` for every rank of the grid, and the ranks refused."""
    norm = float(tensor.norm())
    if norm == 0.0:
        return {r: tuple(tensor.new_zeros(n, r) for n in tensor.shape) for r in grid}, []
    # a sum of r rank-one terms lives in r-dimensional subspaces of the channels: work in the leading directions of
    # twice as many (CANDELINC, Carroll et al. 1980), which is lossless once they are all there
    bases = [eigh(m @ m.mT)[1].flip(-1) for m in (tensor.flatten(1), tensor.transpose(0, 1).flatten(1))]
    core = torch.einsum("oi...,op,iq->pq...", tensor / norm, *bases)
    current = [tensor.new_zeros(n, 0) for n in core.shape]
    sound: dict[int, tuple[Tensor, ...]] = {}
    refused: list[int] = []
    for rank in grid:
        kept = [min(n, 2 * rank) for n in core.shape[:2]]
        block = core[: kept[0], : kept[1]].contiguous()
        start = [f[: block.shape[k]] for k, f in enumerate(current)]
        extra = _leading(block - cp_fit.compose(start), rank - start[0].shape[1])
        start = [torch.cat(pair, dim=1) for pair in zip(start, extra, strict=True)]
        for ridge in RIDGES:
            found = _fit(block, start, ridge / rank, sweeps, enough)
            if found is not None and _is_sound(found):
                break
        else:
            refused.append(rank)
            continue
        current = [tensor.new_zeros(n, rank) for n in core.shape]
        for full, part in zip(current, found, strict=True):
            full[: part.shape[0]] = part
        scale = norm ** (1.0 / len(current))
        sound[rank] = tuple(scale * f for f in (bases[0] @ current[0], bases[1] @ current[1], *current[2:]))
    return sound, refused


def _fit(block: Tensor, start: list[Tensor], ridge: float, sweeps: int, enough: float) -> list[Tensor] | None:
    rank = start[0].shape[1]
    affordable = int(min(sweeps, max(3, WORK / (2 * rank * (block.numel() + rank**2)))))
    found = cp_fit.sweep(block, start, ridge, sweeps=affordable, enough=enough)
    return None if found is None else _even(found)


def _refine_sweeps(target: cp_fit.Target, rank: int) -> int:
    out, d = target.weight.shape
    side = d if isinstance(target.input, Tensor) else target.input.channel.shape[-1] + target.input.tap.shape[-1]  # a column's cost
    once = min(rank * d * (side + rank), out * d * (side + 2 * rank))  # multiply-adds of applying the metric to one change
    applied = 2 + cp_fit.STEPS * len(target.marginals)
    return int(min(REFINE_SWEEPS, max(1, REFINE_WORK / (applied * once))))


def _even(factors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensor with columns of equal norm in all modes, so that weight decay and step sizes treat the factors alike."""
    norms = torch.stack([f.norm(dim=0) for f in factors])
    even = norms.prod(dim=0) ** (1.0 / len(factors))
    return [f * (even / n.clamp_min(torch.finfo(n.dtype).tiny)) for f, n in zip(factors, norms, strict=True)]


def _is_sound(factors: list[Tensor]) -> bool:
    """Whether every component is finite, not far larger than the whole (of norm 1), and not almost cancelled by another one."""
    if not all(bool(f.isfinite().all()) for f in factors):
        return False
    norms = torch.stack([f.norm(dim=0) for f in factors]).prod(dim=0)
    if float(norms.max()) > NORM_LIMIT:
        return False
    cosines = torch.ones(len(norms), len(norms), dtype=norms.dtype, device=norms.device)
    for factor in factors:
        unit = factor / factor.norm(dim=0).clamp_min(1e-300)
        cosines = cosines * (unit.mT @ unit)
    large = norms > 0.5  # small opposed pairs are not diverging
    return not bool(((cosines < COSINE_LIMIT) & large[:, None] & large[None, :]).any())


def _leading(tensor: Tensor, count: int) -> list[Tensor]:
    """``count`` mutually orthogonal rank-one terms of ``tensor``, the largest of a cascade of SVDs: adding them
    lowers the squared error by the sum of their squared norms."""
    if tensor.ndim == 1:
        raise ValueError("a vector has no rank-one terms to choose from")
    left, right = _split(tensor.flatten(1))
    factors = [left]
    shape = tensor.shape[1:]
    while len(shape) > 1:
        u, inner = _split(right.reshape(-1, shape[0], math.prod(shape[1:])))
        factors = [f.repeat_interleave(u.shape[2], dim=1) for f in factors]
        factors.append(u.permute(1, 0, 2).flatten(1))
        right = inner.flatten(0, 1)
        best = torch.argsort(right.norm(dim=1), descending=True, stable=True)[: max(count, 1)]
        factors, right = [f[:, best] for f in factors], right[best]
        shape = shape[1:]
    factors.append(right.mT)
    short = max(0, count - right.shape[0])  # fewer terms than asked: the rest are zero, and least squares may use them
    return _even([F.pad(f, (0, short))[:, :count] for f in factors])


def _split(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """U and U^T A of matrices A, shapes (..., m, k) and (..., k, n), k = min(m, n): the left singular vectors, strongest first, by
    eigenvectors of the smaller Gram matrix. Those of singular values below 1e-8 of the largest need not be orthogonal."""
    if matrix.shape[-2] <= matrix.shape[-1]:
        left = eigh(matrix @ matrix.mT)[1].flip(-1)
        return left, left.mT @ matrix
    right = eigh(matrix.mT @ matrix)[1].flip(-1)
    scaled = matrix @ right
    norms = scaled.norm(dim=-2, keepdim=True)
    return scaled / norms.clamp_min(torch.finfo(norms.dtype).tiny), norms.mT * right.mT
