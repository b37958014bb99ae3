"""Alternating least squares for a sum of rank-one tensors (Harshman 1970; Carroll and Chang 1970), in the plain norm and in
a metric.

Factors are lists of matrices of shape (n_k, r), output channels first, input channels second, then the kernel's sides. In the
plain norm every factor has a closed form; a sweep multiplies with the whole tensor twice, once for the output factor and once for
all the others together (a dimension tree, Phan et al. 2013). In a metric tr(G E A E^T) the output factor has a closed form,
the same for every G; the others are linear systems without structure, solved by a few conjugate-gradient steps preconditioned
by what they would be if A were the Kronecker product of its marginals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.decompositions.kronecker import Matrix, times, trace
from ranksearch.decompositions.metric import Moments, half
from ranksearch.decompositions.refinement import refit_output
from ranksearch.decompositions.symmetric import cholesky_ex

TINY = torch.finfo(torch.float64).tiny
STRETCH = 0.5  # sweeps go on the way they went by this share at first, more while that pays
STEPS = 1  # of conjugate gradients per factor and sweep
RIDGE = 1e-12  # keeps components that coincide apart, relative to each of them


def rank_one(factors: Sequence[Tensor]) -> Tensor:
    """The rank-one tensors of factors of shape (n_k, r), flattened into columns (Khatri-Rao), shape: (n_1 ... n_d, r)."""
    return _rows([f.mT for f in factors]).mT


def compose(factors: Sequence[Tensor]) -> Tensor:
    """Sum of rank-one tensors, shape: (n_1, ..., n_d)."""
    return (factors[0] @ rank_one(factors[1:]).mT).reshape([f.shape[0] for f in factors])


def sweep(tensor: Tensor, start: Sequence[Tensor], ridge: float, *, sweeps: int, enough: float) -> list[Tensor] | None:
    """Alternating least squares in the plain norm, every sweep extrapolated as long as the error falls (Ang et al. 2019).

    Args:
        tensor: shape (n_1, ..., n_d).
        ridge: penalty on the squared factors.
        sweeps: at most so many.
        enough: sweeps end where one gains less than this share of the squared error.

    Returns:
        Factors of the least error found; None where the normal equations are singular.
    """
    flat = tensor.flatten(1)
    energy = float(flat.square().sum())
    ahead = [f.mT.contiguous() for f in start]  # (r, n_k): what the next sweep starts from
    best, least, stretch = ahead, math.inf, STRETCH
    for _ in range(sweeps):
        found, error = _swept(flat, tensor.shape[1:], ahead, energy, ridge)
        if found is None:
            return None if best is ahead else [f.mT for f in best]
        if not error < least:  # the way was wrong: back, and plainly
            if stretch == 0.0 or best is ahead:
                break
            ahead, stretch = best, 0.0
            continue
        gain, before = least - error, best
        best, least = found, error
        if gain < enough * least:
            break
        ahead = [f + stretch * (f - g) for f, g in zip(found, before, strict=True)] if math.isfinite(gain) and stretch else found
        stretch = min(1.0, 1.25 * stretch) if stretch else STRETCH
    return [f.mT for f in best]


def _swept(
    flat: Tensor, sides: Sequence[int], rows: list[Tensor], energy: float, ridge: float
) -> tuple[list[Tensor] | None, float]:
    """One sweep and the squared error after it; rows of shape (r, n_k)."""
    rows = list(rows)
    grams = [f @ f.mT for f in rows]
    out = _solve(_product(grams[1:]), _rows(rows[1:]) @ flat.mT, ridge)
    if out is None:
        return None, math.inf
    rows[0], grams[0] = out, out @ out.mT
    open_ = out @ flat  # (r, n_2 ... n_d): the output contracted, the others open
    seen = out
    for k in range(1, len(rows)):
        rest = rows[k + 1 :]
        seen = open_ if not rest else (open_.unflatten(1, (sides[k - 1], -1)) @ _rows(rest)[..., None])[..., 0]
        found = _solve(_product([g for j, g in enumerate(grams) if j != k]), seen, ridge)
        if found is None:
            return None, math.inf
        rows[k], grams[k] = found, found @ found.mT
        if rest:
            open_ = (found[:, None, :] @ open_.unflatten(1, (sides[k - 1], -1)))[:, 0]
    # |T - X|^2 = |T|^2 - 2 <T, X> + |X|^2, of what the last solve has at hand
    return rows, max(0.0, energy - 2 * float((seen * rows[-1]).sum()) + float(_product(grams).sum()))


def _rows(rows: Sequence[Tensor]) -> Tensor:
    """`rank_one` of (r, n_k), shape (r, n_1 ... n_d)."""
    product = rows[0]
    for other in rows[1:]:
        product = (product[:, :, None] * other[:, None, :]).flatten(1)
    return product


def _product(grams: Sequence[Tensor]) -> Tensor:
    product = grams[0]
    for gram in grams[1:]:
        product = product * gram
    return product


def _solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor | None:
    """The X with (gram + ridge) X = right, shape (r, n); None where that is singular."""
    penalised = gram.clone()
    penalised.diagonal().add_(ridge)
    factor, failed = cholesky_ex(penalised)
    return None if int(failed) else torch.cholesky_solve(right, factor)


# -- in a metric -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A weight and its metric, as all fits need them: moments have trace 1, for only their shape matters.
    The marginals are those of A over each mode of a patch: their Kronecker product has its trace."""

    weight: Tensor  # W, float64, shape: (o, d)
    input: Matrix  # A, shape: (d, d)
    output_half: Tensor | None  # C_G, lower triangular, shape: (o, o); None: identity
    seen: Tensor  # C_G^T W A, shape: (o, d)
    marginals: tuple[Tensor, ...]  # shape: (n_k, n_k) each, of the input channels and the kernel's sides above 1
    halves: tuple[Tensor, ...]  # their Cholesky factors


def target(weight: Tensor, moments: Moments) -> Target:
    """`Target` of a canonical weight, float64, shape (c_out, c_in, kh, kw); the moments are `conditioned`, with one of the input."""
    assert moments.input is not None
    flat, a = weight.flatten(1), _scaled(moments.input[0])
    output_half = None if moments.output is None else half(moments.output / moments.output.diagonal(dim1=1, dim2=2).sum())[0]
    seen = times(flat if output_half is None else output_half.mT @ flat, a)
    every = _marginals(a, weight.shape[1:])
    marginals = tuple(m / m.diagonal().sum() for m in every[:1] + [m for m in every[1:] if len(m) > 1])
    return Target(flat, a, output_half, seen, marginals, tuple(half(m[None])[0] for m in marginals))


def _scaled(moment: Matrix) -> Matrix:
    """With trace 1."""
    return moment / trace(moment) if isinstance(moment, Tensor) else moment * (1 / float(trace(moment)))


def _marginals(moment: Matrix, patch: tuple[int, ...]) -> list[Tensor]:
    """Of a moment (d, d) over each mode of a patch (channels, kh, kw), the others traced out."""
    if isinstance(moment, Tensor):
        blocks = moment.reshape(*patch, *patch)
        return [torch.einsum("ihwjhw->ij", blocks), torch.einsum("ihwivw->hv", blocks), torch.einsum("ihwihv->wv", blocks)]
    taps = moment.tap.reshape(*patch[1:], *patch[1:])
    height, width = torch.einsum("hwvw->hv", taps), torch.einsum("hwhv->wv", taps)
    return [moment.channel * trace(moment.tap), height * trace(moment.channel), width * trace(moment.channel)]


def refine(factors: Sequence[Tensor], target: Target, *, sweeps: int, steps: int = STEPS) -> list[Tensor]:
    """Alternating least squares in the metric: the best output factor, then ``sweeps`` times all the others and the
    output factor again. The error never grows but by rounding.

    Args:
        factors: shape (n_k, r) each; the output factor is not used.
    """
    kernel = [f.mT for f in factors[1:]]
    out = _output(kernel, target)
    for _ in range(sweeps):
        white = out if target.output_half is None else target.output_half.mT @ out
        pairs = white.mT @ white
        grams = [f @ m @ f.mT for f, m in zip(kernel, target.marginals, strict=True)]
        residual = white.mT @ target.seen - _apply(target, white, pairs, _rows(kernel))
        for k in range(len(kernel)):
            left = _precondition(pairs * _product([g for j, g in enumerate(grams) if j != k]))
            kernel[k], residual = _better(kernel, k, residual, target, white, pairs, left, steps)
            grams[k] = kernel[k] @ target.marginals[k] @ kernel[k].mT
        out = _output(kernel, target)
    return [out, *(f.mT for f in kernel)]


def _better(
    kernel: Sequence[Tensor], k: int, residual: Tensor, target: Target, white: Tensor, pairs: Tensor, left: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """One factor after ``steps`` of preconditioned conjugate gradients, and the residual B^T G E A (r, d) with it."""

    def precondition(gradient: Tensor) -> Tensor:
        return torch.cholesky_solve(torch.cholesky_solve(gradient, left).mT, target.halves[k]).mT

    current = kernel[k]
    direction, last = None, 0.0
    for _ in range(steps):
        gradient = _pull_back(kernel, k, residual)
        step = precondition(gradient)
        size = float((gradient * step).sum())
        if not size > 0.0:
            break
        direction = step if direction is None else step + (size / last) * direction
        last = size
        rows = _rows([direction if j == k else f for j, f in enumerate(kernel)])
        image = _apply(target, white, pairs, rows)
        curvature = float((rows * image).sum())
        if not curvature > 0.0:
            break
        current = current + (size / curvature) * direction
        residual = residual - (size / curvature) * image
    return current, residual


def _pull_back(kernel: Sequence[Tensor], k: int, rows: Tensor) -> Tensor:
    """Rows (r, d) contracted with all factors (r, n) but one, shape (r, n_k)."""
    for factor in kernel[:k]:
        rows = (factor[:, None, :] @ rows.unflatten(1, (factor.shape[1], -1)))[:, 0]
    rest = kernel[k + 1 :]
    return rows if not rest else (rows.unflatten(1, (kernel[k].shape[1], -1)) @ _rows(rest)[..., None])[..., 0]


def _precondition(normal: Tensor) -> Tensor:
    """Cholesky factor of normal equations, with a ridge that makes them regular."""
    regular = normal.clone()
    regular.diagonal().mul_(1 + 1e-9).add_(1e-12 * float(normal.diagonal().max()) + TINY)
    factor, failed = cholesky_ex(regular)
    return torch.diag(regular.diagonal().sqrt()) if int(failed) else factor


def _apply(target: Target, white: Tensor, pairs: Tensor, rows: Tensor) -> Tensor:
    """B^T G B rows A, of shape (r, d), through the narrower side."""
    if len(pairs) < len(white):
        return times(pairs @ rows, target.input)
    return white.mT @ times(white @ rows, target.input)


def _output(kernel: Sequence[Tensor], target: Target) -> Tensor:
    """The output factor (o, r) that is best for the others: W A K (K^T A K)^-1."""
    rows = _rows(kernel)
    seen = times(rows, target.input)
    gram = seen @ rows.mT
    scale = gram.diagonal().clamp_min(TINY).rsqrt()
    gram = gram * scale[:, None] * scale
    gram.diagonal().add_(RIDGE)
    factor, failed = cholesky_ex(gram)
    if int(failed):
        return refit_output(target.weight, rows, Moments(target.input[None]))
    return (torch.cholesky_solve(scale[:, None] * (seen @ target.weight.mT), factor) * scale[:, None]).mT
