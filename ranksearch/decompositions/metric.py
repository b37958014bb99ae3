"""The metric |R|^2 = tr(G R A R^T) that errors are taken in: second moments made safe to invert, their halves, and the energy of
a residual (K-FAC's Kronecker form of a layer's Fisher, arXiv 1602.01407)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ranksearch.decompositions.kronecker import Kronecker, Matrix, times
from ranksearch.decompositions.symmetric import cholesky_ex, eigh
from ranksearch.errors import InvalidArgument

FLOOR = 1e-8  # no eigenvalue of a moment counts for less than this share of the moment's trace
SMALLEST = 1e-280  # a trace below it counts as zero: its floor would be lost to underflow


@dataclass(frozen=True)
class Moments:
    """Second moments that define the metric an error is taken in: |W - W_r|^2 = tr(G (W - W_r) A (W - W_r)^T)
    per group. ``None`` stands for the identity; both ``None`` is the plain weight metric."""

    input: Matrix | None = None  # A, shape: (groups, d, d), d = c_in / groups * kh * kw, patch order (c_in, kh, kw); or a product
    output: Tensor | None = None  # G, shape: (groups, c_out / groups, c_out / groups)

    @property
    def metric(self) -> Literal["weight", "activation", "fisher"]:
        """The name of the metric these moments stand for."""
        if self.output is not None:
            return "fisher"
        return "weight" if self.input is None else "activation"

    @cached_property
    def floored(self) -> Moments:
        """The moments as they are used, see `floored`; all types of a site share them."""
        return Moments(None if self.input is None else floored(self.input), self.floored_output)

    @cached_property
    def floored_output(self) -> Tensor | None:
        """The output moment as it is used."""
        return None if self.output is None else floored(self.output)

    @property
    def input_half(self) -> Matrix | None:
        """The `half` of the input moment."""
        return None if self.input is None else half(self.input)

    def to(self, device: torch.device) -> Moments:
        """The same on a device."""
        output = None if self.output is None else self.output.to(device)
        return Moments(None if self.input is None else self.input.to(device), output)

    def __getstate__(self) -> dict[str, Any]:
        return {"input": self.input, "output": self.output}  # what is cached does not travel


@dataclass(frozen=True)
class FlooredMoments(Moments):
    """Moments that are `floored` already, so that they are used as they are."""

    triangle: Tensor | None = None  # the `half` of the input moment, where it is known

    def to(self, device: torch.device) -> Moments:
        """The same on a device."""
        return self if all(part is None or part.device == device for part in (self.input, self.output)) else super().to(device)

    @property
    def floored(self) -> Moments:  # pyright: ignore[reportIncompatibleVariableOverride]
        """These."""
        return self

    @property
    def floored_output(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The output moment."""
        return self.output

    @property
    def input_half(self) -> Matrix | None:
        """The `half` of the input moment."""
        return super().input_half if self.triangle is None else self.triangle


@overload
def floored(moment: Tensor) -> Tensor: ...
@overload
def floored(moment: Matrix) -> Matrix: ...
def floored(moment: Matrix) -> Matrix:
    """A second moment as it is used everywhere: float64, symmetric, no eigenvalue below ``FLOOR`` times its trace.

    Directions that calibration data never showed would otherwise be free, and rounding leaves singular moments slightly
    indefinite. A moment without such eigenvalues stays as it is, bit for bit; to others twice the floor is added. A group whose moment
    is zero has the floor of the group with the largest trace, so that it counts for next to nothing; a moment that is zero in all groups
    says nothing, and is the identity. Trial Cholesky factorizations, O(d^3 / 3), tell groups that need the floor. Only those that are
    indefinite by more than it take an eigendecomposition, and have smaller eigenvalues raised to it. Of a Kronecker product each factor
    is floored, which bounds what either is inverted at.

    Args:
        moment: shape (groups, d, d), positive semidefinite up to rounding.

    Raises:
        InvalidArgument: an entry is not finite.
    """
    if isinstance(moment, Kronecker):
        return Kronecker(floored(moment.channel), floored(moment.tap))
    moment = moment.to(torch.float64)
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)
    if not bool(moment.isfinite().all() & trace.isfinite().all()):
        raise InvalidArgument(f"moment of shape {tuple(moment.shape)} is not finite: calibrate with data that the network answers finitely")
    largest = trace.max()
    if not float(largest) > SMALLEST:
        return torch.eye(moment.shape[-1], dtype=torch.float64, device=moment.device).expand_as(moment).clone()
    if not torch.equal(moment, moment.mT):
        moment = moment / 2 + moment.mT / 2
    scale = torch.where(trace > SMALLEST, trace, largest)
    short = _indefinite(moment, -FLOOR * scale)
    if not bool(short.any()):
        return moment
    moment = moment.clone()
    lacking = short & _indefinite(moment, FLOOR * scale)
    moment.diagonal(dim1=-2, dim2=-1).add_(2 * FLOOR * (scale * (short & ~lacking))[:, None])
    if bool(lacking.any()):
        values, vectors = eigh(moment[lacking] / scale[lacking, None, None])
        raised = (vectors * values.clamp_min(FLOOR)[:, None, :]) @ vectors.mT * scale[lacking, None, None]
        moment[lacking] = raised / 2 + raised.mT / 2
    return moment


def _indefinite(moment: Tensor, added: Tensor) -> Tensor:
    """Whether matrices, shape (groups, d, d), are not positive definite once so much is added to all eigenvalues; shape (groups,)."""
    trial = moment.clone()
    trial.diagonal(dim1=-2, dim2=-1).add_(added[:, None])
    return cholesky_ex(trial)[1] != 0


def conditioned(moments: Moments | None, like: Tensor) -> Moments:
    """The metric that a weight is prepared in: both moments `floored`, on the device of ``like``; None is the weight metric."""
    if moments is None:
        return Moments()
    return moments.floored.to(like.device)


@overload
def half(moment: Tensor) -> Tensor: ...
@overload
def half(moment: Matrix) -> Matrix: ...
def half(moment: Matrix) -> Matrix:
    """Lower triangular C with C C^T = the moment: |R|^2 = tr(G R A R^T) is |C_G^T R C_A|^2. A third of the price
    of a symmetric root, and the inverse is a triangular solve. That of a Kronecker product is the product of its factors' halves.

    Args:
        moment: shape (groups, d, d): a `floored` one, a marginal or diagonal block of one, or a Gram matrix in one. What rounding
            has made indefinite is `floored` first.
    """
    if isinstance(moment, Kronecker):
        return Kronecker(half(moment.channel), half(moment.tap))
    factor, failed = cholesky_ex(moment)
    return torch.linalg.cholesky(floored(moment).cpu()).to(moment.device) if bool(failed.any()) else factor


def halved(moment: Tensor) -> tuple[Tensor, Tensor]:
    """A `floored` moment and its `half`, of one, float64 and symmetric, to which so much was added that its eigenvalues are above the
    floor, up to rounding. The pivots of the half tell: one Cholesky factorization does what takes `floored` and `half` two."""
    triangle, failed = cholesky_ex(moment)
    least = FLOOR * moment.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    if bool(failed.any()) or not bool((triangle.diagonal(dim1=-2, dim2=-1).square() >= least).all()):
        moment = floored(moment)
        triangle = half(moment)
    return moment, triangle


def whitener(moment: Tensor | None, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of a `floored` second moment and its inverse, each (groups, size, size); identities for None."""
    if moment is None:
        eye = torch.eye(size, dtype=torch.float64, device=like.device).expand(like.shape[0], size, size)
        return eye, eye
    values, vectors = eigh(moment)
    root = values.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    return (vectors * root[:, None, :]) @ vectors.mT, (vectors / root[:, None, :]) @ vectors.mT


def channel_moment(moments: Moments, c_in: int) -> Tensor | None:
    """The part of A that acts on the input channels alone: the mean of its diagonal blocks over kernel positions,
    shape (groups, c_in, c_in). A whitening by it keeps the mode structure of the kernel."""
    if moments.input is None:
        return None
    if isinstance(moments.input, Kronecker):
        return moments.input.channel * moments.input.tap.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    groups, d, _ = moments.input.shape
    taps = d // c_in
    blocks = moments.input.reshape(groups, c_in, taps, c_in, taps)
    return blocks.diagonal(dim1=2, dim2=4).mean(-1)


def is_weight_metric(moments: Moments | None) -> bool:
    return moments is None or (moments.input is None and moments.output is None)


def apply_metric(residual: Tensor, moments: Moments) -> Tensor:
    """G R A, the gradient of half the energy; shapes as `residual_energy`."""
    flat = residual.flatten(2)
    if moments.input is not None:
        flat = times(flat, moments.input.to(flat))
    if moments.output is not None:
        flat = moments.output.to(flat) @ flat
    return flat.reshape(residual.shape)


def unit_of(energy: float) -> float:
    """What brings an energy near 1, a power of two: in that unit no square leaves the range of float64, whatever the moments' scale, and
    no digit changes."""
    return 2.0 ** -math.frexp(energy)[1] if energy > 0 else 1.0


def residual_energy(residual: Tensor, moments: Moments) -> float:
    """tr(G R A R^T), summed over groups.

    Args:
        residual: shape (groups, c_out / groups, ...); what follows, flattened, is in the order of ``moments.input``: (c_in / groups,
            kh, kw) unless both were folded otherwise.
        moments: the metric, as it is: `conditioned` where it is that of a prepared weight. ``None`` entries are identities.
    """
    return float((residual * apply_metric(residual, moments)).sum().clamp_min(0.0))
