"""Plain SVD of every layer: the space of most published work, to compare with."""

from __future__ import annotations

from ranksearch.search_spaces._base import SpaceSpec, named


def svd_only(*, round_to: int = 1) -> SpaceSpec:
    """Every layer dense or ``svd`` at any rank that is a multiple of ``round_to``."""
    return SpaceSpec(named("svd"), round_to=round_to)
