"""Errors and least squares in the metric |R|^2 = tr(G R A R^T), for factors that no closed form gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ranksearch.decompositions.decomposition import Moments


def apply_metric(residual: Tensor, moments: Moments) -> Tensor:
    """G R A, the gradient of half the energy; shapes as `residual_energy`."""
    flat = residual.flatten(2)
    if moments.input is not None:
        flat = flat @ moments.input.to(flat)
    if moments.output is not None:
        flat = moments.output.to(flat) @ flat
    return flat.reshape(residual.shape)


def residual_energy(residual: Tensor, moments: Moments) -> float:
    """tr(G R A R^T), summed over groups.

    Args:
        residual: shape (groups, c_out / groups, c_in / groups, kh, kw).
        moments: the metric; ``None`` entries are identities.
    """
    return float((residual * apply_metric(residual, moments)).sum().clamp_min(0.0))


def refine(
    compose: Callable[[Sequence[Tensor]], Tensor],
    factors: Sequence[Tensor],
    weight: Tensor,
    moments: Moments,
    *,
    sweeps: int = 2,
    steps: int = 6,
) -> tuple[Tensor, ...]:
    """Alternating weighted least squares: for one factor after the other, a few conjugate-gradient steps on
    |weight - compose(factors)|^2 in the metric, which is quadratic in each factor. The error never grows.

    Args:
        compose: multilinear in the factors; its value has the shape of ``weight``.
        weight: shape (groups, c_out / groups, c_in / groups, kh, kw), float64.
    """
    current = [f.detach().clone() for f in factors]
    with torch.no_grad():
        slope = apply_metric(weight - compose(current), moments)
    floor = 1e-28 * residual_energy(weight, moments)
    for _ in range(sweeps):
        for k in range(len(current)):
            direction, last = None, 0.0
            for _ in range(steps):
                gradient = _pull_back(compose, current, k, slope)
                size = float(gradient.square().sum())
                if not size > 0.0:
                    break
                direction = gradient if direction is None else gradient + (size / last) * direction
                last = size
                with torch.no_grad():
                    change = compose([direction if j == k else f for j, f in enumerate(current)])
                    sloped = apply_metric(change, moments)
                    curvature = float((change * sloped).sum())
                    ascent = float((gradient * direction).sum())
                    if not curvature > 0.0 or ascent**2 <= floor * curvature:  # what is left to gain is rounding
                        break
                    step = ascent / curvature
                    current[k] = current[k] + step * direction
                    slope = slope - step * sloped
    return tuple(current)


def _pull_back(compose: Callable[[Sequence[Tensor]], Tensor], factors: Sequence[Tensor], k: int, slope: Tensor) -> Tensor:
    """The adjoint of ``compose`` in factor ``k``, applied to ``slope``."""
    with torch.enable_grad():
        variable = factors[k].detach().requires_grad_()
        value = compose([variable if j == k else f for j, f in enumerate(factors)])
        (gradient,) = torch.autograd.grad(value, variable, slope)
    return gradient


def channel_moment(moments: Moments, c_in: int) -> Tensor | None:
    """The part of A that acts on the input channels alone: the mean of its diagonal blocks over kernel positions,
    shape (groups, c_in, c_in). A whitening by it keeps the mode structure of the kernel."""
    if moments.input is None:
        return None
    groups, d, _ = moments.input.shape
    taps = d // c_in
    blocks = moments.input.reshape(groups, c_in, taps, c_in, taps)
    return blocks.diagonal(dim1=2, dim2=4).mean(-1)


def refit_output(weight: Tensor, rows: Tensor, moments: Moments) -> Tensor:
    """The B that minimises |weight - B rows| in the metric: W A K^T (K A K^T)^+, whatever the output moment is.

    Args:
        weight: shape (c_out, d); rows: shape (r, d). Directions that A does not see are left at zero.
    """
    weighted = rows if moments.input is None else rows @ moments.input[0].to(rows)
    gram = weighted @ rows.mT
    scale = gram.diagonal().clamp_min(0.0).sqrt()  # columns to unit norm: components differ by orders of magnitude
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    inverse = torch.linalg.pinv(gram / scale[:, None] / scale, rtol=1e-12, hermitian=True)
    return ((weight @ weighted.mT) / scale) @ inverse / scale
