"""Small layers of all kinds in every type that says what the axes of its factors are."""

from __future__ import annotations

import torch
from torch import Tensor

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition
from ranksearch.sites import Call, Site

CALLS = (Call(1, (8, 8), (8, 8)),)
SITES = [
    Site("plain", "conv2d", 5, 4, (3, 2), calls=CALLS),
    Site("grouped", "conv2d", 6, 4, (3, 3), groups=2, calls=CALLS),
    Site("wide", "conv2d", 4, 5, (1, 3), calls=CALLS),
    Site("sequence", "conv1d", 4, 3, (1, 5), calls=(Call(1, (1, 8), (1, 8)),)),
]
TYPES = [(d, site) for d in DECOMPOSITIONS for site in SITES if d.undefined(site) is None and d.axes(site) is not None]
IDS = [f"{d.name}-{site.name}" for d, site in TYPES]


def drawn(decomposition: AnyDecomposition, site: Site) -> tuple[tuple[str, ...], list[Tensor]]:
    """Axes, and random factors of a middle rank."""
    axes, ranks = decomposition.axes(site), decomposition.ranks(site)
    shapes = decomposition.empty_factors(site, tuple(int(r) for r in ranks[len(ranks) // 2]))
    assert axes is not None and shapes is not None
    return axes, [torch.randn(factor.shape, dtype=torch.float64) for factor in shapes]


def parts_of(axes: tuple[str, ...], factors: list[Tensor]) -> int:
    """Into how many parts the input channels are cut."""
    words = axes[0].split()
    return factors[0].shape[words.index("t")] if "t" in words else 1


def blocks_of(site: Site) -> tuple[int, ...]:
    return (site.groups, site.c_out // site.groups, *site.shape[1:])


def moment(groups: int, size: int) -> Tensor:
    factor = torch.randn(groups, size, 3 * size, dtype=torch.float64)
    return factor @ factor.mT / size
