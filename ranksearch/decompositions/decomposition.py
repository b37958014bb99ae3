"""The contract of a decomposition. What is done once for a site (``prepare``, ``errors``) stands apart from what
is done for every candidate (``factors``, ``module``)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions.chain import Link
from ranksearch.decompositions.metric import Moments
from ranksearch.sites import Cost, Site

Rank = tuple[int, ...]
BEYOND = "not made for transposed and 3-D convolutions: svd, svd_in and tucker2 are"
Quality = Literal["exact", "bound", "measured"]


@dataclass(frozen=True)
class Errors:
    """Errors of every rank of a decomposition at one site, relative to the norm of the weight, in one metric."""

    ranks: np.ndarray  # int64, shape: (n_ranks, rank_length)
    frobenius: np.ndarray  # float64, shape: (n_ranks,): |W - W_r| / |W|
    operator: np.ndarray  # float64, shape: (n_ranks,): operator norm of the residual, in the folding truncated; NaN: none
    norm: float  # |W| in the metric; (frobenius * norm)^2 is the absolute squared error
    frobenius_is: Quality = "exact"
    operator_is: Quality = "exact"


@runtime_checkable
class Searched(Protocol):
    """A state whose errors and factors need a search, which goes step by step and is made for all ranks when they are first asked for.

    From then on ``found`` holds its result, a tensor or several per rank or structure. Another state of the same site and metric that
    is given this result searches no more. The rest of such a state is large and quickly made, so nobody keeps it."""

    @property
    def found(self) -> dict[Rank, Tensor]:
        """Empty until the search is made, then never changed."""
        ...


S = TypeVar("S")


class Decomposition(ABC, Generic[S]):
    """One way to factorize a site. Implementations are final, immutable and listed in ``DECOMPOSITIONS``.

    ``S`` is the state of a prepared site: spectra or cores, opaque to callers. Canonical weights have shape
    (c_out, c_in / groups, kh, kw), see `Site`. States and factors are float64, on the weight's device; a factor of integers is no
    weight (an order of channels), and nothing is fitted to it.
    """

    name: str
    nested: bool = True  # errors in the weight metric never grow when any entry of the rank does
    exact: bool = True  # the last of the ranks reconstructs the weight
    labels: int = 0  # how many leading entries of a rank name a structure (groups, tiles) and are no widths
    optimal: bool = False  # factors are the best of their rank in every metric
    components: bool = False  # factors are C_out x r and r x (C_in kh kw), and those of a rank are the first of those of every higher one
    storage_only: bool = False  # built as a parametrized dense layer: saves params, adds MACs

    @abstractmethod
    def undefined(self, site: Site) -> str | None:
        """Why this decomposition is not defined for ``site`` (a short phrase), or None where it is."""

    @abstractmethod
    def ranks(self, site: Site) -> np.ndarray:
        """Ranks up to full, int64, shape: (n_ranks, rank_length), the full one last; also those that cost more than
        dense. Types whose errors are dear may leave ranks out that no option needs."""

    @abstractmethod
    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Params and MACs of the built module for every row of ``ranks``: two int64 arrays of shape (n_ranks,).
        They come from a closed form and include the bias. MACs are for one example over all calls, as torch's flop counter sees
        them: products that put a weight together in every call count too."""

    @abstractmethod
    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> S:
        """Make everything that all ranks share, once per site. ``weight`` is canonical and is not changed."""

    @abstractmethod
    def errors(self, state: S) -> Errors:
        """Errors of every rank, in the metric that ``state`` was prepared in."""

    @abstractmethod
    def factors(self, state: S, rank: Rank) -> tuple[Tensor, ...]:
        """Factors of one rank, float64 (int64: no weight), made for the state's metric (best in it where docs/metrics.md says so); the
        layout is the decomposition's own."""

    def cut(self, factors: tuple[Tensor, ...], rank: Rank) -> tuple[Tensor, ...]:
        """The factors of a rank, copied from those of a higher one; of types of ``components`` alone."""
        left, right = factors[0][..., : rank[0]], factors[1][..., : rank[0], :]
        return left.clone(memory_format=torch.contiguous_format), right.clone(memory_format=torch.contiguous_format)

    def of_gram(self, site: Site, weight: Tensor, gram: Tensor, output: Tensor | None, rank: Rank) -> tuple[Tensor, ...] | None:
        """The best factors of one rank in a metric of which no more is known than what a weight is in it; None where that is not
        enough.

        Args:
            gram: weight A weight^T, float64, shape (groups, c_out / groups, c_out / groups).
            output: G, floored; None: the identity.
        """
        del site, weight, gram, output, rank
        return None

    @abstractmethod
    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        """The dense canonical weight that ``factors`` stand for. Differentiable in the factors."""

    @abstractmethod
    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        """A module that computes what the dense layer with weight ``compose(site, factors)`` computes, of plain
        torch layers where they exist, with parameters in the dtype and on the device of ``factors``."""

    def links(self, site: Site, ranks: np.ndarray) -> list[Link] | None:
        """The chain of plain layers that every row of ``ranks`` is built as, channel counts as arrays of shape (n_ranks,) where they
        depend on the rank; None where the built module is no such chain."""
        del site, ranks
        return None

    def axes(self, site: Site) -> tuple[str, ...] | None:
        """What the axes of every factor are, where the weight is the sum of products of the factors' entries over the axes that they
        share and any two factors are joined in one way: what `Curvature` is made by. None where it is not so, or nobody has said.

        One string per factor has a word per axis, as in ``("g ohw r", "g r i")``. The letters g, o, i, h and w are the weight's axes
        (groups, C_out / groups, C_in / groups, kh, kw), an axis of several of them is one word, and one of size 1 may be missing. Where
        the input channels are cut into parts, t is the axis of these and i that of one part's channels. All factors have g and t, where
        there are any, and in front, and any other of the weight's axes has one. Any other letter is an axis that factors share."""
        del site
        return None

    def held(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """What the built module stores: bytes of integers, and numbers in the floating-point type of the network, two int64 arrays of
        shape (n_ranks,); None where it stores its params and nothing else."""
        del site, ranks
        return None

    def saves(self, site: Site, params: np.ndarray, macs: np.ndarray) -> np.ndarray:
        """Which ranks of these costs are worth offering, bool, shape: (n_ranks,): those that are `cheaper` than the dense layer."""
        return cheaper(site, params, macs)

    def cost(self, site: Site, rank: Rank) -> Cost:
        """Params and MACs of one rank, see `costs`."""
        params, macs = self.costs(site, np.asarray([rank], dtype=np.int64).reshape(1, len(rank)))
        return Cost(params=int(params[0]), macs=int(macs[0]))

    def options(self, site: Site) -> np.ndarray:
        """The ranks that are cheaper than dense in params or in MACs, cheapest first (params, then MACs); none
        where the decomposition is undefined."""
        if self.undefined(site) is not None:
            return np.zeros((0, 1), dtype=np.int64)
        ranks = self.ranks(site)
        params, macs = self.costs(site, ranks)
        keep = np.flatnonzero(self.saves(site, params, macs))
        return ranks[keep[np.lexsort((macs[keep], params[keep]))]]

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...] | None:
        """Factors of a rank with the right shapes and no meaning, for layers whose weights come from elsewhere or do not matter
        (loading, timing), without a state; None where only `factors` knows their shapes."""
        del site, rank
        return None

    def describe(self, site: Site, rank: Rank) -> str:
        """A rank of ``site`` in a few words, for tables and figures: ``r=12``."""
        return f"r={rank[0]}" if len(rank) == 1 else f"r=({', '.join(map(str, rank))})"

    def reconstruct(self, site: Site, state: S, rank: Rank) -> Tensor:
        """The dense canonical weight that stands in for the original one at ``rank``, float64."""
        return self.compose(site, self.factors(state, rank))


def blank(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Tensors of these shapes with norm 1, float64: what `Decomposition.empty_factors` are made of."""
    return tuple(torch.full(shape, math.prod(shape) ** -0.5, dtype=torch.float64) for shape in shapes)


def cheaper(site: Site, params: np.ndarray, macs: np.ndarray) -> np.ndarray:
    """Mask of the options that save params, or save MACs, against the dense layer."""
    dense = site.cost
    return (params < dense.params) | (macs < dense.macs)


AnyDecomposition = Decomposition[Any]
