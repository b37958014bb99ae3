"""Which layers are fitted as a whole, namely those whose moments fit into memory, and how much memory that takes."""

from __future__ import annotations

import math

from ranksearch.sites import Site
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import LARGEST
from ranksearch.statistics.memory import machine_memory

COPIES = 14  # float64 matrices of the size of a layer's input moment that are held at once while it is fitted, at most
SHARE = 0.5  # of the machine's memory that they may take
GIB = 2**30


def fit_bytes(site: Site) -> int:
    """Bytes that fitting a site takes at most, beyond its network and what lies between two layers: those of its input moments."""
    return COPIES * 8 * site.groups * (math.prod(site.shape[1:]) + 1) ** 2


def too_wide(site: Site) -> str | None:
    """Why a site has too many inputs for a moment, or None. Patches of more than ``LARGEST`` entries have none, as in statistics; other
    inputs have one where this machine has room for it."""
    width, taps = math.prod(site.shape[1:]), math.prod(site.kernel)
    if site.kind == "embedding" or width <= LARGEST:
        return None
    if taps > 1:
        return f"a patch of {width} inputs, over {LARGEST}"
    needed, room = fit_bytes(site), SHARE * machine_memory()
    if needed <= room:
        return None
    return f"{width} inputs, whose moments take {needed / GIB:.1f} GiB while it is fitted, over the {room / GIB:.1f} that are taken here"


def announced(spectra: Spectra, configuration: Configuration) -> str | None:
    """What memory reconstruction takes for the widest layer that is fitted as a whole, in words, before it is taken; None where it is
    little."""
    sites = [spectra.sites[name] for name, _, _ in configuration.choices]
    whole = [site for site in sites if site.kind != "embedding" and too_wide(site) is None]
    widest = max(whole, key=fit_bytes, default=None)
    if widest is None or fit_bytes(widest) < GIB:
        return None
    return f"fitting {widest.name}, of {math.prod(widest.shape[1:]):,} inputs, takes up to {fit_bytes(widest) / GIB:.1f} GiB"
