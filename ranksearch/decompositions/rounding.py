"""Factors rounded to integers times a scale per output channel of the layer that holds them, to nearest. What layers hold which entry of
which factor is asked of the built module itself, so that any chain of plain layers can be rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ranksearch.decompositions.decomposition import AnyDecomposition
from ranksearch.sites import Site

SHARES = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5), 8: (1.0,)}  # of a row's largest value that its scale reaches to


@dataclass(frozen=True)
class Held:
    """One layer of the chain: where its weight's entries stand in the factors, laid one behind another."""

    places: Tensor  # int64, in the shape of the layer's weight: (rows, ...)
    groups: int
    table: bool  # an embedding: its rows are what goes in
    shuffle: int  # groups of the channel shuffle behind it; 1: none


def layout(decomposition: AnyDecomposition, site: Site, factors: Sequence[Tensor]) -> list[Held]:
    """The layers of the chain that factors of these shapes are built as, first to last: every entry of a factor is one of a weight, but
    for factors of integers, which are none."""
    module = numbered(decomposition, site, factors)
    held: list[Held] = []
    for layer in [module] if not isinstance(module, nn.Sequential) else list(module):
        if isinstance(layer, nn.ChannelShuffle):
            last = held.pop()
            held.append(Held(last.places, last.groups, last.table, layer.groups))
        elif layer._parameters.get("weight") is not None:
            weight, groups = layer.get_parameter("weight").detach(), getattr(layer, "groups", 1)
            held.append(Held(weight.long() - 1, int(groups), isinstance(layer, nn.Embedding), 1))
    return held


def numbered(decomposition: AnyDecomposition, site: Site, factors: Sequence[Tensor], *, bias: bool = False) -> nn.Module:
    """The layer that factors of these shapes are built as, with the number of an entry in its place, which says what entry of a factor
    stands where: entries are counted from 1, one factor behind another, those of integers left out; a ``bias`` has zeros."""
    total = sum(f.numel() for f in weights_of(factors))
    numbers = torch.arange(1, total + 1, dtype=torch.float64, device=factors[-1].device)  # exact below 2^53
    return decomposition.module(site, _parted(numbers, factors), numbers.new_zeros(site.shape[0]) if bias else None)


def rounded(weights: Tensor, bits: int) -> Tensor:
    """Every row to the nearest of its 2^bits - 1 levels, symmetric about zero; of several reaches of the scale (``SHARES`` of the row's
    largest value, beyond which values are cut) the one of the least squared error. The largest value of a row always becomes its largest
    level, so that a rounded row tells its scale.

    Args:
        weights: shape (rows, ...), float64.
    """
    rows, top = weights.flatten(1), 2 ** (bits - 1) - 1
    peak = rows.abs().amax(dim=1, keepdim=True)
    best, least = rows, torch.full_like(peak, torch.inf)
    for share in SHARES[bits]:
        scale = torch.where(peak > 0, peak * (share / top), 1.0)
        found = (rows / scale).round().clamp(-top, top) * scale
        error = (found - rows).square().sum(dim=1, keepdim=True)
        best, least = torch.where(error < least, found, best), torch.minimum(error, least)
    return best.reshape(weights.shape)


def round_factors(held: Sequence[Held], factors: Sequence[Tensor], bits: int) -> tuple[Tensor, ...]:
    """All factors rounded, layer by layer; shapes stay."""
    flat = torch.cat([f.flatten() for f in weights_of(factors)])
    for layer in held:
        flat[layer.places] = rounded(flat[layer.places], bits)
    return _parted(flat, factors)


def balanced(held: Sequence[Held], factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same product with the channels between two layers scaled so that the second layer reads all of them with weights of one norm.

    A scale per output channel is shared by all inputs of that channel: where these differ in size, the small ones are lost to
    rounding. The first layer's own scales take up any size. From the last pair of layers to the first; the channels behind an
    embedding stay, since its rows share their scale, too."""
    flat = torch.cat([f.flatten() for f in weights_of(factors)])
    for before, after in reversed(list(pairwise(held))):
        if before.table:
            continue
        weight = flat[after.places]
        grouped = weight.reshape(after.groups, weight.shape[0] // after.groups, weight.shape[1], -1)
        norms = grouped.square().sum(dim=(1, 3)).sqrt()  # shape: (groups, inputs per group)
        norms = torch.where(norms > 0, norms, 1.0)
        flat[after.places] = (grouped / norms[:, None, :, None]).reshape(weight.shape)
        first = flat[before.places]
        order = torch.arange(len(first), device=flat.device).reshape(before.shuffle, -1).T.flatten()  # which channel comes out where
        scales = torch.empty_like(norms.flatten())
        scales[order] = norms.flatten()
        flat[before.places] = first * scales.reshape(-1, *[1] * (first.ndim - 1))
    return _parted(flat, factors)


def _parted(flat: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Entries one behind another as tensors of these shapes; integers among them as they are."""
    parts = iter(flat.split([f.numel() for f in weights_of(like)]))
    return tuple(next(parts).reshape(f.shape) if f.is_floating_point() else f for f in like)


def weights_of(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors that are weights: all but those of integers."""
    return [f for f in factors if f.is_floating_point()]
