"""The lowered weight cut into p x t tiles (rows of C_out, groups of input channels), an SVD each at the same rank:
``grouped_svd`` (p = 1) and ``tiled_svd``.

The Frobenius error is the tail sum over all tiles. The operator norm is that of the *whole* residual, not the largest
over tiles (which understates it) and not sqrt(t) times that (a bound): the largest eigenvalue of the residual's Gram
matrix, which is small and assembled from the tiles' tails, for every rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from ranksearch.decompositions.chain import Link, chain_costs
from ranksearch.decompositions.decomposition import Errors, cheaper
from ranksearch.decompositions.folding import FOLDINGS, join_tiles, split_tiles
from ranksearch.decompositions.kronecker import Matrix, block, diagonal_blocks, solve_half, solve_moment, times
from ranksearch.decompositions.metric import Moments, conditioned, half, residual_energy
from ranksearch.decompositions.spectrum import equal_norms, ratio, spectrum, truncate
from ranksearch.decompositions.symmetric import eigvalsh
from ranksearch.sites import Site

COUNT = 48  # ranks listed per structure, about: every one of them is an eigenproblem
SWEEPS = 2  # over all tiles, when factors are asked for in a metric that couples them
Cut = tuple[int, int]  # (row tiles p, input-channel tiles t)


@dataclass(frozen=True)
class TileState:
    """A weight and metric; spectra are taken per cut, when asked for."""

    weight: Tensor  # float64, lowered, shape: (c_out, c_in kh kw)
    ranks: np.ndarray  # int64, shape: (n_ranks, 3): p, t, r
    moments: Moments  # conditioned: that of the whole lowered weight, which couples tiles

    @property
    def input(self) -> Matrix | None:
        """A, shape (d, d)."""
        return None if self.moments.input is None else self.moments.input[0]

    @property
    def output(self) -> Tensor | None:
        """G, shape (c_out, c_out)."""
        return None if self.moments.output is None else self.moments.output[0]


def links(site: Site, p: np.ndarray | int, t: np.ndarray | int, r: np.ndarray | int) -> list[Link]:
    """A kernel layer in t groups to r channels per tile, channels sorted by row tile, a 1 x 1 layer in p groups."""
    inner = p * t * r
    shuffle = t if isinstance(p, int) and isinstance(t, int) and p > 1 and t > 1 else 1
    return [Link(site.c_in, inner, (True, True), t, shuffle), Link(inner, site.c_out, groups=p)]


def tile_ranks(site: Site, cuts: list[Cut]) -> np.ndarray:
    """Rows (p, t, r): per cut the ranks cheaper than dense, thinned to multiples of a power of two where there are
    many, and the full one."""
    rows = []
    for p, t in cuts:
        full = min(site.c_out // p, site.shape[1] // t * site.kernel[0] * site.kernel[1])
        r = np.arange(1, full + 1, dtype=np.int64)
        params, macs = chain_costs(site, links(site, p, t, r), full)
        kept = thinned(r[cheaper(site, params, macs)])
        kept = kept if len(kept) and kept[-1] == full else np.append(kept, full)
        rows.append(np.stack([np.full_like(kept, p), np.full_like(kept, t), kept], axis=1))
    return np.concatenate(rows)


def thinned(ranks: np.ndarray) -> np.ndarray:
    """About ``COUNT`` of 1..n: powers of two, then the multiples of one."""
    step = 1
    while len(ranks) > COUNT * step:
        step *= 2
    return ranks[(ranks % step == 0) | (ranks & (ranks - 1) == 0) & (ranks < step)]


def prepare(site: Site, weight: Tensor, ranks: np.ndarray, moments: Moments | None) -> TileState:
    matrix = FOLDINGS["svd"].fold(site, weight)[0].to(torch.float64)
    return TileState(matrix, ranks, conditioned(moments, matrix))


def errors(state: TileState) -> Errors:
    """Errors of all listed ranks. Where the moments couple tiles they are those of each tile's own best factors, exact
    for these, hence a bound for the refined ones."""
    ranks = state.ranks
    frobenius, operator = np.zeros(len(ranks)), np.zeros(len(ranks))
    plain = state.input is None and state.output is None
    total = residual_energy(state.weight[None], state.moments)
    if plain:
        small = state.weight @ state.weight.T if state.weight.shape[0] <= state.weight.shape[1] else state.weight.T @ state.weight
    else:
        white = state.weight if state.moments.output is None else half(state.moments.output)[0].T @ state.weight
        small = white @ white.T if state.input is None else times(white, state.input) @ white.T
    top = float(eigvalsh(small)[-1].clamp_min(0.0))
    for p, t in sorted({(int(p), int(t)) for p, t, _ in ranks}):
        rows = np.flatnonzero((ranks[:, 0] == p) & (ranks[:, 1] == t))
        chosen = ranks[rows, 2]
        if plain:
            u, sigma, v = _decompose(split_tiles(state.weight, p, t))
            energies = sigma.square().sum(dim=(0, 1)).cpu().numpy()
            frobenius[rows] = np.append(np.cumsum(energies[::-1])[::-1], 0.0)[chosen]
            operator[rows] = residual_norms(u, sigma, v, chosen)
        else:
            frobenius[rows] = operator[rows] = _coupled(state, p, t)[chosen]
    quality = "exact" if plain else "bound"
    return Errors(ranks, ratio(frobenius, total), ratio(operator, top), total**0.5, quality, quality)


def squared_errors(state: TileState, p: int, t: int) -> np.ndarray:
    """Squared Frobenius errors of ranks 0..k of every tile's own best factors, in the metric."""
    if state.input is not None or state.output is not None:
        return _coupled(state, p, t)
    energies = spectrum(split_tiles(state.weight, p, t).flatten(0, 1)).energies.sum(dim=0).cpu().numpy()
    return np.append(np.cumsum(energies[::-1])[::-1], 0.0)


def _decompose(tiles: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of tiles (p, t, m, n): U (p, t, m, k), sigma (p, t, k), V (p, t, n, k); components without energy are zero
    on the longer side."""
    p, t, m, n = tiles.shape
    found = spectrum(tiles.reshape(p * t, m, n))
    sigma, basis = found.energies.sqrt(), found.basis
    inverse = torch.where(sigma > sigma.max() * 1e-12, 1.0 / sigma, 0.0)[:, None, :]
    if found.left:
        u, v = basis, (found.matrix.mT @ basis) * inverse
    else:
        u, v = (found.matrix @ basis) * inverse, basis
    return u.reshape(p, t, m, -1), sigma.reshape(p, t, -1), v.reshape(p, t, n, -1)


def residual_norms(u: Tensor, sigma: Tensor, v: Tensor, ranks: np.ndarray) -> np.ndarray:
    """Squared operator norm of the whole residual at each of ``ranks`` (ascending), by the smaller Gram matrix."""
    p, t, m, k = u.shape
    if p * m > t * v.shape[2]:
        u, sigma, v = v.transpose(0, 1), sigma.transpose(0, 1), u.transpose(0, 1)
        p, t, m, k = u.shape
    size = p * m
    # (R R^T)_ii' = sum_j U_ij[:, r:] (S V_ij^T V_i'j S)[r:, r:] U_i'j[:, r:]^T
    inner = torch.einsum("ijna,kjnb->ijkab", v * sigma[:, :, None, :], v * sigma[:, :, None, :]) if p > 1 else None
    result = np.zeros(len(ranks))
    grams: list[Tensor] = []
    places: list[int] = []

    def solve() -> None:
        if grams:
            result[places] = eigvalsh(torch.stack(grams))[:, -1].clamp_min(0.0).cpu().numpy()
            grams.clear()
            places.clear()

    gram, last = u.new_zeros(size, size), k
    for place in range(len(ranks) - 1, -1, -1):
        r = int(ranks[place])
        if r >= k:
            continue
        if inner is None:  # tails only add up
            part = (u[0, :, :, r:last] * sigma[0, :, None, r:last]).permute(1, 0, 2).reshape(m, -1)
            gram, last = gram + part @ part.T, r
        else:
            gram = u.new_zeros(p, m, p, m)
            for i in range(p):
                for i2 in range(i, p):
                    block = (u[i, :, :, r:] @ inner[i, :, i2, r:, r:] @ u[i2, :, :, r:].mT).sum(dim=0)
                    gram[i, :, i2], gram[i2, :, i] = block, block.T
            gram = gram.reshape(size, size)
        grams.append(gram)
        places.append(place)
        if len(grams) * size * size > 1 << 22:
            solve()
    solve()
    return result


def _coupled(state: TileState, p: int, t: int) -> np.ndarray:
    """Squared errors in the metric of ranks 0..k of each tile's own best factors: with components D_a of the residual,
    the sum over a, b >= r of <D_a, D_b>, over all pairs of tiles that the metric couples."""
    left, right = _start(state, p, t, None)
    k = left.shape[3]
    products = left.new_zeros(k, k)
    d, m = right.shape[3], left.shape[2]
    tiles = [(i, j) for i in range(p) for j in range(t)]
    for a, (i, j) in enumerate(tiles):
        for i2, j2 in tiles[a:]:
            if (i != i2 and state.output is None) or (j != j2 and state.input is None):
                continue
            x = left[i2, j2] if state.output is None else state.output[i * m : i * m + m, i2 * m : i2 * m + m] @ left[i2, j2]
            y = right[i2, j2]
            if state.input is not None:
                y = times(y, block(state.input, slice(j2 * d, j2 * d + d), slice(j * d, j * d + d)))
            pair = (left[i, j].T @ x) * (right[i, j] @ y.T)
            products += pair if (i, j) == (i2, j2) else pair + pair.T
    gained = 2 * products.triu(1).sum(dim=1) + products.diagonal()
    tails = np.append(np.cumsum(gained.cpu().numpy()[::-1])[::-1], 0.0)
    return np.maximum(tails, 0.0)


def _halves(state: TileState, p: int, t: int) -> tuple[Tensor | None, Matrix | None]:
    """Triangular halves of the diagonal blocks of G (p, m, m) and A (t, n, n)."""
    g, a = state.output, state.input
    return None if g is None else half(diagonal_blocks(g, p)), None if a is None else half(diagonal_blocks(a, t))


def _start(state: TileState, p: int, t: int, rank: int | None) -> tuple[Tensor, Tensor]:
    """Each tile's own best factors of ``rank`` (None: all): (p, t, m, r) and (p, t, r, n)."""
    out, inp = _halves(state, p, t)
    return _best(split_tiles(state.weight, p, t), out, inp, rank)


def _best(tiles: Tensor, out: Tensor | None, inp: Matrix | None, rank: int | None) -> tuple[Tensor, Tensor]:
    p, t, m, n = tiles.shape
    white = tiles if out is None else out.mT[:, None] @ tiles
    white = white if inp is None else times(white, inp[None])
    left, right = truncate(spectrum(white.reshape(p * t, m, n)), min(m, n) if rank is None else rank)
    left, right = left.unflatten(0, (p, t)), right.unflatten(0, (p, t))
    left = left if out is None else solve_triangular(out.mT[:, None], left, upper=True)
    return left, right if inp is None else solve_half(right, inp[None])


def factors(state: TileState, p: int, t: int, rank: int, *, sweeps: int = SWEEPS) -> tuple[Tensor, Tensor]:
    """Factors of all tiles, (p, t, m, r) and (p, t, r, n), of equal norms. Where the metric couples tiles, each in turn becomes the best
    approximation of what the others leave over; the error never grows."""
    left, right = _start(state, p, t, rank)
    coupled = (p > 1 and state.output is not None) or (t > 1 and state.input is not None)
    if not coupled or not bool((state.weight != 0).any()):
        return equal_norms(left, right)
    left, right = left.clone(), right.clone()
    out, inp = _halves(state, p, t)
    residual = split_tiles(state.weight, p, t) - left @ right
    residual = residual.contiguous()
    for _ in range(sweeps):
        for i in range(p):
            for j in range(t):
                pull = _pull(state, residual, i, j)
                # minimising tr(G R A R^T) over this tile: the residual's optimum is 0 after adding the pull
                if out is not None:
                    pull = torch.cholesky_solve(pull, out[i])
                if inp is not None:
                    pull = solve_moment(pull, inp[j])
                target = left[i, j] @ right[i, j] + pull
                one, two = _best(target[None, None], None if out is None else out[i, None], None if inp is None else inp[j, None], rank)
                residual[i, j] += left[i, j] @ right[i, j] - one[0, 0] @ two[0, 0]
                left[i, j], right[i, j] = one[0, 0], two[0, 0]
    return equal_norms(left, right)


def _pull(state: TileState, residual: Tensor, i: int, j: int) -> Tensor:
    """Tile (i, j) of G R A."""
    _p, _t, m, n = residual.shape
    columns = residual[:, j].flatten(0, 1)
    if state.input is not None:
        every = slice(0, state.weight.shape[1])
        columns = times(join_tiles(residual), block(state.input, every, slice(j * n, j * n + n)))
    return columns[i * m : i * m + m] if state.output is None else state.output[i * m : i * m + m] @ columns


def joined(left: Tensor, right: Tensor) -> Tensor:
    """The lowered weight that factors of tiles stand for."""
    return join_tiles(left @ right)


def compose(site: Site, left: Tensor, right: Tensor) -> Tensor:
    return FOLDINGS["svd"].unfold(site, joined(left, right))


def weights(site: Site, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Canonical weights of the two layers of `links`."""
    p, t, _m, r = left.shape
    first = right.transpose(0, 1).reshape(t * p * r, site.shape[1] // t, *site.kernel)
    # channels leave the first layer as (t, p, r); the shuffle makes that (p, r, t)
    second = left.permute(0, 2, 3, 1) if p > 1 and t > 1 else left.permute(0, 2, 1, 3)
    return first, second.reshape(site.c_out, t * r, 1, 1)
