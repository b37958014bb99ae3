"""Every decomposition, one file each. The table below is the only list of them."""

from __future__ import annotations

from ranksearch.decompositions._base import AnyDecomposition, Decomposition, Errors, Moments, Rank, cheaper
from ranksearch.decompositions.adaptive import Adaptive
from ranksearch.decompositions.cp import CP
from ranksearch.decompositions.decoupled import Decoupled
from ranksearch.decompositions.dense import Dense
from ranksearch.decompositions.grouped_svd import GroupedSVD
from ranksearch.decompositions.spatial import Spatial
from ranksearch.decompositions.svd import SVD
from ranksearch.decompositions.svd_in import SVDIn
from ranksearch.decompositions.tensor_ring import TensorRing
from ranksearch.decompositions.tensor_train import TensorTrain
from ranksearch.decompositions.tiled_svd import TiledSVD
from ranksearch.decompositions.tucker2 import Tucker2

DECOMPOSITIONS: tuple[AnyDecomposition, ...] = (
    Dense(),
    SVD(),
    SVDIn(),
    Spatial(first="width"),
    Spatial(first="height"),
    Tucker2(),
    GroupedSVD(),
    Decoupled(),
    TiledSVD(),
    CP(),
    TensorTrain(),
    TensorRing(),
    Adaptive(),
)

__all__ = ["DECOMPOSITIONS", "AnyDecomposition", "Decomposition", "Errors", "Moments", "Rank", "cheaper"]
