"""Any type that is built as a chain of plain layers, with its weights rounded to integers of 8 or 4 bits: one scale per output channel of
every factor, round to nearest (weight-only quantization as in arXiv 2103.13630, section III)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from ranksearch.decompositions.decomposition import AnyDecomposition, Decomposition, Errors, Rank
from ranksearch.decompositions.dense import Dense
from ranksearch.decompositions.metric import Moments, conditioned, residual_energy
from ranksearch.decompositions.quantized_layer import quantized
from ranksearch.decompositions.rounding import Held, balanced, layout, round_factors
from ranksearch.decompositions.weighted_truncation import geometric
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site

BITS = (8, 4)
WIDTHS = {0: 1, 1: 24, 2: 6, 3: 4}  # by how many widths a rank has: how many of each are measured, about
MARK = "@int"  # between the name of a type and its bits


@dataclass(frozen=True)
class RoundedState:
    """What the type prepared, and the weight and metric that rounding is measured in."""

    inner: Any
    site: Site
    weight: Tensor  # float64, shape: (groups, c_out / groups, c_in / groups, kh, kw)
    moments: Moments  # conditioned


class Quantized(Decomposition[RoundedState]):
    """The options of another type, ``dense`` too, with weights of few bits: ``svd@int8`` is ``svd`` of 8 bits at the same ranks.

    Errors are measured on the very factors, rounded, at a grid of ranks, since each takes a product of the size of the weight. Params and
    MACs are those of the type: a weight is one whatever its bits. What differs is what is stored (`held`), so such options are worth
    something where bytes are a cost, and beaten by the type itself where they are not."""

    nested = False
    exact = False

    def __init__(self, inner: AnyDecomposition, bits: int) -> None:
        if bits not in BITS:
            raise InvalidArgument(f"bits={bits!r}: weights are rounded to {' or '.join(map(str, BITS))} bits")
        self.inner, self.bits = inner, bits
        self.name = f"{inner.name}{MARK}{bits}"
        self.labels = inner.labels

    def undefined(self, site: Site) -> str | None:
        if (reason := self.inner.undefined(site)) is not None:
            return reason
        if site.head is not None:
            return "a head that is tied to an embedding reads its table as it is"
        if site.window is not None and site.window.transposed:
            return "the output channels of a transposed convolution are no rows of its weight"
        if self.inner.links(site, self.inner.ranks(site)[:1]) is None:
            return "it is no chain of plain layers"
        return None

    def ranks(self, site: Site) -> np.ndarray:
        ranks = self.inner.ranks(site)
        params, macs = self.inner.costs(site, ranks)
        return ranks[_grid(ranks, self.inner.labels, self.saves(site, params, macs))]

    def links(self, site: Site, ranks: np.ndarray) -> Any:
        return self.inner.links(site, ranks)

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.inner.costs(site, ranks)

    def saves(self, site: Site, params: np.ndarray, macs: np.ndarray) -> np.ndarray:
        """Of ``dense`` the one option there is, which saves bytes alone."""
        return np.ones(len(params), dtype=bool) if self.inner.name == "dense" else self.inner.saves(site, params, macs)

    def held(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Integers, rows filled up to whole bytes; one scale per row, and what the type stores besides its weights (the bias)."""
        params, _ = self.inner.costs(site, ranks)
        integers, scales, weights = (np.zeros(len(ranks), dtype=np.int64) for _ in range(3))
        for index, link in enumerate(self.links(site, ranks)):
            kh, kw = link.kernel(site)
            table = site.kind == "embedding" and index == 0
            rows, width = (link.c_in, link.c_out) if table else (link.c_out, link.c_in // link.groups * kh * kw)
            integers += rows * -(-width * self.bits // 8)
            scales += rows
            weights += rows * width
        beside = self.inner.held(site, ranks)
        own, numbers = (0, params) if beside is None else beside
        return integers + own, numbers - weights + scales

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> RoundedState:
        return self.on(site, weight, moments, self.inner.prepare(site, weight, moments))

    def on(self, site: Site, weight: Tensor, moments: Moments | None, inner: Any) -> RoundedState:
        """The state, where the type has prepared the same weight in the same metric already."""
        dense = weight.double()
        blocks = dense.reshape(site.groups, site.c_out // site.groups, *site.shape[1:])
        return RoundedState(inner, site, blocks, conditioned(moments, dense))

    def errors(self, state: RoundedState) -> Errors:
        known = self.inner.errors(state.inner)
        ranks, total = known.ranks, residual_energy(state.weight, state.moments)
        ranks = ranks[_grid(ranks, self.inner.labels, self.saves(state.site, *self.inner.costs(state.site, ranks)))]
        squared = [self._energy(state, tuple(row)) for row in ranks.tolist()]
        frobenius = np.sqrt(np.array(squared) / total) if total > 0 else np.zeros(len(ranks))
        nothing = np.full(len(ranks), np.nan)  # what rounding leaves over is in no folding
        return Errors(ranks, frobenius, nothing, total**0.5, frobenius_is="measured", operator_is="measured")

    def _energy(self, state: RoundedState, rank: Rank) -> float:
        weight = self.compose(state.site, self.factors(state, rank))
        return residual_energy(state.weight - weight.reshape(state.weight.shape), state.moments)

    def factors(self, state: RoundedState, rank: Rank) -> tuple[Tensor, ...]:
        """Those of the type, rounded: every entry an integer times the scale of its row, float64."""
        made = self.inner.factors(state.inner, rank)
        held = layout(self.inner, state.site, made)
        return round_factors(held, self.scaled(held, state.site, made, state.weight, state.moments), self.bits)

    def scaled(
        self, held: Sequence[Held], site: Site, factors: tuple[Tensor, ...], weight: Tensor, moments: Moments
    ) -> tuple[Tensor, ...]:
        """Factors of the type's layout as they are, or `balanced`, whichever are nearer to a weight when they are rounded. Measured on
        ResNet-20 in the Fisher metric, balancing takes a third off what rounding adds for ``tucker2`` and a tenth for ``svd_in``, and
        adds a tenth for ``cp``.

        Args:
            weight: shape (groups, c_out / groups, c_in / groups, kh, kw).
            moments: conditioned.
        """
        ways = [factors, balanced(held, factors)] if len(held) > 1 else [factors]

        def error(way: tuple[Tensor, ...]) -> float:
            found = self.compose(site, round_factors(held, way, self.bits))
            return residual_energy(weight - found.reshape(weight.shape), moments)

        return min(ways, key=error) if len(ways) > 1 else factors

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...] | None:
        return self.inner.empty_factors(site, rank)

    def describe(self, site: Site, rank: Rank) -> str:
        return f"{self.inner.describe(site, rank)}, int{self.bits}"

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        return self.inner.compose(site, factors)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        """The type's own layers, each a `QuantizedLayer`. Factors that are not rounded yet are rounded as they are."""
        chain = self.inner.module(site, factors, bias)
        if not isinstance(chain, nn.Sequential):
            return quantized(chain, self.bits)
        return nn.Sequential(*(part if part._parameters.get("weight") is None else quantized(part, self.bits) for part in chain))


def with_bits(types: Iterable[AnyDecomposition], bits: Sequence[int]) -> tuple[AnyDecomposition, ...]:
    """Types, and each of them with its weights rounded to each of ``bits``, the dense layer among them. Types that are stored composed have
    no such form.

    Raises:
        InvalidArgument: bits that are none of ``BITS``, or types that have bits already.
    """
    types = tuple(types)
    if again := [d.name for d in types if isinstance(d, Quantized)]:
        raise InvalidArgument(f"types={again}: these have bits already; give the types themselves")
    dense = () if any(d.name == "dense" for d in types) else (Dense(),)
    return (*types, *(Quantized(d, n) for d in (*dense, *types) if not d.storage_only for n in dict.fromkeys(bits)))


def _grid(ranks: np.ndarray, labels: int, saving: np.ndarray) -> np.ndarray:
    """Positions of the ranks that are measured: of those that save, structure by structure, the ones with widths of a geometric grid and
    the largest; with the last rank of all."""
    kept = np.zeros(len(ranks), dtype=bool)
    kept[-1] = True
    widths = ranks[:, labels:]
    count = WIDTHS.get(widths.shape[1], 3)
    for label in np.unique(ranks[:, :labels], axis=0):
        rows = np.flatnonzero((ranks[:, :labels] == label).all(axis=1) & saving)
        if not len(rows):
            continue
        fits = np.ones(len(rows), dtype=bool)
        for column in widths[rows].T:
            there = np.unique(column)
            if len(there) > count:
                wanted = there[np.unique(np.searchsorted(there, geometric(int(there[-1]), count)).clip(max=len(there) - 1))]
                fits &= np.isin(column, np.append(wanted, there[-1]))
        kept[rows[fits]] = True
    return np.flatnonzero(kept)
