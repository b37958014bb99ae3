"""Tensor trains (Oseledets 2011). A convolution over (C_in, kh, kw, C_out) becomes a chain of plain convolutions,
1 x 1, kh x 1, 1 x kw, 1 x 1; a linear layer (Novikov et al. 2015) a chain of small linear layers over factorised
dimensions, with reshapes between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions.balanced_factors import balanced_factors
from ranksearch.decompositions.chain import Link, chain_costs, chain_module
from ranksearch.decompositions.decomposition import BEYOND, Decomposition, Errors, Rank, blank, cheaper
from ranksearch.decompositions.metric import Moments, channel_moment, conditioned, is_weight_metric, residual_energy, whitener
from ranksearch.decompositions.refinement import refine, refit_output
from ranksearch.decompositions.spectrum import ratio, spectrum, truncate
from ranksearch.decompositions.symmetric import eigh, eigvalsh
from ranksearch.sites import Site

LEVELS = 10  # widths of the outer bonds, a factor of sqrt(2) apart; the middle bond has two more
MEASURED = 64  # ranks that errors are measured at in a metric, at most
WORK = 2e10  # multiply-adds that measuring all of them may take, about; fewer ranks on larger weights


@dataclass(frozen=True)
class TrainState:
    """The weight as a tensor of three parts, the outer ones in the bases of their own unfoldings."""

    site: Site
    core: Tensor  # float64, shape: (m_first, middle, m_last): the (whitened) weight in the bases below
    first: Tensor  # shape: (m_first, m_first), orthonormal columns, strongest first; unwhitened where a metric is given
    last: Tensor  # shape: (m_last, m_last)
    weight: Tensor  # canonical, float64
    moments: Moments


class TensorTrain(Decomposition[TrainState]):
    """Rank: the bonds. (r_1, r_2, r_3) for convolutions, on a grid; one or two for linear layers, which have as many
    modes as bonds and one more.

    The outer bonds truncate the bases of the outer unfoldings (Tucker-2 of the channels), the middle bond the SVD of
    what is left: three nested orthogonal projections, so the error of every rank is exact, not only bounded by the
    root of the summed tails of the unfoldings."""

    name = "tensor_train"

    def undefined(self, site: Site) -> str | None:
        if site.window is not None:
            return BEYOND
        if site.kind == "embedding":
            return "a look-up of a factorised row number has no plain layers"
        if site.groups > 1:
            return f"groups={site.groups}: trains of grouped convolutions are not provided"
        if site.kind in ("conv2d", "conv1d"):
            if site.kernel == (1, 1):
                return "a 1 x 1 kernel is a matrix: it equals svd"
            if min(site.kernel) == 1:
                return "a kernel with one side has a train of three modes: it equals tucker2"
            return None
        if _modes(site) is None:
            prime = site.c_out if balanced_factors(site.c_out, 2) is None else site.c_in
            return f"{prime} is prime or 1: it has no factors to be modes"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        if site.kind == "conv2d":
            kh, kw = site.kernel
            full = (min(site.c_in, kh * kw * site.c_out), min(site.c_out, kh * kw * site.c_in))
            middle = min(full[0] * kh, full[1] * kw)
            rows = [
                (a, b, c)
                for a in _levels(full[0], LEVELS)
                for b in _levels(middle, LEVELS + 2)
                for c in _levels(full[1], LEVELS)
                if a <= kh * b and c <= kw * b and b <= min(a * kh, c * kw)  # else a bond is wider than its neighbours can use
            ]
            return np.array(rows, dtype=np.int64)
        out, into = _checked(site)
        sizes = [o * i for o, i in zip(out, into, strict=True)]
        if len(sizes) == 2:
            return np.arange(1, min(sizes) + 1, dtype=np.int64)[:, None]
        first, middle, last = sizes
        full = (min(first, middle * last), min(last, first * middle))
        rows = [(a, b) for a in _levels(full[0], 16) for b in _levels(full[1], 16) if a <= middle * b and b <= middle * a]
        return np.array(rows, dtype=np.int64)

    def _links(self, site: Site, r1: Any, r2: Any, r3: Any) -> list[Link]:
        return [Link(site.c_in, r1), Link(r1, r2, (True, False)), Link(r2, r3, (False, True)), Link(r3, site.c_out)]

    def links(self, site: Site, ranks: np.ndarray) -> list[Link] | None:
        return self._links(site, *ranks.T) if site.kind == "conv2d" else None

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if site.kind == "conv2d":
            return chain_costs(site, self._links(site, *ranks.T), len(ranks))
        out, into = _checked(site)
        one = np.ones(len(ranks), dtype=np.int64)
        bonds = [one, *ranks.T, one]
        params = np.full(len(ranks), site.c_out if site.bias else 0, dtype=np.int64)
        macs = np.zeros(len(ranks), dtype=np.int64)
        for k, (o, i) in enumerate(zip(out, into, strict=True)):
            weights = bonds[k] * o * i * bonds[k + 1]
            params += weights
            macs += weights * math.prod(into[:k]) * math.prod(out[k + 1 :]) * site.positions
        return params, macs

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> TrainState:
        dense = weight.double()
        moments = conditioned(moments, dense)
        tensor = _fold(site, dense)
        unroot_first = unroot_last = None
        if site.kind == "conv2d" and not is_weight_metric(moments):
            # whitened by what acts on the channels alone, which leaves a train a train of the same bonds
            root_last, unroot_last = whitener(moments.output, site.c_out, dense[None])
            root_first, unroot_first = whitener(channel_moment(moments, site.c_in), site.c_in, dense[None])
            tensor = torch.einsum("pa,amb,bq->pmq", root_first[0], tensor, root_last[0])
        first, last = _basis(tensor.flatten(1)), _basis(tensor.flatten(0, 1).mT)
        core = torch.einsum("amb,ap,bq->pmq", tensor, first, last)
        if unroot_first is not None and unroot_last is not None:
            first, last = unroot_first[0] @ first, unroot_last[0] @ last
        return TrainState(site, core, first, last, dense, moments)

    def errors(self, state: TrainState) -> Errors:
        ranks = self.ranks(state.site)
        if not is_weight_metric(state.moments):
            return self._measured(state, ranks)
        energy = state.core.square().sum(dim=1)  # (m_first, m_last)
        total = float(energy.sum())
        outer = torch.cat([energy.sum(dim=0), energy.new_zeros(1)])
        residual, operator = np.zeros(len(ranks)), np.full(len(ranks), np.nan)
        tails: dict[tuple[int, int], np.ndarray] = {}
        for k, row in enumerate(ranks.tolist()):
            a, c = (row[0], row[-1])
            beside = float(energy[a:, :c].sum())  # sums of non-negative terms alone: no cancellation near full rank
            if len(row) == 3:
                if (a, c) not in tails:
                    tails[a, c] = _tails(_middle(state, a, c))
                beside += float(tails[a, c][row[1]])
                # columns outside the kept block are singular vectors of C_out x (C_in kh kw); the rest is bounded
                operator[k] = float(outer[c]) + beside
            residual[k] = beside + float(outer[c:].sum())
        top = float(outer[0])
        bound = ratio(operator, top) if len(ranks[0]) == 3 else operator
        return Errors(ranks, ratio(residual, total), bound, total**0.5, operator_is="bound")

    def _measured(self, state: TrainState, ranks: np.ndarray) -> Errors:
        """Errors in a metric of the very factors that `factors` gives, of some of the ranks cheaper than dense and the full."""
        c_out, d = state.site.c_out, state.weight[0].numel()
        saving = ranks[:-1][cheaper(state.site, *self.costs(state.site, ranks[:-1]))]
        count = min(len(saving), MEASURED, max(24, int(WORK / (2 * c_out * d * d))))
        ranks = np.concatenate([saving[np.linspace(0, len(saving) - 1, count).round().astype(int)], ranks[-1:]])
        norm = residual_energy(state.weight[None], state.moments) ** 0.5
        energy = np.array([self._energy(state, self.factors(state, tuple(row))) for row in ranks.tolist()])
        nothing = np.zeros(len(ranks)) if norm == 0 else np.full(len(ranks), np.nan)
        return Errors(ranks, ratio(energy, norm**2), nothing, norm, frobenius_is="measured", operator_is="measured")

    def _start(self, state: TrainState, rank: Rank) -> tuple[Tensor, ...]:
        """Truncation; in a metric with the output factor of a convolution refitted in closed form."""
        site = state.site
        if site.kind != "conv2d":
            out, into = _checked(site)
            if len(rank) == 1:
                parts = [state.first[:, : rank[0]], state.core[: rank[0], 0] @ state.last.mT]
            else:
                a, c = rank
                parts = [state.first[:, :a], state.core[:a, :, :c], state.last[:, :c].mT]
            bonds = (1, *rank, 1)
            cores = [p.reshape(bonds[k], out[k], into[k], bonds[k + 1]) for k, p in enumerate(parts)]
            return _even(cores)
        r1, r2, r3 = rank
        kh, kw = site.kernel
        left, right = truncate(spectrum(_middle(state, r1, r3)[None]), r2)
        height = left[0].reshape(r1, kh, r2).permute(2, 0, 1)
        width = right[0].reshape(r2, kw, r3).permute(2, 0, 1)
        factors = (state.first[:, :r1].mT, height, width, state.last[:, :r3])
        if not is_weight_metric(state.moments):
            rows = torch.einsum("cbw,bah,ai->cihw", width, height, factors[0]).flatten(1)
            fitted = refit_output(state.weight.flatten(1), rows, state.moments)
            if self._energy(state, (*factors[:3], fitted)) <= self._energy(state, factors):
                factors = (*factors[:3], fitted)
        return _even(factors)

    def _energy(self, state: TrainState, factors: tuple[Tensor, ...]) -> float:
        return residual_energy((state.weight - self.compose(state.site, factors))[None], state.moments)

    def factors(self, state: TrainState, rank: Rank) -> tuple[Tensor, ...]:
        factors = self._start(state, rank)
        if is_weight_metric(state.moments):
            return factors

        def compose(parts: Sequence[Tensor]) -> Tensor:
            return self.compose(state.site, tuple(parts))[None]

        return _even(refine(compose, factors, state.weight[None], state.moments))

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        if site.kind == "conv2d":
            first, middle, last = rank
            kh, kw = site.kernel
            return blank((first, site.c_in), (middle, first, kh), (last, middle, kw), (site.c_out, last))
        bonds = (1, *rank, 1)
        out, into = _checked(site)
        return blank(*((bonds[k], o, i, bonds[k + 1]) for k, (o, i) in enumerate(zip(out, into, strict=True))))

    def describe(self, site: Site, rank: Rank) -> str:
        return "bonds " + "-".join(map(str, rank))

    def axes(self, site: Site) -> tuple[str, ...] | None:
        return ("a i", "b a h", "c b w", "o c") if site.kind == "conv2d" else None

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        if site.kind == "conv2d":
            first, height, width, last = factors  # (r1, c_in), (r2, r1, kh), (r3, r2, kw), (c_out, r3)
            left = torch.einsum("bah,ai->bhi", height, first)
            right = torch.einsum("oc,cbw->obw", last, width)
            return torch.einsum("obw,bhi->oihw", right, left)
        train = factors[0]  # cores of shape (r_{k-1}, o_k, i_k, r_k)
        for core in factors[1:]:
            train = torch.tensordot(train, core, dims=1)
        sizes = train.shape[1:-1]
        order = [*range(0, len(sizes), 2), *range(1, len(sizes), 2)]
        return train.reshape(sizes).permute(order).reshape(site.shape)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        if site.kind != "conv2d":
            return TrainLinear(factors, bias)
        first, height, width, last = factors
        weights = (first[:, :, None, None], height[:, :, :, None], width[:, :, None, :], last[:, :, None, None])
        return chain_module(site, self._links(site, *(f.shape[0] for f in factors[:3])), weights, bias)


class TrainLinear(nn.Module):
    """y = W x + b with W a tensor train over factorised dimensions: one ``nn.Linear`` per mode, the last mode first,
    and reshapes. Mode k maps (i_k, r_k) to (o_k, r_{k-1}) for every value of the modes before and after it."""

    def __init__(self, cores: Sequence[Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.out_modes = tuple(int(c.shape[1]) for c in cores)
        self.in_modes = tuple(int(c.shape[2]) for c in cores)
        self.bonds = tuple(int(c.shape[0]) for c in cores)  # r_{k-1} of mode k
        layers = []
        for core in cores:
            left, out, into, right = core.shape
            layer = nn.utils.skip_init(nn.Linear, into * right, out * left, bias=False, device=core.device, dtype=core.dtype)  # pyright: ignore[reportArgumentType]
            with torch.no_grad():
                layer.get_parameter("weight").copy_(core.permute(1, 0, 2, 3).reshape(out * left, into * right))
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(cores[0]).clone())

    @property
    def core_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """(r_{k-1}, o_k, i_k, r_k) of every mode k."""
        modes = zip(self.bonds, self.out_modes, self.in_modes, (*self.bonds[1:], 1), strict=True)
        return tuple((left, out, into, right) for left, out, into, right in modes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., c_in) to (..., c_out)."""
        leading = x.shape[:-1]
        done = 1  # product of the output modes so far
        y = x.reshape(-1, 1, math.prod(self.in_modes[:-1]), self.in_modes[-1])
        for k in reversed(range(len(self.layers))):
            y = self.layers[k](y).reshape(-1, done, math.prod(self.in_modes[:k]), self.out_modes[k], self.bonds[k])
            y = y.permute(0, 3, 1, 2, 4)
            done *= self.out_modes[k]
            y = y.reshape(-1, done, math.prod(self.in_modes[: max(k - 1, 0)]), self.bonds[k] * (self.in_modes[k - 1] if k else 1))
        y = y.reshape(*leading, done)
        return y if self.bias is None else y + self.bias


def _modes(site: Site) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Output and input modes of a linear site: three each where every factor is at least 4, else two. The large
    factors of one side go with the small ones of the other, so that the products are alike."""
    for count, least in ((3, 4), (2, 2)):
        out, into = balanced_factors(site.c_out, count), balanced_factors(site.c_in, count)
        if out is not None and into is not None and min(*out, *into) >= least:
            return out, into[::-1]
    return None


def _checked(site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    modes = _modes(site)
    assert modes is not None, "asked of a site that the type is undefined for"
    return modes


def _fold(site: Site, dense: Tensor) -> Tensor:
    """The canonical weight as (first mode, modes between, last mode)."""
    if site.kind == "conv2d":
        return dense.permute(1, 2, 3, 0).flatten(1, 2)
    out, into = _checked(site)
    count = len(out)
    order = [m for k in range(count) for m in (k, count + k)]
    paired = dense.reshape(*out, *into).permute(order)
    return paired.reshape(out[0] * into[0], -1, out[-1] * into[-1])


def _basis(unfolding: Tensor) -> Tensor:
    return eigh(unfolding @ unfolding.mT)[1].flip(-1)


def _middle(state: TrainState, r1: int, r3: int) -> Tensor:
    """The kept block as a matrix (r1 kh) x (kw r3)."""
    kh, kw = state.site.kernel
    return state.core[:r1, :, :r3].reshape(r1 * kh, kw * r3)


def _tails(matrix: Tensor) -> np.ndarray:
    """Energy left out by every rank 0, 1, ... of a matrix."""
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    values = eigvalsh(gram).clamp_min(0.0).cpu().numpy()
    return np.concatenate([np.cumsum(values)[::-1], [0.0]])


def _levels(full: int, count: int) -> list[int]:
    """``full`` and widths below it, each smaller by sqrt(2) and rounded to multiples at which kernels are fast; ascending."""
    levels = {full}
    for k in range(1, count):
        value = full * 2.0 ** (-k / 2)
        unit = 8 if value >= 32 else 4 if value >= 16 else 2 if value >= 8 else 1
        levels.add(min(full, max(1, unit * round(value / unit))))
    return sorted(levels)


def _even(factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same network with factors of equal norm, so that weight decay and step sizes treat them alike."""
    norms = [float(f.norm()) for f in factors]
    if min(norms) <= 0.0 or not all(map(math.isfinite, norms)):
        return tuple(factors)
    level = math.exp(sum(map(math.log, norms)) / len(norms))
    return tuple(f * (level / n) for f, n in zip(factors, norms, strict=True))
