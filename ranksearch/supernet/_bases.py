"""What the supernet asks of a type that projects: bases, which are constants, and factors that are linear in the weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.decompositions import Moments, Rank
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site


@dataclass(frozen=True)
class Side:
    """A family of nested projectors P_r = out[..., :r] @ into[:, :r, :] on one side of a batch of matrices."""

    out: Tensor  # shape: (b, size, k), strongest first
    into: Tensor  # shape: (b, k, size); into @ out = identity; in the weight metric the transpose of out
    energies: Tensor  # squared singular values when the basis was made, shape: (b, k)


@dataclass(frozen=True)
class Bases:
    """What all ranks of one type with the same labels share at a site: one side, or an input and an output side for Tucker-2."""

    left: bool  # the side projects columns (from the left) or rows; of no meaning with two sides
    sides: tuple[Side, ...]


def moved(bases: Bases, like: Tensor) -> Bases:
    """The same bases for a weight of another device or dtype."""
    kind = working_dtype(like)
    return Bases(bases.left, tuple(Side(*(t.to(like.device, kind) for t in (s.out, s.into, s.energies))) for s in bases.sides))


class Projection(ABC):
    """How one decomposition type is seen as a projection of the dense canonical weight. Final and stateless."""

    name: str
    labels: int = 0  # leading entries of a rank that choose the folding (see `Decomposition.labels`)
    fitted: bool = False  # each rank has a basis of its own, fitted iteratively from the one before

    @abstractmethod
    def full(self, site: Site, labels: Rank) -> Rank:
        """The largest rank (without labels).

        Raises:
            InvalidArgument: the labels do not fit the site."""

    @abstractmethod
    def bases(self, site: Site, weight: Tensor, rank: Rank, moments: Moments | None = None) -> Bases:
        """Bases for all ranks that share the `key` of ``rank``, from scratch, without gradient.

        Args:
            weight: canonical, shape (c_out, c_in / groups, kh, kw). Bases are in its dtype, float32 for half precision.
        """

    @abstractmethod
    def factors(self, site: Site, weight: Tensor, bases: Bases, rank: Rank, *, balanced: bool = False) -> tuple[Tensor, ...]:
        """Factors of one rank, in the layout of the decomposition's own ``factors``.

        Differentiable in ``weight``, shape (c_out, c_in / groups, kh, kw); the bases are constants.

        Args:
            balanced: whether factors have sizes as the decomposition's own have, as in extracted layers; the product is the same.
        """

    def key(self, rank: Rank) -> Rank:
        """The part of a rank that a basis depends on."""
        return tuple(rank[: self.labels])

    def split_rank(self, site: Site, rank: Rank) -> tuple[Rank, Rank]:
        """(labels, widths) of a rank.

        Raises:
            InvalidArgument: not a rank of this type at this site."""
        labels, widths = tuple(rank[: self.labels]), tuple(rank[self.labels :])
        full = self.full(site, labels)
        if len(widths) != len(full) or any(not 1 <= r <= f for r, f in zip(widths, full, strict=True)):
            raise InvalidArgument(f"{self.name}{tuple(rank)} at {site.name!r}: widths must be from 1 to {full}")
        return labels, widths


def working_dtype(weight: Tensor) -> torch.dtype:
    """float64 stays float64; everything else has its bases in float32."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
