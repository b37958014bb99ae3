"""What errors of factors are taken of: the weight that they stand for, or what it answers to the inputs that its metric is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from ranksearch.networks.descent.axes import Axes
from ranksearch.networks.descent.contraction import Contraction
from ranksearch.networks.descent.weighing import Spanned, Weighing

Compose = Callable[[Sequence[Tensor]], Tensor]
Parts = tuple[Tensor, ...]
SHARE = 0.5  # of the MACs: more take as long by way of the factors, in smaller products
SMALL = 1 << 23  # MACs of a weighing, below which it takes as long to call products as to make them


@dataclass(frozen=True)
class View(ABC):
    """A linear image of the composed weight W in which its error is <G R, R B>, R being the image of what W lacks: in one or more tensors,
    outputs behind groups."""

    compose: Compose
    weighing: Weighing
    axes: Axes | None

    @property
    def dtype(self) -> torch.dtype:
        """Of what is seen and weighed."""
        return self.weighing.dtype

    @abstractmethod
    def of(self, weight: Tensor) -> Parts:
        """What is seen of a weight, shape (groups, c_out / groups, c_in / groups, kh, kw)."""

    @abstractmethod
    def seen(self, factors: Sequence[Tensor]) -> Parts:
        """What is seen of the weight that factors stand for. Differentiable, twice, in the factors."""

    @abstractmethod
    def behind(self, parts: Sequence[Tensor]) -> Parts:
        """R B."""

    def beside(self, parts: Sequence[Tensor]) -> Parts:
        """G R."""
        return tuple(self.weighing.beside(part) for part in parts)

    def seen_and_beside(self, factors: Sequence[Tensor]) -> tuple[Parts, Parts]:
        """What is seen of factors, and G R of it: by way of that which has the outputs, which is smaller."""
        seen, output = self.seen(factors), self.weighing.output
        if self.axes is None or output is None:
            return seen, self.beside(seen)
        return seen, self.seen(self.axes.beside(factors, output))

    def rough(self) -> View:
        """The same in float32, see `Weighing.rough`."""
        return replace(self, weighing=self.weighing.rough())


class Whole(View):
    """The weight itself; B is A."""

    def of(self, weight: Tensor) -> Parts:
        """See `View`."""
        return (weight,)

    def seen(self, factors: Sequence[Tensor]) -> Parts:
        """See `View`."""
        return (self.compose(factors),)

    def behind(self, parts: Sequence[Tensor]) -> Parts:
        """See `View`."""
        return (self.weighing.behind(parts[0]),)


@dataclass(frozen=True)
class Answered(View):
    """Answers to columns x, where A is x x^T + diag(pull); and where there is a pull, the weight, too. B is the identity, and the pull."""

    contraction: Contraction

    @property
    def _inputs(self) -> Spanned:
        assert self.weighing.spanned is not None
        return self.weighing.spanned

    @cached_property
    def _laid(self) -> Tensor:
        return self.contraction.laid(self._inputs.x)

    def of(self, weight: Tensor) -> Parts:
        """See `View`."""
        answers = (flat := weight.flatten(2)) @ self._inputs.x
        return (answers,) if self._inputs.pull is None else (answers, flat)

    def seen(self, factors: Sequence[Tensor]) -> Parts:
        """See `View`."""
        answers = self.contraction(factors, self._laid)
        return (answers,) if self._inputs.pull is None else (answers, self.compose(factors).flatten(2))

    def behind(self, parts: Sequence[Tensor]) -> Parts:
        """See `View`."""
        pull = self._inputs.pull
        return tuple(parts) if pull is None else (parts[0], parts[1] * pull[:, None, :])


def view_of(compose: Compose, factors: Sequence[Tensor], weighing: Weighing, axes: Axes | None) -> View:
    """The view in which weighing is quicker: by products of the weight with A, or, of weights that are not `SMALL`, by way of the factors,
    there and back."""
    if axes is not None and (columns := weighing.columns) is not None:
        macs = (1 if weighing.spanned is None else 2) * columns * prod(axes.shape)
        if macs >= SMALL and 2 * (contraction := Contraction.of(axes, factors, columns)).macs < SHARE * macs:
            return Answered(compose, weighing.spread(), axes, contraction)
    return Whole(compose, weighing, axes)
