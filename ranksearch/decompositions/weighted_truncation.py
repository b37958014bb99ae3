"""Truncations W[o, s, c] = sum_r L[o, s, r] R[r, c] of a weight with part s of its kernel taps folded into the rows:
``spatial`` (s = one kernel side), ``svd_in`` (s = all taps), and the input channels of ``tucker2``.

In the plain weight metric, or with an output moment alone, the truncated SVD is optimal. With an input moment A the
metric |E|^2 = sum E[o,s,c] G[o,o'] E[o',s',c'] A[s,c,s',c'] couples rows s of the folding and no closed form exists:
R starts from the SVD whitened by A's marginals over s and c; the best L for a given R is a weighted least-squares
problem, solved exactly by one Cholesky factorization; R descends on the error that is left by the best L (variable projection,
Golub and Pereyra 1973), by preconditioned conjugate gradients; no step raises the error.

The errors are those of exactly these factors, measured, on a geometric grid of ranks: errors of the start alone are cheap
for all ranks but up to 40 % too large, which would tilt every comparison towards the types with a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from ranksearch.decompositions.decomposition import AnyDecomposition, Errors, Rank, cheaper
from ranksearch.decompositions.folded_metric import FoldedMetric, applied, fold_metric
from ranksearch.decompositions.folding import Folding
from ranksearch.decompositions.kronecker import Kronecker, Matrix, solve_half, solve_moment, times
from ranksearch.decompositions.metric import Moments, conditioned, half
from ranksearch.decompositions.singular import svd
from ranksearch.decompositions.spectrum import Spectrum, equal_norms, ratio, spectrum, spectrum_errors, truncate
from ranksearch.decompositions.symmetric import eigh, eigvalsh
from ranksearch.sites import Site

SWEEPS = 8  # steps of R per rank, each with the best L for it, at most
FEWER, LITTLE = 2, 6e7  # no more than so many where they need more multiply-adds than that: large ranks start near their best
FIRST = 2  # more of them for the largest rank, which has no other to start from
WORK = 1.5e10  # multiply-adds spent on them per rank, at most, about; one step is always made, which gains most
TINY = torch.finfo(torch.float64).tiny
ENOUGH = 1e-3  # they end where one gains less than this share of the squared error
STRETCH = 1.5, 4.0  # a step's length over that which is best while L stays: of the first one, and at most
RANKS = 16  # of the grid that errors are measured on, about

P = TypeVar("P")


@dataclass(frozen=True)
class Folded:
    """A weight prepared in one folding and metric."""

    weight: Tensor  # float64, shape: (groups, o, s, c)
    spectrum: Spectrum  # of the (whitened) matrix (o s) x c
    output_half: Tensor | None
    metric: FoldedMetric | None  # None: no input moment, the truncated SVD is optimal
    rows: Tensor | None  # with a metric: R of the start for all ranks, strongest first, shape: (groups, k, c)
    grid: np.ndarray  # with a metric: the ranks that errors are measured at, int64, shape: (n_ranks, 1)
    halves: tuple[Tensor, Tensor] | None = None  # of taps and channels, where the metric is their product: the truncated SVD is optimal
    found: dict[Rank, Tensor] = field(default_factory=dict)  # R of every rank of the grid, once asked for; see `Searched`


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
    start = spectrum(times(torch.einsum("gts,gotc->gosc", tap_half, whitened).flatten(1, 2), channel_half))
    if metric.exact and isinstance(channel_half, Tensor):
        return Folded(weight, start, metric.output_half, None, None, grid, (tap_half, channel_half))
    rows = solve_half(_right_vectors(start), channel_half)
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


def coordinates(seen: Weighted, rows: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """The best approximation of a weight from rows (x) taps, in the metric.

    Args:
        rows: shape (groups, k, c); spread: what `_spread` makes of them.

    Returns:
        The Cholesky factor Q of the rows' Gram matrix, shape (groups, k s, k s), ordered (k, s), and the coordinates Z of the weight in
        the orthonormal basis that it defines, shape (groups, k s, o): they capture the energy sum Z^2, and the best L
        solves Q^T (C_G^T L)^T = Z. O((k s)^3)."""
    groups, o, s, c = seen.goal.shape
    k = rows.shape[1]
    gram = (spread.flatten(1, 3) @ rows.mT).reshape(groups, k, s, s, k).permute(0, 1, 3, 4, 2).reshape(groups, k * s, k * s)
    moment = seen.goal.reshape(groups, o * s, c) @ rows.mT
    moment = moment.reshape(groups, o, s, k).permute(0, 3, 2, 1).reshape(groups, k * s, o)
    factor = half(gram)
    return factor, solve_triangular(factor, moment, upper=False)


def _spread(seen: Weighted, rows: Tensor) -> Tensor:
    """Rows (g, k, c) times every block of A, shape (g, k, s, t, c): entry (s, t) is rows A_ts."""
    groups, _, s, c = seen.goal.shape
    if seen.channel is not None:
        k, side = rows.shape[1], seen.blocks.shape[1]
        over_channels = rows.reshape(groups, k, -1, side).transpose(2, 3).reshape(groups, k * side, -1) @ seen.channel
        by_channel = over_channels.reshape(groups, k, side, -1).transpose(2, 3).reshape(groups, -1, side) @ seen.blocks
        return by_channel.reshape(groups, k, -1, s, s, side).permute(0, 1, 3, 4, 2, 5).reshape(groups, k, s, s, c)
    return (rows @ seen.blocks).reshape(groups, -1, s, s, c)


def errors(state: Folded) -> Errors:
    """Errors of all ranks, exact; with an input moment those of the ranks of the grid, measured on the factors that
    `factors` gives. The operator norm is then that of the lowered C_out x (C_in kh kw) matrix."""
    if state.metric is None:
        return spectrum_errors(state.spectrum)
    if not state.found:
        _search(state, state.metric, weighted(state.metric, state.weight))
    return measured(state.metric, state.weight, state.grid, state.found[()])


def measured(metric: FoldedMetric, weight: Tensor, ranks: np.ndarray, squared: Tensor) -> Errors:
    """Errors from measured squared norms of residuals, Frobenius and operator, shape (n_ranks, 2)."""
    total, top = residual_norms(metric, weight)
    norms = squared.cpu().numpy()
    return Errors(ranks, ratio(norms[:, 0], total), ratio(norms[:, 1], top), total**0.5, "measured", "measured")


def left_over(gram: Tensor, captured: Tensor) -> list[float]:
    """Squared norms of a residual, Frobenius and operator, from the Gram matrices of C_G^T W and of what is captured of it, both in
    the metric, shape (groups, o, o): residuals of least squares are orthogonal to what is captured."""
    rest = gram - captured
    squared = max(0.0, float(rest.diagonal(dim1=1, dim2=2).sum()))
    return [squared, min(squared, max(0.0, float(eigvalsh((rest + rest.mT) / 2).max())))]


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
    gram = applied(metric, flat.reshape(residual.shape)).flatten(2) @ flat.mT
    frobenius = float(gram.diagonal(dim1=1, dim2=2).sum().clamp_min(0.0))
    return frobenius, min(frobenius, float(eigvalsh((gram + gram.mT) / 2).max().clamp_min(0.0)))


def factors(state: Folded, rank: int, *, sweeps: int | None = None, seen: Weighted | None = None) -> tuple[Tensor, Tensor]:
    """L of shape (groups, o s, rank) and R (groups, rank, c), component by component of equal norms. The rank may be off the grid.
    ``sweeps`` bounds the steps, which are else as many as `affordable`; ``seen`` is the weight's, where it is at hand."""
    metric, weight = state.metric, state.weight
    groups, o, s, _ = weight.shape
    if metric is None or state.rows is None:
        left, right = truncate(state.spectrum, rank)
        if state.halves is not None:
            tap_half, channel_half = state.halves
            left = solve_triangular(tap_half.mT[:, None], left.reshape(groups, o, s, rank), upper=True).reshape(groups, o * s, rank)
            right = solve_half(right, channel_half)
        if state.output_half is not None:
            left = solve_triangular(state.output_half.mT, left.reshape(groups, o, s * rank), upper=True).reshape(groups, o * s, rank)
        return equal_norms(left, right)
    seen = seen or weighted(metric, weight)
    if sweeps is None:
        left, right = _best(state, metric, seen, rank)
    else:
        left, right, _ = descend(metric, seen, state.rows[:, :rank], _fit(seen), sweeps)
    if metric.output_half is not None:
        left = solve_triangular(metric.output_half.mT, left.reshape(groups, o, s * rank), upper=True)
    return even(left.reshape(groups, o * s, rank), right)


def _best(state: Folded, metric: FoldedMetric, seen: Weighted, rank: int) -> tuple[Tensor, Tensor]:
    """C_G^T L and R of a rank, after all steps; a rank off the grid starts from the next one on it."""
    fit = _fit(seen)
    assert state.rows is not None
    if not affordable(state.weight, rank):  # R spans all columns
        right = torch.linalg.qr(state.rows[:, :rank].mT)[0].mT
        return seen.target @ right.mT[:, None], right
    if not state.found:
        _search(state, metric, seen)
    if (rank,) in state.found:
        return descend(metric, seen, state.found[rank,], fit, 0)[:2]
    above = min((r for r in state.grid[:, 0].tolist() if r > rank and affordable(state.weight, r)), default=None)
    start = state.rows
    if above is not None:
        start = strongest(metric, seen, *descend(metric, seen, state.found[above,], fit, 0)[:2])
    return descend(metric, seen, start[:, :rank], fit, affordable(state.weight, rank))[:2]


def _search(state: Folded, metric: FoldedMetric, seen: Weighted) -> None:
    """R of all ranks of the grid, from the largest to the smallest, each from the strongest part of the one before, or from the rows
    of the whitened SVD where that ends worse than these begin; and at () the squared norms of what is left over, shape (n_ranks, 2)."""
    start, more, norms = state.rows, FIRST, []
    assert start is not None and state.rows is not None
    plain = leading(seen, start[:, : max((r for r in state.grid[:, 0].tolist() if affordable(state.weight, r)), default=0)])
    for rank in state.grid[::-1, 0].tolist():
        steps = affordable(state.weight, rank)
        if not steps:  # R spans all columns
            norms.append([0.0, 0.0])
            continue
        left, right, z = descend(metric, seen, start[:, :rank], _fit(seen), steps + more)
        if z.square().sum() < plain[:, : rank * seen.goal.shape[2]].square().sum():
            left, right, z = descend(metric, seen, state.rows[:, :rank], _fit(seen), steps)
        norms.append(left_over(seen.gram, z.mT @ z))
        state.found[rank,] = right
        start, more = strongest(metric, seen, left, right), 0
    state.found[()] = torch.tensor(norms[::-1], dtype=torch.float64)


def _fit(seen: Weighted) -> Callable[[Tensor, Tensor], tuple[Tensor, float, Tensor]]:
    groups, o, s, _ = seen.goal.shape

    def fit(right: Tensor, spread: Tensor) -> tuple[Tensor, float, Tensor]:
        factor, z = coordinates(seen, right, spread)
        left = solve_triangular(factor.mT, z, upper=True).reshape(groups, -1, s, o).permute(0, 3, 2, 1)
        return left, float(z.square().sum()), z

    return fit


def leading(seen: Weighted, rows: Tensor) -> Tensor:
    """Coordinates Z of the weight, shape (groups, k s, o), see `coordinates`, of which the first r s are those for the first r of the
    rows, for every r."""
    rows = torch.linalg.qr(rows.mT)[0].mT.contiguous()
    return coordinates(seen, rows, _spread(seen, rows))[1]


def strongest(metric: FoldedMetric, seen: Weighted, left: Tensor, right: Tensor) -> Tensor:
    """R with the same span, shape (groups, r, c), the strongest directions of L R first: as it is whitened by A's marginals. Shapes:
    C_G^T L (groups, o, s, r), R (groups, r, c)."""
    orthonormal, triangle = torch.linalg.qr(times(right, seen.channel_half).mT)
    groups, o, s, r = left.shape
    white = (half(metric.taps).mT[:, None] @ left).reshape(groups, o * s, r) @ triangle.mT
    vectors = eigh(white.mT @ white)[1].flip(-1)
    return solve_half(vectors.mT @ orthonormal.mT, seen.channel_half)


@dataclass(frozen=True)
class Weighted:
    """What all steps need of a weight W, shape (groups, o, s, c), and its metric."""

    target: Tensor  # C_G^T W, shape: (groups, o, s, c)
    goal: Tensor  # C_G^T W A
    gram: Tensor  # C_G^T W A W^T C_G, shape: (groups, o, o)
    energy: float  # |W|^2 in the metric: its trace
    blocks: Tensor  # A_ts = A[t, :, s, :] side by side, shape: (groups, c, s t c); of a product those of its taps alone
    channel_half: Matrix  # lower triangular half of A's marginal over the channels, shape: (groups, c, c)
    channel: Tensor | None  # of a product, its channels


def weighted(metric: FoldedMetric, weight: Tensor) -> Weighted:
    """`Weighted` of a weight. O(o (s c)^2)."""
    groups, s = len(weight), weight.shape[2]
    target = weight if metric.output_half is None else torch.einsum("gpo,gpsc->gosc", metric.output_half, weight)
    goal = applied(metric, target)
    channel, every = None, metric.input
    if isinstance(every, Kronecker):
        channel, every = every.channel, every.tap.reshape(groups, s, -1, s, every.tap.shape[1] // s)
    blocks = every.permute(0, 2, 3, 1, 4).reshape(groups, every.shape[2], -1)
    gram = goal.flatten(2) @ target.flatten(2).mT
    energy = float(gram.diagonal(dim1=1, dim2=2).sum().clamp_min(0.0))
    return Weighted(target, goal, gram, energy, blocks, half(metric.channels), channel)


def descend(
    metric: FoldedMetric, seen: Weighted, right: Tensor, fit: Callable[[Tensor, Tensor], tuple[Tensor, float, P]], steps: int
) -> tuple[Tensor, Tensor, P]:
    """Variable projection from R of shape (groups, r, c): L is always the best one for R. The error never grows.

    Args:
        fit: of R and its `_spread`: the best C_G^T L, shape (groups, o, s, r), the energy it captures, and whatever else the caller
            needs of it.

    Returns:
        C_G^T L, R, and the rest of what ``fit`` gave for them.
    """
    right = torch.linalg.qr(right.mT)[0].mT.contiguous()  # only the span of R matters, L being refitted
    spread = _spread(seen, right)
    left, captured, rest = fit(right, spread)
    stretch = STRETCH[0]
    way = None
    for _ in range(steps):
        way = None if seen.energy - captured <= 1e-12 * seen.energy else _way(metric, seen, left, spread, way)
        if way is None:
            break

        place, found, stretch = _walked(way, right, spread, fit, captured, stretch)
        if not found[1] > captured:
            break
        gain = (found[1] - captured) / (seen.energy - captured)
        (right, spread), (left, captured, rest) = place, found
        if gain < ENOUGH:
            break
    return left, right, rest


def _walked(
    way: Way, right: Tensor, spread: Tensor, fit: Callable[[Tensor, Tensor], tuple[Tensor, float, P]], captured: float, stretch: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, float, P], float]:
    """R and its spread after a step, the fit there, and by how much the next step is to be stretched. L follows R, so that the error
    bends less along the way than it does with L fixed; how much less is known after a step, and taken for the next."""

    def at(length: float) -> tuple[Tensor, Tensor]:
        return torch.add(right, way.direction, alpha=length), torch.add(spread, way.spread, alpha=length)

    length = stretch * way.slope / way.curvature
    place = at(length)
    found = fit(*place)
    bend = (captured - found[1] + 2 * way.slope * length) / max(length, TINY) / max(length, TINY)
    if not found[1] > captured and bend * length > way.slope:  # too far: to the top of the parabola
        place = at(way.slope / bend)
        found = fit(*place)
    return place, found, STRETCH[1] if bend * STRETCH[1] <= way.curvature else max(1.0, way.curvature / bend)


@dataclass(frozen=True)
class Way:
    """A direction for R, and how the captured energy changes along it while L stays: by 2 t slope - t^2 curvature."""

    direction: Tensor  # shape: (groups, r, c)
    spread: Tensor  # its `_spread`
    slope: float
    curvature: float
    gradient: Tensor  # shape: (groups, r, c)
    size: float  # squared norm of the gradient, preconditioned


def _way(metric: FoldedMetric, seen: Weighted, left: Tensor, spread: Tensor, last: Way | None) -> Way | None:
    """The next direction of conjugate gradients (Polak and Ribiere 1969); None where there is no way up. The gradient of
    sum_ss' (L_s^T G L_s') R A_s's is preconditioned by what it would be if A were its marginals' Kronecker product."""
    groups, o, s, r = left.shape
    flat = left.reshape(groups, o, s * r)
    pairs = (flat.mT @ flat).reshape(groups, s, r, s, r).permute(0, 2, 4, 1, 3).reshape(groups, r, r * s * s)

    def pulled(spread: Tensor) -> Tensor:
        return pairs @ spread.reshape(groups, r * s * s, -1)

    mean = (pairs.reshape(groups, r * r, s * s) @ metric.taps.reshape(groups, s * s, 1)).reshape(groups, r, r)
    mean_half = half(mean)
    gradient = flat.reshape(groups, o * s, r).mT @ seen.goal.reshape(groups, o * s, -1) - pulled(spread)
    step = solve_moment(torch.cholesky_solve(gradient, mean_half), seen.channel_half)
    size = float((gradient * step).sum())
    direction, slope = step, size
    if last is not None and last.size > 0:
        share = max(0.0, size - float((last.gradient * step).sum())) / last.size
        ascent = size + share * float((gradient * last.direction).sum())
        if ascent > 0:
            direction, slope = step + share * last.direction, ascent
    image = _spread(seen, direction)
    curvature = float((direction * pulled(image)).sum())
    return Way(direction, image, slope, curvature, gradient, size) if slope > 0 and curvature > 0 else None


def affordable(weight: Tensor, rank: int) -> int:
    """Steps for a weight of shape (groups, o, s, c): `SWEEPS`, fewer where one is long, at least one; none where R spans
    all columns."""
    if rank >= weight.shape[3]:
        return 0
    once = work(weight, rank)
    return int(min(SWEEPS, max(1, LITTLE / once, min(FEWER, WORK / once))))


def work(weight: Tensor, rank: int) -> float:
    """Multiply-adds of one step with its fit, about."""
    groups, o, s, c = weight.shape
    solve = (rank * s) ** 3 / 3 + (rank * s) ** 2 * o
    return groups * (solve + rank * (s * c) ** 2 + 3 * (s * rank) ** 2 * c + 2 * o * s * rank * c)


def even(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with factors of equal norms, strongest component first. Shapes (groups, m, r), (groups, r, n)."""
    q1, t1 = torch.linalg.qr(left)
    q2, t2 = torch.linalg.qr(right.mT)
    u, sigma, vh = svd(t1 @ t2.mT)
    root = sigma.sqrt()
    return q1 @ (u * root[:, None, :]), (root[..., None] * vh) @ q2.mT
