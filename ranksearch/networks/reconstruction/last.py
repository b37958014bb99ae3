"""The last layer of a factorized one. It is fitted alone where the layer has too many inputs for a moment: what reaches it has few
channels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from ranksearch.decompositions import AnyDecomposition, Quantized, Rank
from ranksearch.decompositions.dense import Dense
from ranksearch.networks.reconstruction.room import too_wide
from ranksearch.sites import Site


def last_site(site: Site, decomposition: AnyDecomposition, rank: Rank, device: torch.device) -> Site | str:
    """The last link of the chain that a site is built as, as a site of its own; or why there is none to fit."""
    wide = too_wide(site, device)
    plain = decomposition.inner if isinstance(decomposition, Quantized) else decomposition
    links = plain.links(site, np.array([rank], dtype=np.int64))
    if links is None or len(links) < 2:
        return f"{wide}, and {decomposition.name} is no chain of layers of which the last could be fitted alone"
    if site.window is not None:
        return f"{wide}, of a convolution that moves over windows"
    link = links[-1]
    c_in, groups = (int(np.asarray(n).reshape(-1)[0]) for n in (link.c_in, link.groups))
    if groups != site.groups:
        return f"{wide}, and the last layer of {decomposition.name} has groups of its own"
    own = link.owns
    stride, dilation = (tuple(v if o else 1 for v, o in zip(p, own, strict=True)) for p in (site.stride, site.dilation))
    padding = site.padding if site.padding == "same" else tuple(p if o else 0 for p, o in zip(site.padding, own, strict=True))
    found = replace(
        site, kind="linear" if site.kind == "transformers_conv1d" else site.kind, c_in=c_in, kernel=link.kernel(site), stride=stride,
        dilation=dilation, padding=padding,
    )  # fmt: skip
    if too_wide(found, device):
        return f"{wide}, and {math.prod(found.shape[1:])} of its last layer's"
    return found


def last_type(decomposition: AnyDecomposition) -> AnyDecomposition:
    """The type of that layer: dense, with the bits that the whole has."""
    return Quantized(Dense(), decomposition.bits) if isinstance(decomposition, Quantized) else Dense()
