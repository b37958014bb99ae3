"""How much memory second moments take, which of them are collected at a time, and what the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence

import torch

from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site
from ranksearch.statistics.inputs import factored

SHARE = 1 / 8  # of the memory that the moments of one pass over the data may take: what reads them out takes as much again


def machine_memory() -> float:
    """Bytes of the machine; infinite where it does not say."""
    known = {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(getattr(os, "sysconf_names", ()))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else float("inf")


def device_memory(device: torch.device) -> float:
    """Bytes of a device; of a processor, those of the machine."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else machine_memory()


def _least_memory(device: torch.device) -> float:
    """Bytes of a device, or of the machine, which takes over what is made there."""
    return min(device_memory(device), machine_memory())


def accumulator_bytes(sites: Iterable[Site], *, gradients: bool = True, diagonal: bool = False) -> int:
    """Bytes that the float64 accumulators of `collect` hold, all sites together; ``gradients``: with those of output moments."""
    total = 0
    for site in sites:
        total += moment_bytes(site) + (8 * site.groups * (site.c_out // site.groups) ** 2 if gradients else 0)
        total += 8 * math.prod(site.shape) if diagonal else 0
    return total


def moment_bytes(site: Site) -> int:
    """Bytes of the float64 input moment of a site, in the form in which it is kept."""
    c, taps = site.c_in // site.groups, site.kernel[0] * site.kernel[1]
    if site.kind == "embedding":
        return 8 * site.c_in
    return 8 * site.groups * (c * c + taps * taps if factored(site) else (c * taps) ** 2)


def passes(
    sites: Iterable[Site], limit: float | None, *, gradients: bool, diagonal: bool = False, device: torch.device
) -> list[tuple[Site, ...]]:
    """The sites that are collected in one pass over the data each, in order: as many neighbours at a time as have accumulators within
    ``limit`` bytes, one at least. None: ``SHARE`` of the memory of the network's device, or of the machine's if that is less."""
    room = SHARE * _least_memory(device) if limit is None else limit
    found: list[list[Site]] = []
    left = 0.0
    for site in sites:
        needed = accumulator_bytes([site], gradients=gradients, diagonal=diagonal)
        if not found or needed > left:
            found.append([])
            left = room
        found[-1].append(site)
        left -= needed
    return [tuple(group) for group in found]


def check_room(sites: Sequence[Site], *, gradients: bool, diagonal: bool, device: torch.device, remedy: str = "") -> None:
    """Refuses, before any work, moments that the machine, or the device that the network is on, could not hold while they are read out."""
    needed, memory = 2 * accumulator_bytes(sites, gradients=gradients, diagonal=diagonal), _least_memory(device)
    if needed > memory:
        largest = max(sites, key=lambda site: accumulator_bytes([site], gradients=gradients, diagonal=diagonal))
        raise InvalidArgument(
            f"sites: the moments of {len(sites)} layers take {needed / 2**30:.1f} GiB, and there are {memory / 2**30:.1f} for them "
            f"({device.type}); leave out the largest, such as exclude={largest.name!r}, or take metric='weight'{remedy}"
        )
