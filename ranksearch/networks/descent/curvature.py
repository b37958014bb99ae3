"""How the error tr(G R A R^T) of a layer bends in each of its factors: J_k^T (G (x) A) J_k, with J_k what the weight changes by with
factor k, as a Kronecker product over the factor's axes. It is that of the weight's own axes where the factor has one, and where it shares
an axis with other factors, their Gram matrix: what an alternating least squares would solve with (K-FAC does so for whole layers,
Martens and Grosse, arXiv 1503.05671). It is exact where A is the product of its marginals over channels and taps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ranksearch.decompositions.metric import unit_of
from ranksearch.decompositions.symmetric import cholesky_ex
from ranksearch.networks.descent.axes import Axes, along
from ranksearch.networks.descent.weighing import Weighing

LEAST = 1e-6  # of the largest entry of the diagonal along an axis, which is added to it


@dataclass(frozen=True)
class Block:
    """The curvature of one factor, by its inverse along every axis."""

    sizes: tuple[int, ...]  # of the factor's axes, groups first
    inverses: tuple[Tensor, ...]  # of every axis but groups, in a unit of its own, shape: (groups, n, n)
    unit: float  # their product's

    def solved(self, part: Tensor) -> Tensor:
        """What the curvature makes into ``part``, of the factor's shape."""
        found = part.reshape(self.sizes)
        for axis, inverse in enumerate(self.inverses, 1):
            found = along(found, inverse, axis)
        return self.unit * found.reshape(part.shape)


class Curvature:
    """The curvature of the factors of one layer, wherever they are. Of parts of the input channels it is as if the metric did not couple
    them.

    Args:
        axes: of the factors.
        weighing: the metric.
        device: of the factors.
    """

    def __init__(self, axes: Axes, weighing: Weighing, device: torch.device) -> None:
        self.axes, self._weighing, self._device = axes, weighing, device

    @cached_property
    def marginals(self) -> Mapping[str, Tensor]:
        """The metric along every axis of the weight, shape: (groups and parts, n, n); their product has the trace of G (x) A."""
        found = {letter: matrix.to(self._device) for letter, matrix in self._weighing.marginals(self.axes.shape).items()}
        if self.axes.parts == 1:
            return found
        blocks = found["i"].unflatten(2, (self.axes.parts, -1)).unflatten(1, (self.axes.parts, -1)).diagonal(dim1=1, dim2=3)
        every = {letter: matrix.repeat_interleave(self.axes.parts, dim=0) for letter, matrix in found.items()}
        return {**every, "i": blocks.movedim(-1, 1).flatten(0, 1)}

    @cached_property
    def _inverses(self) -> Mapping[str, tuple[Tensor, float]]:
        return {letter: _inverse(matrix) for letter, matrix in self.marginals.items()}

    def at(self, factors: Sequence[Tensor], places: Iterable[int], dtype: torch.dtype) -> list[Block]:
        """The blocks of the factors at some places, in a dtype."""
        views, found = self.axes.views([factor.double() for factor in factors]), []
        grams = _Grams(self, views)
        for k in places:
            inverses = [self._inverses[c] if c in self.marginals else _inverse(grams.others(c, k)) for c in self.axes.letters[k]]
            made = tuple(inverse.to(dtype) for inverse, _ in inverses)
            found.append(Block(tuple(views[k].shape), made, prod(unit for _, unit in inverses)))
        return found


class _Grams:
    """Gram matrices of factors along the axes that they share, each made once: messages of belief propagation."""

    def __init__(self, curvature: Curvature, views: Sequence[Tensor]) -> None:
        self._of, self._views = curvature, views
        self._known: dict[tuple[int, str], Tensor] = {}

    def others(self, letter: str, k: int) -> Tensor:
        """Of all that factor ``k`` is multiplied with along a shared axis, shape (groups, n, n)."""
        found = [self._gram(j, letter) for j, letters in enumerate(self._of.axes.letters) if j != k and letter in letters]
        return prod(found[1:], start=found[0])

    def _gram(self, k: int, letter: str) -> Tensor:
        """Of factor ``k`` and all that lies behind it, seen along one of its axes."""
        if (k, letter) not in self._known:
            letters, view = self._of.axes.letters[k], self._views[k]
            weighed = view
            for axis, other in enumerate(letters, 1):
                if other != letter:
                    matrix = self._of.marginals[other] if other in self._of.marginals else self.others(other, k)
                    weighed = along(weighed, matrix, axis)
            one, two = (tensor.movedim(1 + letters.index(letter), 1).flatten(2) for tensor in (view, weighed))
            self._known[k, letter] = one @ two.mT
        return self._known[k, letter]


def _inverse(matrix: Tensor) -> tuple[Tensor, float]:
    """That of matrices of no negative eigenvalues, shape (groups, n, n), to which so much is added that they have one; the identity where
    they say nothing. It is in a unit, a power of two, in which it is in the range of float32 whatever the scale of the matrices."""
    unit = unit_of(float(matrix.abs().amax()))
    scaled = unit * (matrix + matrix.mT) / 2
    largest = scaled.diagonal(dim1=1, dim2=2).amax(dim=1)
    scaled.diagonal(dim1=1, dim2=2).add_(torch.where(largest > 0, LEAST * largest, 1.0)[:, None])
    half, failed = cholesky_ex(scaled)
    sound, eye = (failed == 0)[:, None, None], torch.eye(matrix.shape[1]).to(matrix)
    return torch.where(sound, torch.cholesky_inverse(torch.where(sound, half, eye)), eye), unit
