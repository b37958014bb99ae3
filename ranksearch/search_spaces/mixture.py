"""The default: the types that win, layer by layer, on trained convolutional networks (`docs/types.md`)."""

from __future__ import annotations

from ranksearch.search_spaces._base import SpaceSpec, named


def mixture(*, cp: bool = True, round_to: int = 1, max_options: int | None = None) -> SpaceSpec:
    """Every layer dense, ``svd``, ``svd_in``, ``spatial`` in both orders, ``tucker2`` or ``cp``.

    Args:
        cp: the smallest error for convolutions by far, and the dearest to profile: seconds for a layer of 64 channels, about
            a minute for one of 256; the others take milliseconds in the weight metric. Without it large networks are
            profiled at once.
        round_to, max_options: see `SpaceSpec`.
    """
    names = ("svd", "svd_in", "spatial", "spatial_t", "tucker2", *(("cp",) if cp else ()))
    return SpaceSpec(named(*names), round_to=round_to, max_options=max_options)
