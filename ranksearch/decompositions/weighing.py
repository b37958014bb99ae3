"""R -> G R A, by which least squares over factors weigh changes R of a weight: in float64, and in float32 for directions alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ranksearch.decompositions.kronecker import Matrix, times
from ranksearch.decompositions.metric import Moments, unit_of

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

    def behind(self, rows: Tensor) -> Tensor:
        """rows @ this; rows of shape (groups, m, d)."""
        return (rows @ self.x) @ self.x.mT + rows * self.pull[:, None, :]


@dataclass(frozen=True)
class Weighing:
    """R -> factor G R A, of R of shape (groups, c_out / groups, ...). ``None`` entries are identities."""

    input: Matrix | Spanned | None  # A
    output: Tensor | None  # G
    factor: float = 1.0
    dtype: torch.dtype = torch.float64

    @classmethod
    def of(cls, moments: Moments) -> Weighing:
        """By moments as they are."""
        return cls(moments.input, moments.output)

    def __call__(self, change: Tensor) -> Tensor:
        flat = change.flatten(2)
        if self.input is not None:
            flat = self.input.behind(flat) if isinstance(self.input, Spanned) else times(flat, self.input)
        if self.output is not None:
            flat = self.output @ flat
        return self.factor * flat.reshape(change.shape)

    def in_unit_of(self, weight: Tensor) -> Weighing:
        """The same times a power of two, with which the weight's energy is near 1 (`unit_of`)."""
        return replace(self, factor=self.factor * unit_of(float((weight * self(weight)).sum())))

    def rough(self) -> Weighing:
        """The same in float32, A and G having entries up to 1, whatever their scale; in float64 where the factor between would leave the
        range of float32."""
        found, factor = dict[str, Any](), self.factor
        for name, matrix in (("input", self.input), ("output", self.output)):
            found[name], size = (None, 1.0) if matrix is None else _small(matrix)
            factor *= size
        return Weighing(**found, factor=factor, dtype=torch.float32) if 1 / REACH < factor < REACH else self


def _small(matrix: Matrix | Spanned) -> tuple[Matrix | Spanned, float]:
    """In float32, its largest entry near 1, and the power of four that it was divided by."""
    largest = float(matrix.abs().max()) if isinstance(matrix, Tensor) else matrix.largest()
    size = 4.0 ** (math.frexp(largest)[1] // 2) if largest > 0 else 1.0
    return (matrix * (1 / size)).to(torch.float32), size
