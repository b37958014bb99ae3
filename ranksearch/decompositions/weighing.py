"""R -> G R A, by which least squares over factors weigh changes R of a weight: in float64, and in float32 for directions alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

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

    def rough(self) -> Weighing:
        """The same in float32, A and G having entries up to 1, whatever their scale; in float64 where the factor between would leave the
        range of float32."""
        (a, one), (g, other), (spanned, third) = _small(self.moments.input), _small(self.moments.output), _small(self.spanned)
        factor = self.factor * one * other * third
        return Weighing(Moments(a, g), spanned, factor, torch.float32) if 1 / REACH < factor < REACH else self


def _small(matrix: Any) -> tuple[Any, float]:
    """A matrix in float32, its largest entry near 1, and the power of four that it was divided by."""
    if matrix is None:
        return None, 1.0
    largest = float(matrix.abs().max()) if isinstance(matrix, Tensor) else matrix.largest()
    size = 4.0 ** (math.frexp(largest)[1] // 2) if largest > 0 else 1.0
    return (matrix * (1 / size)).to(torch.float32), size
