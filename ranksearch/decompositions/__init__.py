"""Every decomposition, one file each. The table below is the only list of them; each may have few bits besides."""

from __future__ import annotations

from collections.abc import Sequence

from ranksearch.decompositions.adaptive import Adaptive
from ranksearch.decompositions.cp import CP
from ranksearch.decompositions.decomposition import AnyDecomposition, Decomposition, Errors, Rank, Searched, cheaper
from ranksearch.decompositions.decoupled import Decoupled
from ranksearch.decompositions.dense import Dense
from ranksearch.decompositions.grouped_svd import GroupedSVD
from ranksearch.decompositions.grouped_svd_learned import GroupedSVDLearned
from ranksearch.decompositions.kronecker import Kronecker
from ranksearch.decompositions.metric import Moments
from ranksearch.decompositions.quantized import BITS, Quantized, with_bits
from ranksearch.decompositions.spatial import Spatial
from ranksearch.decompositions.svd import SVD
from ranksearch.decompositions.svd_in import SVDIn
from ranksearch.decompositions.tensor_ring import TensorRing
from ranksearch.decompositions.tensor_train import TensorTrain
from ranksearch.decompositions.tiled_svd import TiledSVD
from ranksearch.decompositions.tucker2 import Tucker2
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site

DECOMPOSITIONS: tuple[AnyDecomposition, ...] = (
    Dense(),
    SVD(),
    SVDIn(),
    Spatial(first="width"),
    Spatial(first="height"),
    Tucker2(),
    GroupedSVD(),
    GroupedSVDLearned(),
    Decoupled(),
    TiledSVD(),
    CP(),
    TensorTrain(),
    TensorRing(),
    Adaptive(),
)

# what a name may stand for, wherever it comes from: the types and each of them with few bits
KNOWN: tuple[AnyDecomposition, ...] = with_bits(DECOMPOSITIONS, BITS)


def describe(site: Site, decomposition: str, rank: Sequence[int]) -> str:
    """An option of ``site`` in a few words, see `Decomposition.describe`: ``r=12``, ``in 8, out 12``, ``4 groups, r=6``.

    Raises:
        InvalidArgument: no decomposition has that name.
    """
    for known in KNOWN:
        if known.name == decomposition:
            return known.describe(site, tuple(int(r) for r in rank))
    raise InvalidArgument(f"decomposition={decomposition!r} is not one of: {', '.join(d.name for d in DECOMPOSITIONS)}")


__all__ = [
    "BITS", "DECOMPOSITIONS", "KNOWN", "AnyDecomposition", "Decomposition", "Errors", "Kronecker", "Moments", "Quantized", "Rank",
    "Searched", "cheaper", "describe", "with_bits",
]  # fmt: skip
