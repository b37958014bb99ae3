"""Least squares in the metric |R|^2 = tr(G R A R^T), for factors that no closed form gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ranksearch.decompositions.kronecker import times
from ranksearch.decompositions.metric import Moments, apply_metric, residual_energy, unit_of


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
    |weight - compose(factors)|^2 in the metric, which is quadratic in each factor. The error never grows. Factors of integers (an
    order of channels) stay.

    Args:
        compose: multilinear in the factors; its value has the shape of ``weight``.
        weight: shape (groups, c_out / groups, c_in / groups, kh, kw), float64.
    """
    current = [f.detach().clone() for f in factors]
    energy = residual_energy(weight, moments)
    unit = unit_of(energy)
    with torch.no_grad():
        slope = unit * apply_metric(weight - compose(current), moments)
    floor = 1e-28 * unit * energy
    for _ in range(sweeps):
        for k in (k for k, factor in enumerate(current) if factor.is_floating_point()):
            direction, last, pull_back = None, 0.0, _adjoint(compose, current, k)
            for _ in range(steps):
                gradient = pull_back(slope)
                size = float(gradient.square().sum())
                if not size > 0.0:
                    break
                direction = gradient if direction is None else gradient + (size / last) * direction
                last = size
                with torch.no_grad():
                    change = compose([direction if j == k else f for j, f in enumerate(current)])
                    sloped = unit * apply_metric(change, moments)
                    curvature = float((change * sloped).sum())
                    ascent = float((gradient * direction).sum())
                    if not curvature > 0.0 or ascent**2 <= floor * curvature:  # what is left to gain is rounding
                        break
                    step = ascent / curvature
                    current[k] = current[k] + step * direction
                    slope = slope - step * sloped
    return tuple(current)


def _adjoint(compose: Callable[[Sequence[Tensor]], Tensor], factors: Sequence[Tensor], k: int) -> Callable[[Tensor], Tensor]:
    """The adjoint of ``compose`` in factor ``k``. It depends on the other factors alone, so one graph serves however factor ``k`` moves."""
    with torch.enable_grad():
        variable = factors[k].detach().requires_grad_()
        value = compose([variable if j == k else f for j, f in enumerate(factors)])
    return lambda slope: torch.autograd.grad(value, variable, slope, retain_graph=True)[0]


def refit_output(weight: Tensor, rows: Tensor, moments: Moments) -> Tensor:
    """The B that minimises |weight - B rows| in the metric: W A K^T (K A K^T)^+, whatever the output moment is.

    Args:
        weight: shape (c_out, d); rows: shape (r, d). Directions that A does not see are left at zero.
    """
    weighted, scale, inverse = _normal(rows, moments)
    return ((weight @ weighted.mT) / scale) @ inverse / scale


def projector(rows: Tensor, moments: Moments) -> Tensor:
    """What `refit_output` makes of the identity, shape (d, r): W times it is the B of any W."""
    weighted, scale, inverse = _normal(rows, moments)
    return (weighted.mT / scale) @ inverse / scale


def _normal(rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """K A, the norms of the rows of K in the metric, and (K A K^T)^+ of rows of norm 1."""
    weighted = rows if moments.input is None else times(rows, moments.input[0].to(rows))
    gram = weighted @ rows.mT
    scale = gram.diagonal().clamp_min(0.0).sqrt()  # columns to unit norm: components differ by orders of magnitude
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return weighted, scale, torch.linalg.pinv(gram / scale[:, None] / scale, rtol=1e-12, hermitian=True)
