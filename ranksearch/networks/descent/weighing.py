"""R -> G R A, by which least squares over factors weigh changes R of a weight: in float64, and in float32 for directions alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ranksearch.decompositions.kronecker import Kronecker, Matrix
from ranksearch.decompositions.metric import Moments, apply_metric, unit_of

REACH = 1e15  # a factor above it, or below its inverse, is not taken to float32


@dataclass(frozen=True)
class Spanned:
    """x x^T + diag(pull), the moment of few positions and what is added to it, which is never made: a product with it takes 2 n d
    operations per row instead of d^2."""

    x: Tensor  # shape: (groups, d, n)
    pull: Tensor | None = None  # shape: (groups, d); None: nothing is added

    def largest(self) -> float:
        """The largest magnitude of an entry, at most."""
        squares = self.x.square().sum(2)
        return float((squares if self.pull is None else squares + self.pull).max())

    def __mul__(self, factor: float) -> Spanned:
        return Spanned(self.x * factor**0.5, None if self.pull is None else self.pull * factor)

    def to(self, dtype: torch.dtype) -> Spanned:
        """The same in a dtype."""
        return Spanned(self.x.to(dtype), None if self.pull is None else self.pull.to(dtype))

    def marginals(self, shape: Sequence[int]) -> list[Tensor]:
        """Its traces over all axes of a patch but one, each of shape (groups, n, n)."""
        x = self.x.unflatten(1, tuple(shape))
        rows = [x.movedim(axis, 1).flatten(2) for axis in (1, 2, 3)]
        traces = [one @ one.mT for one in rows]
        if self.pull is None:
            return traces
        pull = self.pull.unflatten(1, tuple(shape))
        others = [pull.sum(dim=[other for other in (1, 2, 3) if other != axis]) for axis in (1, 2, 3)]
        return [trace + torch.diag_embed(other) for trace, other in zip(traces, others, strict=True)]

    def behind(self, change: Tensor) -> Tensor:
        """change A, of shape (groups, c_out / groups, ...)."""
        flat = change.flatten(2)
        found = (flat @ self.x) @ self.x.mT
        return (found if self.pull is None else found + flat * self.pull[:, None, :]).reshape(change.shape)


@dataclass(frozen=True)
class Weighing:
    """R -> factor G R A, of R of shape (groups, c_out / groups, ...)."""

    moments: Moments  # A and G, as they are
    spanned: Spanned | None = None  # A, where it is the identity in ``moments``
    factor: float = 1.0
    dtype: torch.dtype = torch.float64

    def __call__(self, change: Tensor) -> Tensor:
        return self.beside(self.behind(change))

    @cached_property
    def output(self) -> Tensor | None:
        """factor G; None where G is the identity."""
        return None if self.moments.output is None else self.factor * self.moments.output

    def beside(self, change: Tensor) -> Tensor:
        """factor G R."""
        if self.output is None:
            return self.factor * change
        return apply_metric(change, Moments(None, self.output))

    def behind(self, change: Tensor) -> Tensor:
        """R A."""
        return apply_metric(change, Moments(self.moments.input)) if self.spanned is None else self.spanned.behind(change)

    @property
    def columns(self) -> int | None:
        """How many columns x has where A is x x^T + diag(pull); None where A is no matrix, but the identity or a product."""
        if self.spanned is not None:
            return self.spanned.x.shape[2]
        return self.moments.input.shape[2] if isinstance(self.moments.input, Tensor) else None

    def spread(self) -> Weighing:
        """The same with its A, a matrix, as ``spanned``, in a unit which its `rough` leaves as it is."""
        spanned = self.spanned
        if spanned is None:
            root = self.moments.input_half
            assert isinstance(root, Tensor), "a product stays as it is"
            spanned = Spanned(root)
        size = _size(spanned)
        return replace(self, moments=Moments(None, self.moments.output), spanned=spanned * (1 / size), factor=self.factor * size)

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
        return {
            "o": self.factor * _eye(outputs, groups) if self.output is None else self.output,
            "i": traces[0],
            "h": traces[1] / whole,
            "w": traces[2] / whole,
        }

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
    size = _size(matrix)
    return (matrix * (1 / size)).to(torch.float32), size


def _size(matrix: Tensor | Kronecker | Spanned) -> float:
    """The power of four that is near the largest entry of a matrix; 1 where that is zero."""
    largest = float(matrix.abs().max()) if isinstance(matrix, Tensor) else matrix.largest()
    return 4.0 ** (math.frexp(largest)[1] // 2) if largest > 0 else 1.0
