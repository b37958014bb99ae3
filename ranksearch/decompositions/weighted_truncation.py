"""Truncations W[o, s, c] = sum_r L[o, s, r] R[r, c] of a weight with part s of its kernel taps folded into the rows:
``spatial`` (s = one kernel side), ``svd_in`` (s = all taps), and the input channels of ``tucker2``.

In the plain weight metric, or with an output moment alone, the truncated SVD is optimal. With an input moment A the
metric |E|^2 = sum E[o,s,c] G[o,o'] E[o',s',c'] A[s,c,s',c'] couples rows s of the folding and no closed form exists:
R starts from the SVD whitened by A's marginals over s and c; the best L for a given R is a weighted least-squares
problem, solved exactly by one Cholesky factorization; R for a given L is a linear system of Kronecker terms, solved by
preconditioned conjugate gradients; a few such sweeps, each extrapolated where that pays, never raise the error.

The errors are those of exactly these factors, measured, on a geometric grid of ranks: errors of the start alone are cheap
for all ranks but up to 40 % too large, which would tilt every comparison towards the types with a closed form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from ranksearch.decompositions.decomposition import AnyDecomposition, Errors, cheaper
from ranksearch.decompositions.folding import Folding
from ranksearch.decompositions.metric import Moments, conditioned, half
from ranksearch.decompositions.spectrum import Spectrum, ratio, spectrum, spectrum_errors, truncate
from ranksearch.sites import Site

SWEEPS = 8  # of alternating weighted least squares per rank, at most
WORK = 1.5e10  # multiply-adds spent on them per rank, about; one sweep is always made, which gains most
STEPS = 3  # conjugate-gradient steps per sweep, at most
ENOUGH = 1e-3  # sweeps end where one gains less than this share of the error; a step of theirs, of a tenth of it
RANKS = 16  # of the grid that errors are measured on, about

P = TypeVar("P")


@dataclass(frozen=True)
class FoldedMetric:
    """Conditioned moments in the order of a folding."""

    input: Tensor  # A, shape: (groups, s, c, s, c)
    output_half: Tensor | None  # C_G, lower triangular, shape: (groups, o, o); None: identity
    taps: Tensor  # marginal of A over c, shape: (groups, s, s); taps (x) channels has the trace of A
    channels: Tensor  # marginal of A over s, shape: (groups, c, c)


@dataclass(frozen=True)
class Folded:
    """A weight prepared in one folding and metric."""

    weight: Tensor  # float64, shape: (groups, o, s, c)
    spectrum: Spectrum  # of the (whitened) matrix (o s) x c
    output_half: Tensor | None
    metric: FoldedMetric | None  # None: no input moment, the truncated SVD is optimal
    rows: Tensor | None  # with a metric: R of the start for all ranks, strongest first, shape: (groups, k, c)
    grid: np.ndarray  # with a metric: the ranks that errors are measured at, int64, shape: (n_ranks, 1)


def measured_ranks(site: Site, decomposition: AnyDecomposition) -> np.ndarray:
    """The grid of a decomposition with one number for a rank: `geometric` up to the last rank that is cheaper than dense,
    and the full one; int64, shape (n_ranks, 1)."""
    ranks = decomposition.ranks(site)
    saving = ranks[cheaper(site, *decomposition.costs(site, ranks)), 0]
    grid = geometric(int(saving.max()) if len(saving) else 0, RANKS)
    return np.union1d(grid, ranks[-1])[:, None]


def geometric(top: int, count: int) -> np.ndarray:
    """About ``count`` of 1..top: powers of two, then 3, then 5 and 7, then 9 to 15 times powers of two, the largest of each
    first."""
    octaves = range(top.bit_length(), -1, -1)
    chosen = [1 << k for k in octaves if 1 << k <= top]
    more = [3 << k for k in octaves] + [m << k for odd in ((7, 5), (15, 13, 11, 9)) for k in octaves for m in odd]
    chosen += [m for m in more if m <= top][: max(0, count - len(chosen))]
    return np.array(sorted(chosen), dtype=np.int64)


def fold_metric(moments: Moments, folding: Folding, site: Site) -> FoldedMetric | None:
    """Conditioned moments in the order of a folding whose rows are (o, s) and columns c; None without an input moment."""
    if moments.input is None:
        return None
    order, patch, (groups, rows, c) = folding.patch_order, site.shape[1:], folding.shape(site)
    s = rows // (site.c_out // site.groups)
    a = moments.input.reshape(groups, *patch, *patch)
    a = a.permute(0, *(1 + i for i in order), *(4 + i for i in order)).reshape(groups, s, c, s, c)
    channels = torch.einsum("gscsd->gcd", a)
    taps = torch.einsum("gsctc->gst", a)
    taps = taps / taps.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    output_half = None if moments.output is None else half(moments.output)
    return FoldedMetric(a, output_half, taps, channels)


def prepare(site: Site, canonical: Tensor, moments: Moments | None, folding: Folding, grid: np.ndarray) -> Folded:
    """Prepare a canonical weight in a folding, with the ranks to measure where a metric asks for it, shape (n_ranks, 1)."""
    weight = folding.blocks(site, canonical.double())
    moments = conditioned(moments, weight)
    metric = fold_metric(moments, folding, site)
    if metric is None:
        output_half = None if moments.output is None else half(moments.output)
        matrix = weight if output_half is None else torch.einsum("gpo,gpsc->gosc", output_half, weight)
        return Folded(weight, spectrum(matrix.flatten(1, 2)), output_half, None, None, grid)
    whitened = weight if metric.output_half is None else torch.einsum("gpo,gpsc->gosc", metric.output_half, weight)
    tap_half, channel_half = half(metric.taps), half(metric.channels)
    whitened = torch.einsum("gts,gotc,gcd->gosd", tap_half, whitened, channel_half)
    start = spectrum(whitened.flatten(1, 2))
    rows = _right_vectors(start)
    rows = solve_triangular(channel_half, rows, upper=False, left=False)
    return Folded(weight, start, metric.output_half, metric, rows, grid)


def _right_vectors(start: Spectrum) -> Tensor:
    if not start.left:
        return start.basis.mT
    scale = start.energies.sqrt()
    rows = start.basis.mT @ start.matrix
    sound = scale > scale[:, :1] * 1e-7
    rows = torch.where(sound[..., None], rows / torch.where(sound, scale, 1.0)[..., None], 0.0)
    if bool(sound.all()):
        return rows
    # components without energy: any orthonormal completion serves, so that every rank has independent rows
    eye = torch.eye(rows.shape[2]).to(rows).expand(len(rows), -1, -1)
    return torch.linalg.qr(torch.cat([rows, eye], dim=1).mT)[0].mT[:, : rows.shape[1]]


def coordinates(metric: FoldedMetric, weight: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The best approximation of ``weight`` from rows (x) taps, in the metric.

    Returns the Cholesky factor Q of the rows' Gram matrix, shape (groups, k s, k s), ordered (k, s), and the
    coordinates Z of the weight in the orthonormal basis that it defines, shape (groups, k, s, o): the first r of the k
    rows capture the energy sum Z[:r]^2, and the best L for them solves Q_r^T L^T = Z[:r]. O((k s)^3)."""
    groups, o, s, _c = weight.shape
    k = rows.shape[1]
    spread = _spread(rows, metric.input)
    gram = (spread.flatten(1, 3) @ rows.mT).reshape(groups, s, k, s, k).permute(0, 2, 1, 4, 3).reshape(groups, k * s, k * s)
    moment = spread.transpose(1, 2).reshape(groups, k * s, -1) @ weight.reshape(groups, o, -1).mT
    if metric.output_half is not None:
        moment = moment @ metric.output_half
    factor = half((gram + gram.mT) / 2)
    return factor, solve_triangular(factor, moment, upper=False).reshape(groups, k, s, o)


def _spread(rows: Tensor, a: Tensor) -> Tensor:
    """Rows (g, k, c) times every block row of A (g, s, c, s, c), shape (g, s, k, s, c). Unlike einsum, no copy of A."""
    groups, s, c, t, d = a.shape
    return (rows[:, None] @ a.reshape(groups, s, c, t * d)).reshape(groups, s, -1, t, d)


def errors(state: Folded) -> Errors:
    """Errors of all ranks, exact; with an input moment those of the ranks of the grid, measured on the factors that
    `factors` gives. The operator norm is then that of the lowered C_out x (C_in kh kw) matrix."""
    if state.metric is None:
        return spectrum_errors(state.spectrum)
    seen = weighted(state.metric, state.weight)
    parts = (factors(state, int(rank), seen=seen) for rank in state.grid[:, 0])
    return measured(state.metric, state.weight, state.grid, ((left @ right).reshape(state.weight.shape) for left, right in parts))


def measured(metric: FoldedMetric, weight: Tensor, ranks: np.ndarray, built: Iterable[Tensor]) -> Errors:
    """Errors of dense weights that were built, of shape (groups, o, s, c) each, in the metric."""
    total, top = residual_norms(metric, weight)
    found = np.array([residual_norms(metric, weight - dense) for dense in built]).reshape(len(ranks), 2)
    return Errors(ranks, ratio(found[:, 0], total), ratio(found[:, 1], top), total**0.5, "measured", "measured")


def bounded(ranks: np.ndarray, residual: np.ndarray, total: float, top: float) -> Errors:
    """Errors from squared residuals; the operator norm is bounded by the Frobenius norm. ``top``: squared operator norm of
    the weight."""
    return Errors(ranks, ratio(residual, total), ratio(residual, top), float(total) ** 0.5, "bound", "bound")


def largest(metric: FoldedMetric, weight: Tensor) -> float:
    """Squared operator norm of C_G^T W A W^T C_G: of the lowered weight in the metric."""
    return residual_norms(metric, weight)[1]


def residual_norms(metric: FoldedMetric, residual: Tensor) -> tuple[float, float]:
    """Squared Frobenius norm, and squared operator norm (largest over groups), of C_G^T E A^(1/2)."""
    flat = residual.flatten(2)
    if metric.output_half is not None:
        flat = metric.output_half.mT @ flat
    d = flat.shape[2]
    gram = flat @ metric.input.reshape(-1, d, d) @ flat.mT
    frobenius = float(gram.diagonal(dim1=1, dim2=2).sum().clamp_min(0.0))
    return frobenius, min(frobenius, float(torch.linalg.eigvalsh((gram + gram.mT) / 2).max().clamp_min(0.0)))


def factors(state: Folded, rank: int, *, sweeps: int | None = None, seen: Weighted | None = None) -> tuple[Tensor, Tensor]:
    """L of shape (groups, o s, rank) and R (groups, rank, c), of equal norms. Any rank, also off the grid.
    ``sweeps``: at most so many, or as many as `affordable`; ``seen``: the weight's, where it is at hand."""
    metric, weight = state.metric, state.weight
    if metric is None or state.rows is None:
        left, right = truncate(state.spectrum, rank)
        if state.output_half is not None:
            groups, o, s, _ = weight.shape
            left = solve_triangular(state.output_half.mT, left.reshape(groups, o, s * rank), upper=True).reshape(groups, o * s, rank)
        return left, right

    def fit(right: Tensor) -> tuple[Tensor, float, None]:
        return (*best_left(metric, weight, right), None)

    count = affordable(weight, rank) if sweeps is None else sweeps
    left, right, _ = alternate(metric, seen or weighted(metric, weight), state.rows[:, :rank], fit, count)
    return even(left.flatten(1, 2), right)


@dataclass(frozen=True)
class Weighted:
    """What all sweeps need of a weight W, shape (groups, o, s, c): O(o (s c)^2), which on large layers is more than a sweep."""

    target: Tensor  # C_G^T W, shape: (groups, o, s, c)
    goal: Tensor  # C_G^T W A
    energy: float  # |W|^2 in the metric


def weighted(metric: FoldedMetric, weight: Tensor) -> Weighted:
    """`Weighted` of a weight."""
    groups, o, s, c = weight.shape
    target = weight if metric.output_half is None else torch.einsum("gpo,gpsc->gosc", metric.output_half, weight)
    goal = (target.reshape(groups, o, s * c) @ metric.input.reshape(groups, s * c, s * c)).reshape(groups, o, s, c)
    return Weighted(target, goal, float((goal * target).sum().clamp_min(0.0)))


def alternate(
    metric: FoldedMetric, seen: Weighted, right: Tensor, fit: Callable[[Tensor], tuple[Tensor, float, P]], sweeps: int
) -> tuple[Tensor, Tensor, P]:
    """Alternating weighted least squares from R of shape (groups, r, c). The error never grows.

    Args:
        fit: the best L for an R with orthonormal rows, the energy it captures, and whatever else the caller needs of it.

    Returns:
        L, R, and the rest of what ``fit`` gave for them.
    """
    right = torch.linalg.qr(right.mT)[0].mT  # only the span of R matters, L being refitted
    left, captured, rest = fit(right)
    total = seen.energy
    stretch = 1.0
    for sweep in range(sweeps):
        if total - captured <= 1e-12 * total:
            break
        before = right
        right, gain = better_right(metric, seen, left, before)
        right = torch.linalg.qr(right.mT)[0].mT
        if sweep:  # sweeps creep along valleys: go further the same way, if that is better than where they started
            u, _, vh = torch.linalg.svd(before @ right.mT)
            aligned = u @ (vh @ right)
            further = torch.linalg.qr((aligned + stretch * (aligned - before)).mT)[0].mT
            found = fit(further)
            if found[1] > captured * (1 + 1e-15):
                right, (left, captured, rest), stretch = further, found, 1.5 * stretch
                if gain < ENOUGH:
                    break
                continue
            stretch = max(0.5, 0.5 * stretch)
        left, captured, rest = fit(right)
        if gain < ENOUGH:
            break
    return left, right, rest


def affordable(weight: Tensor, rank: int) -> int:
    """Sweeps for a weight of shape (groups, o, s, c): `SWEEPS`, fewer where one is long, at least one; none where R spans
    all columns."""
    return 0 if rank >= weight.shape[3] else int(min(SWEEPS, max(1, WORK / work(weight, rank))))


def work(weight: Tensor, rank: int) -> float:
    """Multiply-adds of one sweep, about."""
    groups, o, s, c = weight.shape
    solve = (rank * s) ** 3 / 3 + rank * (s * c) ** 2 + rank * s * o * s * c
    steps = STEPS * (s * rank * s * c * c + (s * rank) ** 2 * c)
    return groups * (solve + steps)


def best_left(metric: FoldedMetric, weight: Tensor, right: Tensor) -> tuple[Tensor, float]:
    """The L that minimises |W - L R| for a given R, shape (groups, o, s, r): weighted least squares, the same for every
    output moment. And the energy that it captures."""
    groups, o, s, _ = weight.shape
    r = right.shape[1]
    factor, z = coordinates(FoldedMetric(metric.input, None, metric.taps, metric.channels), weight, right)
    z = z.reshape(groups, r * s, o)
    captured = float((z if metric.output_half is None else z @ metric.output_half).square().sum())
    left = solve_triangular(factor.mT, z, upper=True)
    return left.reshape(groups, r, s, o).permute(0, 3, 2, 1), captured


def better_right(metric: FoldedMetric, seen: Weighted, left: Tensor, right: Tensor, *, steps: int = STEPS) -> tuple[Tensor, float]:
    """An R with |W - L R| no larger than before, L given: preconditioned conjugate gradients on
    sum_ss' (L_s^T G L_s') R A_s's = sum_s L_s^T (G W A)_s. Shapes: left (groups, o, s, r), right (groups, r, c).
    Also returns the share of the squared error that was gained."""
    whitened = left if metric.output_half is None else torch.einsum("gpo,gpsr->gosr", metric.output_half, left)
    pairs = torch.einsum("gosp,gotr->gsptr", whitened, whitened)

    def system(x: Tensor) -> Tensor:
        return torch.einsum("gsptr,gtrsc->gpc", pairs, _spread(x, metric.input))

    energy = seen.energy
    goal = torch.einsum("gosr,gosc->grc", whitened, seen.goal)
    mean = torch.einsum("gst,gsptr->gpr", metric.taps, pairs)
    ridge = mean.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(torch.finfo(torch.float64).tiny) * 1e-13
    mean_half = half((mean + mean.mT) / 2 + ridge[:, None, None] * torch.eye(mean.shape[1]).to(mean))
    channel_half = half(metric.channels)

    def precondition(x: Tensor) -> Tensor:
        return torch.cholesky_solve(torch.cholesky_solve(x, mean_half).mT, channel_half).mT

    image = system(right)
    residual = goal - image
    before = max(energy - float((right * (goal + residual)).sum()), 1e-14 * energy)  # |W|^2 - 2 <R, goal> + <R, system(R)>
    gained = 0.0
    step = precondition(residual)
    size = float((residual * step).sum())
    direction = step
    for _ in range(steps):
        image = system(direction)
        curvature = float((direction * image).sum())
        if not (curvature > 0 and size > 0):
            break
        right = right + (size / curvature) * direction
        gained += size * size / curvature
        if size * size / curvature < 0.1 * ENOUGH * before:
            break
        residual = residual - (size / curvature) * image
        step = precondition(residual)
        size, last = float((residual * step).sum()), size
        direction = step + (size / last) * direction
    return right, gained / before


def even(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with factors of equal norms, strongest component first. Shapes (groups, m, r), (groups, r, n)."""
    q1, t1 = torch.linalg.qr(left)
    q2, t2 = torch.linalg.qr(right.mT)
    u, sigma, vh = torch.linalg.svd(t1 @ t2.mT)
    root = sigma.sqrt()
    return q1 @ (u * root[:, None, :]), (root[..., None] * vh) @ q2.mT
