"""What a factorized weight answers to inputs, made of its factors: the weight itself is never put together, which costs as much more as it
has more outputs than ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from string import ascii_letters
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ranksearch.networks.descent.axes import WEIGHT, Axes

COLUMN = "N"  # letter of the inputs' last axis: types name theirs in small ones
PLANS = 1024  # orders of products that are remembered


class Product(NamedTuple):
    """One of two tensors of a list, which are taken from it, the last first, and whose product is put behind the others.

    `torch.einsum` sums over axes in the order of their names, and copies a tensor that has them in another: names are in the inputs' order,
    which are largest."""

    places: tuple[int, int]
    subscripts: str


class Plan(NamedTuple):
    """From the factors and inputs to the answers."""

    products: tuple[Product, ...]
    macs: int  # of all products
    order: str  # letters of the inputs' axes: behind groups those that their product sums over


@dataclass(frozen=True)
class Contraction:
    """Products of two tensors at a time, from the factors and inputs to the answers, in the order that `numpy.einsum_path` finds best.

    Attributes:
        axes: of the factors.
        plan: the products.
    """

    axes: Axes
    plan: Plan

    @staticmethod
    def of(axes: Axes, factors: Sequence[Tensor], columns: int) -> Contraction:
        """That of factors of these shapes with so many columns of inputs."""
        sizes = dict(axes.sizes) | {COLUMN: columns}
        terms = [WEIGHT[0] + letters for letters in axes.letters]
        for term, view in zip(terms, axes.views(factors), strict=True):
            sizes |= dict(zip(term, view.shape, strict=True))
        return Contraction(axes, _planned((*terms, _inputs(axes)), tuple(sizes.items())))

    @property
    def macs(self) -> int:
        """Of all products."""
        return self.plan.macs

    def laid(self, x: Tensor) -> Tensor:
        """Inputs, shape (groups, d, n), as `__call__` takes them: laid out so that its products copy none."""
        sizes, letters = self.axes.sizes, _inputs(self.axes)
        given = x.reshape(*(sizes[letter] for letter in letters[:-1]), x.shape[2])
        return given.permute([letters.index(letter) for letter in self.plan.order]).contiguous()

    def __call__(self, factors: Sequence[Tensor], laid: Tensor) -> Tensor:
        """The answers to inputs of the weight that factors stand for; shape (groups, c_out / groups, n)."""
        tensors = [*self.axes.views(factors), laid]
        for (first, second), subscripts in self.plan.products:
            last, other = tensors.pop(second), tensors.pop(first)
            tensors.append(torch.einsum(subscripts, other, last))
        found = tensors[0].reshape(-1, self.axes.parts, self.axes.sizes["o"], laid.shape[-1])
        return found.sum(1)


def _inputs(axes: Axes) -> str:
    """Letters of the inputs' axes: of the weight's those that a factor has, the others being of size 1."""
    return WEIGHT[0] + "".join(letter for letter in "ihw" if any(letter in letters for letters in axes.letters)) + COLUMN


@lru_cache(PLANS)
def _planned(terms: tuple[str, ...], sizes: tuple[tuple[str, int], ...]) -> Plan:
    """How answers are made of factors and, last, inputs, whose letters, and these letters' sizes, are given."""
    size, left, inputs = dict(sizes), list(terms), terms[-1]
    answers = "".join(letter for letter in WEIGHT[:2] + COLUMN if any(letter in term for term in terms))
    shapes = [np.broadcast_to(0.0, [size[letter] for letter in term]) for term in terms]
    path = np.einsum_path(",".join(terms) + "->" + answers, *shapes, optimize=("optimal", 2**62))[0][1:]
    made, order, macs = [], inputs, 0
    for places in path:
        first, second = sorted(places)
        last, other = left.pop(second), left.pop(first)
        every = "".join(dict.fromkeys(other + last))
        macs += prod(size[letter] for letter in every)
        kept = "".join(letter for letter in every if letter in answers or any(letter in term for term in left)) if left else answers
        if inputs in (last, other):
            order = "".join(sorted(inputs, key=lambda letter: (letter != inputs[0], letter in kept)))
        made.append(((first, second), other, last, kept))
        left.append(kept)
    names = str.maketrans(dict(zip(dict.fromkeys(order + "".join(terms)), ascii_letters, strict=False)))
    products = [
        Product(places, f"{','.join(order if term == inputs else term for term in pair)}->{kept}".translate(names))
        for places, *pair, kept in made
    ]
    return Plan(tuple(products), macs, order)
