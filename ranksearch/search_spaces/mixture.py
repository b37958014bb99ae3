"""The default: the types that win, layer by layer, on trained convolutional networks (`docs/types.md`), whose profile takes
seconds for networks of small layers."""

from __future__ import annotations

from ranksearch.search_spaces._base import SpaceSpec, named


def mixture(*, round_to: int = 1, max_options: int | None = None) -> SpaceSpec:
    """Every layer dense, ``svd``, ``svd_in``, ``spatial`` in both orders, ``tucker2`` or ``cp``."""
    return SpaceSpec(named("svd", "svd_in", "spatial", "spatial_t", "tucker2", "cp"), round_to=round_to, max_options=max_options)
