"""Every decomposition there is; those fitted by alternating least squares make the profile slower."""

from __future__ import annotations

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.search_spaces._base import SpaceSpec


def all_types(*, round_to: int = 1, max_options: int | None = None) -> SpaceSpec:
    """Every layer any type that is defined for it."""
    return SpaceSpec(DECOMPOSITIONS, round_to=round_to, max_options=max_options)
