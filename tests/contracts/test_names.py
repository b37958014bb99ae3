"""Ranks as people read them, and one name for each network."""

from __future__ import annotations

import re

import pytest
from contract_cases import SHAPES, every_weight, make, prepared
from torch import Tensor

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, describe
from ranksearch.errors import InvalidArgument


@every_weight
def test_ranks_are_described(kind: str, decomposition: AnyDecomposition) -> None:
    _, site, _ = make(kind)
    ranks = prepared(kind, decomposition)[2].ranks.tolist()
    texts = [describe(site, decomposition.name, rank) for rank in ranks]
    assert len(set(texts)) == len(ranks)  # no two ranks read alike
    for rank, text in zip(ranks, texts, strict=True):
        assert text and "\n" not in text and text == decomposition.describe(site, tuple(rank))
        shown = [r for r in rank if r > 1] if decomposition.name == "adaptive" else rank
        assert [int(n) for n in re.findall(r"(?<![a-z])\d+", text)] == shown


def test_descriptions_read_well() -> None:
    _, site, _ = make("conv3x3")
    _, matrix, _ = make("linear")
    assert describe(site, "dense", ()) == "full" and describe(site, "svd", [12]) == "r=12"
    assert describe(site, "tucker2", (8, 12)) == "in 8, out 12" and describe(site, "grouped_svd", (4, 6)) == "4 groups, r=6"
    assert describe(site, "tiled_svd", (2, 4, 6)) == "2 x 4 tiles, r=6" and describe(site, "decoupled", (2,)) == "2 per filter"
    assert describe(site, "tensor_train", (4, 8, 6)) == "bonds 4-8-6" and describe(site, "tensor_ring", (4, 2, 2)) == "ring 4-2-2"
    assert describe(site, "adaptive", (2, 1, 1, 1, 3, 1, 1, 1, 1, 5)) == "o-2-i, i-3-h, w-5-hub"
    assert describe(matrix, "adaptive", (1, 4, 1, 1, 1, 1, 1, 1, 1, 1)) == "o1-4-i1"
    assert describe(site, "adaptive", (1,) * 10) == "rank one"
    with pytest.raises(InvalidArgument, match="svdd"):
        describe(site, "svdd", (1,))


@pytest.mark.parametrize("kind", SHAPES)
def test_no_network_has_two_names(kind: str) -> None:
    """Options of equal cost and equal weight are the same network under two names."""
    _, site, _ = make(kind)
    seen: dict[tuple[int, int], list[tuple[str, tuple[int, ...], Tensor]]] = {}
    for decomposition in DECOMPOSITIONS:
        if decomposition.undefined(site) is not None or not decomposition.exact:
            continue
        weight, state, _ = prepared(kind, decomposition)
        for row in decomposition.options(site):
            rank = tuple(row.tolist())
            cost = decomposition.cost(site, rank)
            dense = decomposition.reconstruct(site, state, rank)
            for name, other, value in seen.setdefault((cost.params, cost.macs), []):
                assert (dense - value).norm() > 1e-8 * weight.norm(), f"{name}{other} is {decomposition.name}{rank}"
            seen[cost.params, cost.macs].append((decomposition.name, rank, dense))
