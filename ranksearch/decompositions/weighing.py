"""R -> G R A, by which least squares over factors weigh changes R of a weight: in float64, and in float32 for directions alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ranksearch.decompositions.kronecker import Matrix
from ranksearch.decompositions.metric import Moments, apply_metric, unit_of

REACH = 1e15  # a factor above it, or below its inverse, is not taken to float32


@dataclass(frozen=True)
class Spanned:
    """x x^T + diag(pull), the moment of few positions and what is added to it, which is never made: a product with it takes 2 n d
    operations per row instead of d^2."""

    x: Tensor  # shape: (groups, d, n)
    pull: Tensor  # shape: (groups, d)

    def largest(self) -> float:
        """The largest magnitude of an entry, at most."""
        return float((self.x.square().sum(2) + self.pull).max())

    def __mul__(self, factor: float) -> Spanned:
        return Spanned(self.x * factor**0.5, self.pull * factor)

    def to(self, dtype: torch.dtype) -> Spanned:
        """The same in a dtype."""
        return Spanned(self.x.to(dtype), self.pull.to(dtype))

    def marginals(self, shape: Sequence[int]) -> list[Tensor]:
        """Its traces over all axes of a patch but one, each of shape (groups, n, n)."""
        x, pull = self.x.unflatten(1, tuple(shape)), self.pull.unflatten(1, tuple(shape))
        rows = [x.movedim(axis, 1).flatten(2) for axis in (1, 2, 3)]
        others = [pull.sum(dim=[other for other in (1, 2, 3) if other != axis]) for axis in (1, 2, 3)]
        return [one @ one.mT + torch.diag_embed(other) for one, other in zip(rows, others, strict=True)]

    def behind(self, change: Tensor) -> Tensor:
        """change A, of shape (groups, c_out / groups, ...)."""
        flat = change.flatten(2)
        return ((flat @ self.x) @ self.x.mT + flat * self.pull[:, None, :]).reshape(change.shape)


@dataclass(frozen=True)
class Weighing:
    """R -> factor G R A, of R of shape (groups, c_out / groups, ...)."""

    moments: Moments  # A and G, as they are
    spanned: Spanned | None = None  # A, where it is the identity in ``moments``
    factor: float = 1.0
    dtype: torch.dtype = torch.float64

    def __call__(self, change: Tensor) -> Tensor:
        return self.factor * apply_metric(change if self.spanned is None else self.spanned.behind(change), self.moments)

    def in_unit_of(self, weight: Tensor) -> Weighing:
        """The same times a power of two, with which the weight's energy is near 1 (`unit_of`)."""
        return replace(self, factor=self.factor * unit_of(float((weight * self(weight)).sum())))

    def marginals(self, shape: Sequence[int]) -> dict[str, Tensor]:
        """The metric along every axis of a weight, by the letters o, i, h and w, each of shape (groups, n, n): factor G, and A's partial
        traces over all axes of a patch but input channels, kh or kw, the last two with a trace of 1. Their Kronecker product has the trace
        of the metric, and is the metric where A is such a product. What stands for a moment that is None is on the processor.

        Args:
            shape: of a weight: (groups, c_out / groups, c_in / groups, kh, kw).
        """
        groups, outputs, *patch = shape
        if self.spanned is not None:
            traces = self.spanned.marginals(patch)
        elif self.moments.input is None:
            traces = [_eye(n, groups) * (math.prod(patch) / n) for n in patch]
        else:
            traces = _traces(self.moments.input, patch)
        whole = traces[0].diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        output = _eye(outputs, groups) if self.moments.output is None else self.moments.output
        return {"o": self.factor * output, "i": traces[0], "h": traces[1] / whole, "w": traces[2] / whole}

    def rough(self) -> Weighing:
        """The same in float32, A and G having entries up to 1, whatever their scale; in float64 where the factor between would leave the
        range of float32."""
        (a, one), (g, other), (spanned, third) = _small(self.moments.input), _small(self.moments.output), _small(self.spanned)
        factor = self.factor * one * other * third
        return Weighing(Moments(a, g), spanned, factor, torch.float32) if 1 / REACH < factor < REACH else self


def _traces(matrix: Matrix, patch: Sequence[int]) -> list[Tensor]:
    """Of A, over all axes of a patch but one."""
    if isinstance(matrix, Tensor):
        whole = matrix.unflatten(2, tuple(patch)).unflatten(1, tuple(patch))
        return [torch.einsum(f"gihw{other}", whole) for other in ("jhw->gij", "ikw->ghk", "ihk->gwk")]
    taps = matrix.tap.unflatten(2, tuple(patch[1:])).unflatten(1, tuple(patch[1:]))
    channels, points = (part.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] for part in (matrix.channel, matrix.tap))
    return [matrix.channel * points, torch.einsum("ghwkw->ghk", taps) * channels, torch.einsum("ghwhk->gwk", taps) * channels]


def _eye(size: int, groups: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64).expand(groups, -1, -1)


def _small(matrix: Any) -> tuple[Any, float]:
    """A matrix in float32, its largest entry near 1, and the power of four that it was divided by."""
    if matrix is None:
        return None, 1.0
    largest = float(matrix.abs().max()) if isinstance(matrix, Tensor) else matrix.largest()
    size = 4.0 ** (math.frexp(largest)[1] // 2) if largest > 0 else 1.0
    return (matrix * (1 / size)).to(torch.float32), size
