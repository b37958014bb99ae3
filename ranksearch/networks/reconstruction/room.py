"""Which layers are fitted as a whole, namely those whose moments fit into memory, and how much memory that takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ranksearch.sites import Site, device_of, evaluating, run, tensors_of
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import LARGEST
from ranksearch.statistics.memory import device_memory

COPIES = 14  # float64 matrices of the size of a layer's input moment that are held at once while it is fitted, at most
SHARE = 0.5  # of the device's memory that they may take
BETWEEN = 1 / 8  # of the memory that what all batches have between two layers may take
HELD = 4  # times the inputs and outputs of the largest layer: two networks, and what goes around layers in them
GIB = 2**30


def fit_bytes(site: Site) -> int:
    """Bytes that fitting a site takes at most, beyond its network and what lies between two layers: those of its input moments."""
    return COPIES * 8 * site.groups * (math.prod(site.shape[1:]) + 1) ** 2


def too_wide(site: Site, device: torch.device) -> str | None:
    """Why a site has too many inputs for a moment, or None. Patches of more than ``LARGEST`` entries have none, as in statistics; other
    inputs have one where the device that the layer is on has room for it."""
    width, taps = math.prod(site.shape[1:]), math.prod(site.kernel)
    if site.kind == "embedding" or width <= LARGEST:
        return None
    if taps > 1:
        return f"a patch of {width} inputs, over {LARGEST}"
    needed, room = fit_bytes(site), SHARE * device_memory(device)
    if needed <= room:
        return None
    return f"{width} inputs, whose moments take {needed / GIB:.1f} GiB while it is fitted, over the {room / GIB:.1f} that may be taken"


def layer_device(spectra: Spectra, site: Site) -> torch.device:
    """Where the dense layer of a site is, and so the one that is fitted to it."""
    return device_of(spectra.model.get_submodule(site.name))


def announced(spectra: Spectra, configuration: Configuration) -> str | None:
    """What memory reconstruction takes for the widest layer that is fitted as a whole, in words, before it is taken; None where it is
    little."""
    sites = [spectra.sites[name] for name, _, _ in configuration.choices]
    whole = [site for site in sites if site.kind != "embedding" and too_wide(site, layer_device(spectra, site)) is None]
    widest = max(whole, key=fit_bytes, default=None)
    if widest is None or fit_bytes(widest) < GIB:
        return None
    return f"fitting {widest.name}, of {math.prod(widest.shape[1:]):,} inputs, takes up to {fit_bytes(widest) / GIB:.1f} GiB"


def batches_within(model: nn.Module, paths: Iterable[str], batch: Any, most: int) -> int:
    """How many batches, at least one and at most ``most``, can go through two networks together within an eighth of the memory of the
    device, as `reconstruct` takes them. One passes through the dense network here.

    Args:
        paths: of the layers whose inputs and outputs are looked at.
    """
    largest = 0

    def look(_module: nn.Module, given: Any, answer: Any) -> None:
        nonlocal largest
        largest = max(largest, sum(tensor.nbytes for _, tensor in tensors_of((given, answer))))

    with ExitStack() as stack, evaluating(model):
        for path in paths:
            stack.callback(model.get_submodule(path).register_forward_hook(look).remove)
        run(model, batch)
    return int(max(1, min(most, BETWEEN * device_memory(device_of(model)) // (HELD * max(largest, 1)))))
