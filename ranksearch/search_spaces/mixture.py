"""The default: the types whose errors are exact for every rank at once, so that a profile takes seconds."""

from __future__ import annotations

from ranksearch.search_spaces._base import SpaceSpec, named


def mixture(*, round_to: int = 1, max_options: int | None = None) -> SpaceSpec:
    """Every layer dense, ``svd``, ``svd_in``, ``spatial`` in both orders, or ``tucker2``."""
    return SpaceSpec(named("svd", "svd_in", "spatial", "spatial_t", "tucker2"), round_to=round_to, max_options=max_options)
