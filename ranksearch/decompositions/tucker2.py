"""Tucker-2: projections of the input and output channels around a small core (Kim et al. 2016): 1 x 1 to r_in
channels, kh x kw to r_out, 1 x 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions import weighted_truncation
from ranksearch.decompositions.chain import Link, chain_costs, chain_module
from ranksearch.decompositions.decomposition import Decomposition, Errors, Rank, blank, cheaper
from ranksearch.decompositions.folded_metric import FoldedMetric, fold_metric
from ranksearch.decompositions.folding import FOLDINGS
from ranksearch.decompositions.kronecker import solve_half
from ranksearch.decompositions.metric import Moments, conditioned, half
from ranksearch.decompositions.spectrum import ratio
from ranksearch.decompositions.symmetric import eigh, eigvalsh
from ranksearch.decompositions.weighted_truncation import (
    Weighted,
    coordinates,
    descend,
    geometric,
    leading,
    left_over,
    measured,
    strongest,
    weighted,
)
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site

INPUT_RANKS, OUTPUT_RANKS = 10, 16  # of the grid of pairs that errors are measured on, about
FOLDING = FOLDINGS["svd_in"]  # taps beside the output channels, input channels as columns
ANCHORS = 4  # ratio of the output ranks that input bases are refined for
GOING_ON = 2  # steps for an anchor after the first, at most: they start near their best
FEW = 4  # steps: where fewer can be afforded, an input basis is refined once for all output ranks


@dataclass(frozen=True)
class TuckerState:
    """Higher-order SVD of the two channel modes (De Lathauwer et al. 2000): output rows whitened, input channels
    strongest first. With an input moment these are the input basis that refinement starts from."""

    weight: Tensor  # float64, shape: (groups, co, kh kw, ci)
    input_basis: Tensor  # shape: (groups, ci, ci): columns
    output_basis: Tensor | None  # shape: (groups, co, co), orthonormal columns, strongest first; None with an input moment
    core: Tensor | None  # shape: (groups, co, ci, kh kw); None with an input moment
    output_half: Tensor | None
    metric: FoldedMetric | None  # None: no input moment
    kernel: tuple[int, int]
    grid: np.ndarray  # pairs that errors are measured at, where there is no closed form: int64, shape (n_pairs, 2)
    halves: tuple[Tensor, Tensor] | None = None  # of taps and input channels, where the metric is their product: then as without one
    found: dict[Rank, Tensor] = field(default_factory=dict)  # by input rank and anchor: input bases as rows, see `Searched`


@dataclass(frozen=True)
class Regression:
    """The weight seen through an input basis, in coordinates that are orthonormal in the metric: every truncation of the
    output side is a truncated eigendecomposition (reduced-rank regression, Izenman 1975)."""

    factor: Tensor  # Cholesky factor of the basis's Gram matrix, shape: (groups, r_in s, r_in s)
    z: Tensor  # shape: (groups, r_in s, o)
    values: Tensor  # energies of the output directions, descending, shape: (groups, o)
    vectors: Tensor  # shape: (groups, o, o)


class Tucker2(Decomposition[TuckerState]):
    """Rank (r_in, r_out). One HOSVD gives the truncation error of every rank pair exactly: the energy of the core
    outside the kept block, a two-dimensional cumulative sum.

    Args:
        hooi: sweeps of higher-order orthogonal iteration (De Lathauwer et al. 2000) that refine the bases of every pair
            without an input moment; the errors are then measured on a grid of pairs. With an input moment pairs are
            always refined and measured.

    Raises:
        InvalidArgument: ``hooi`` is negative.
    """

    name = "tucker2"

    def __init__(self, *, hooi: int = 0) -> None:
        if hooi < 0:
            raise InvalidArgument(f"hooi={hooi}: a number of sweeps, 0 for the plain truncation")
        self.hooi = hooi

    def undefined(self, site: Site) -> str | None:
        if site.kind not in ("conv2d", "conv1d") and site.window is None:
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

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return self._links(site, ranks[:, 0], ranks[:, 1])

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self.links(site, ranks), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> TuckerState:
        blocks = FOLDING.blocks(site, weight.double())  # (g, o, s, i)
        moments = conditioned(moments, blocks)
        metric = fold_metric(moments, FOLDING, site)
        output_half = None if moments.output is None else half(moments.output)
        rows = blocks if output_half is None else torch.einsum("gpo,gpsi->gosi", output_half, blocks)
        halves = None
        grid = self._grid(site)
        if metric is not None:
            tap_half, channel_half = half(metric.taps), half(metric.channels)
            assert isinstance(channel_half, Tensor), "columns are channels alone"
            white = torch.einsum("gts,goti,gij->gosj", tap_half, rows, channel_half)
            if not metric.exact:
                basis = torch.linalg.solve_triangular(channel_half.mT, _leading(white.flatten(1, 2).mT), upper=True)
                return TuckerState(blocks, basis, None, None, output_half, metric, site.kernel, grid)
            rows, halves = white, (tap_half, channel_half)
        input_basis = _leading(rows.flatten(1, 2).mT)
        core = torch.einsum("gosi,giq->goqs", rows, input_basis)
        output_basis = _leading(core.flatten(2))
        core = torch.einsum("goqs,gop->gpqs", core, output_basis)
        return TuckerState(blocks, input_basis, output_basis, core, output_half, None, site.kernel, grid, halves)

    def _grid(self, site: Site) -> np.ndarray:
        """Pairs of geometric ranks that are cheaper than dense, and the full one, last."""
        c_in, c_out = site.c_in // site.groups, site.c_out // site.groups
        inner, outer = np.union1d(geometric(c_in, INPUT_RANKS), c_in), np.union1d(geometric(c_out, OUTPUT_RANKS), c_out)
        pairs = np.stack([g.ravel() for g in np.meshgrid(inner, outer, indexing="ij")], axis=1).astype(np.int64)
        keep = cheaper(site, *self.costs(site, pairs))
        keep[-1] = True
        return pairs[keep]

    def errors(self, state: TuckerState) -> Errors:
        if state.core is None:
            assert state.metric is not None
            if not state.found:
                _search(state, weighted(state.metric, state.weight))
            return measured(state.metric, state.weight, state.grid, state.found[()])
        if self.hooi:
            return self._iterated(state, state.core)
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
        return Errors(ranks, ratio(squared, total), ratio(operator, float(outer.max())), total**0.5, operator_is="bound")

    def _iterated(self, state: TuckerState, core: Tensor) -> Errors:
        """Errors of the pairs of the grid, measured on the bases that `factors` gives."""
        found = []
        for r_in, r_out in state.grid.tolist():
            into, out = _iterate(core, r_in, r_out, self.hooi)
            kept = torch.einsum("gop,gPp,gPqs,gqj,gij->gois", out, out, core, into, into)
            found.append(_norms((core - kept).flatten(2)))
        total, top = _norms(core.flatten(2))
        squared = np.array(found)
        return Errors(state.grid, ratio(squared[:, 0], total), ratio(squared[:, 1], top), total**0.5, "measured", "measured")

    def factors(self, state: TuckerState, rank: Rank) -> tuple[Tensor, ...]:
        """Input basis (g, ci, r_in), core (g, r_out, r_in, kh, kw), output basis (g, co, r_out), of any pair; the columns of the bases
        have norm 1. With an input moment, the best core and output basis for an input basis (reduced-rank regression, exact) and a
        better input basis for them are found in turn."""
        r_in, r_out = rank
        if state.metric is not None:
            seen = weighted(state.metric, state.weight)
            first, regression = _regressed(state, seen, r_in, _anchor(state, r_in, r_out))
            core, last = _truncate(state, regression, r_out)
            return unit_columns(first, core.unflatten(3, state.kernel), last)
        assert state.core is not None and state.output_basis is not None  # without an input moment
        if not self.hooi:
            first, core, last = state.input_basis[..., :r_in], state.core[:, :r_out, :r_in], state.output_basis[..., :r_out]
        else:
            into, out = _iterate(state.core, r_in, r_out, self.hooi)
            core = torch.einsum("gop,gois,gij->gpjs", out, state.core, into)
            first, last = state.input_basis @ into, state.output_basis @ out
        if state.halves is not None:
            tap_half, channel_half = state.halves
            core, first = solve_half(core.flatten(1, 2), tap_half).reshape(core.shape), _unwhiten(channel_half, first)
        return unit_columns(first, core.unflatten(3, state.kernel).contiguous(), _unwhiten(state.output_half, last))

    def describe(self, site: Site, rank: Rank) -> str:
        return f"in {rank[0]}, out {rank[1]}"

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        g, (c_out, c_in, *kernel) = site.groups, site.shape
        r_in, r_out = rank
        return blank((g, c_in, r_in), (g, r_out, r_in, *kernel), (g, c_out // g, r_out))

    def axes(self, site: Site) -> tuple[str, ...]:
        return "g i q", "g p q h w", "g o p"

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


def _anchor(state: TuckerState, r_in: int, r_out: int) -> int:
    """The output rank that the input basis of a pair is refined for: the next of c_out, c_out / 4, c_out / 16, ...; c_out
    alone where steps are so long that only a few can be made, and where the basis spans all channels."""
    anchor = state.weight.shape[1]
    few = weighted_truncation.work(state.weight, r_in) * FEW > weighted_truncation.WORK
    if not few and r_in < state.weight.shape[3]:
        while anchor // ANCHORS >= r_out:
            anchor //= ANCHORS
    return anchor


def _regressed(state: TuckerState, seen: Weighted, r_in: int, anchor: int) -> tuple[Tensor, Regression]:
    """An input basis of shape (g, ci, r_in), refined for an anchor, and the regression on it. All those of the grid are found
    together; others start from the higher-order SVD."""
    if not state.found:
        _search(state, seen)
    metric, known = state.metric, (r_in, anchor) in state.found
    assert metric is not None
    rows = state.found[r_in, anchor] if known else state.input_basis[..., :r_in].mT
    steps = 0 if known else weighted_truncation.affordable(state.weight, r_in)
    _, rows, regression = descend(metric, seen, rows, _fit(seen, anchor), steps)
    return rows.mT, regression


def _search(state: TuckerState, seen: Weighted) -> None:
    """From the largest input rank to the smallest, from the largest anchor to the smallest: each basis starts from the strongest part
    of that of the next input rank, or from that of the next anchor, or from the
    higher-order SVD where that ends worse than this begins. At () the squared norms of what all pairs leave over: with U the
    eigenvectors of Z^T Z kept and L its eigenvalues, they capture U L U^T."""
    metric, o = state.metric, state.weight.shape[1]
    assert metric is not None
    start, more = state.input_basis.mT, weighted_truncation.FIRST
    plain = leading(seen, start)
    norms: dict[tuple[int, int], list[float]] = {}
    for r_in in sorted(set(state.grid[:, 0].tolist()), reverse=True):
        steps = weighted_truncation.affordable(state.weight, r_in)
        z = plain[:, : r_in * state.weight.shape[2]]
        values = eigvalsh(z.mT @ z).flip(-1)
        outer = state.grid[state.grid[:, 0] == r_in, 1].tolist()
        rows, regressions = start[:, :r_in], dict[int, Regression]()
        for anchor in sorted({o, *(_anchor(state, r_in, r_out) for r_out in outer)}, reverse=True):
            first = anchor == o and steps > 0
            fit, going_on = _fit(seen, anchor), min(steps, GOING_ON)
            left, rows, regressions[anchor] = descend(metric, seen, rows, fit, steps + more if first else going_on)
            if regressions[anchor].values[:, :anchor].sum() < values[:, :anchor].sum():
                left, rows, regressions[anchor] = descend(metric, seen, state.input_basis[..., :r_in].mT, fit, steps)
            if first:
                start, more = strongest(metric, seen, left, rows), 0
            state.found[r_in, anchor] = rows
        for r_out in outer:
            regression = regressions[_anchor(state, r_in, r_out)]
            kept = regression.vectors[..., :r_out]
            norms[r_in, r_out] = left_over(seen.gram, (kept * regression.values[:, None, :r_out]) @ kept.mT)
    state.found[()] = torch.tensor([norms[r_in, r_out] for r_in, r_out in state.grid.tolist()], dtype=torch.float64)


def _fit(seen: Weighted, anchor: int) -> Callable[[Tensor, Tensor], tuple[Tensor, float, Regression]]:
    """The best core and output basis of rank ``anchor`` for an input basis."""

    def fit(rows: Tensor, spread: Tensor) -> tuple[Tensor, float, Regression]:
        regression = _regress(seen, rows, spread)
        left = regression.vectors[..., :anchor] @ _core(regression, anchor).mT
        return left.unflatten(2, (rows.shape[1], -1)).transpose(2, 3), float(regression.values[:, :anchor].sum()), regression

    return fit


def _regress(seen: Weighted, rows: Tensor, spread: Tensor) -> Regression:
    factor, z = coordinates(seen, rows, spread)
    values, vectors = eigh(z.mT @ z)
    return Regression(factor, z, values.flip(-1).clamp_min(0.0), vectors.flip(-1))


def _core(regression: Regression, r_out: int) -> Tensor:
    """The best core for the output basis kept, shape (g, r_in s, r_out)."""
    return torch.linalg.solve_triangular(regression.factor.mT, regression.z @ regression.vectors[..., :r_out], upper=True)


def _truncate(state: TuckerState, regression: Regression, r_out: int) -> tuple[Tensor, Tensor]:
    """The best core (g, r_out, r_in, s) and output basis (g, co, r_out) for the input basis of a regression."""
    core = _core(regression, r_out).unflatten(1, (-1, state.weight.shape[2])).permute(0, 3, 1, 2).contiguous()
    return core, _unwhiten(state.output_half, regression.vectors[..., :r_out])


def unit_columns(first: Tensor, core: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same product with the sizes of the bases' columns in the core, as where bases are orthonormal: what is led back from whitened
    coordinates has any size, and gradient steps would move the small factors alone."""
    one, other = (torch.where(norms > 0, norms, 1.0) for norms in (first.norm(dim=1), last.norm(dim=1)))
    return first / one[:, None], core * one[:, None, :, None, None] * other[:, :, None, None, None], last / other[:, None]


def _iterate(core: Tensor, r_in: int, r_out: int, sweeps: int) -> tuple[Tensor, Tensor]:
    """Higher-order orthogonal iteration from the HOSVD: bases of the modes of a core (g, o, i, s) in its own coordinates,
    (g, i, r_in) and (g, o, r_out). Each half sweep is optimal for the other basis, so the error never grows."""
    groups, c_out, c_in, _ = core.shape
    into = torch.eye(c_in).to(core)[:, :r_in].expand(groups, -1, -1)
    out = torch.eye(c_out).to(core)[:, :r_out].expand(groups, -1, -1)
    for _ in range(sweeps):
        out = _leading(torch.einsum("gois,gij->gojs", core, into).flatten(2))[..., :r_out]
        into = _leading(torch.einsum("gois,gop->gips", core, out).flatten(2))[..., :r_in]
    return into, out


def _leading(matrix: Tensor) -> Tensor:
    """Left singular vectors of matrices (g, m, n), strongest first, shape (g, m, m)."""
    return eigh(matrix @ matrix.mT)[1].flip(-1)


def _norms(matrix: Tensor) -> tuple[float, float]:
    """Squared Frobenius norm and squared operator norm (largest over groups) of matrices (g, m, n)."""
    values = eigvalsh(matrix @ matrix.mT).clamp_min(0.0)
    return float(matrix.square().sum()), float(values.max())


def _unwhiten(output_half: Tensor | None, columns: Tensor) -> Tensor:
    return columns if output_half is None else torch.linalg.solve_triangular(output_half.mT, columns, upper=True)
