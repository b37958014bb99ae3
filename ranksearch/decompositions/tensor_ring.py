"""Tensor rings (Zhao et al. 2016): a closed chain of cores over the modes of the weight. There is no chain of plain
layers for it: the cores are stored and the dense weight is put together from them, so that params are saved and MACs added."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions.decomposition import Rank, blank
from ranksearch.decompositions.fitted import FittedDecomposition, FittedNetworks, measured_networks
from ranksearch.decompositions.metric import Moments, conditioned
from ranksearch.decompositions.network import (
    Bonds,
    balanced,
    contract,
    core_shapes,
    fit,
    matrix_modes,
    pairs,
    reduce,
    start,
    stored_costs,
    stored_module,
    widen,
)
from ranksearch.sites import Site

SWEEPS = 25  # of alternating least squares per rank at most, 10 on large weights; fewer once they gain under a thousandth
AFRESH = 10_000  # weights up to this many entries are also fitted from two random starts
RATIOS = (1, 2, 4)  # of the bond between the channels to the bonds of the kernel


class TensorRing(FittedDecomposition):
    """Rank: the bonds around the ring. Convolutions have the modes (C_out, C_in, kh kw), matrices
    (o_1, o_2, i_1, i_2) of balanced factors. The ranks are a small grid, fitted by
    alternating least squares, and their errors are measured."""

    name = "tensor_ring"
    found_on = "its grid"

    def ranks(self, site: Site) -> np.ndarray:
        sizes = ring_modes(site)
        rows: list[tuple[int, ...]] = []
        for ratio in RATIOS if len(sizes) == 3 else (1,):
            width = 1.0
            while True:
                narrow = max(1, round(width))
                row = _capped((narrow * ratio, narrow, narrow) if len(sizes) == 3 else (narrow,) * 4, sizes)
                if _stored(sizes, row) >= math.prod(sizes) and rows:
                    break
                rows.append(row)
                width *= math.sqrt(2.0)
                if width > 2 * max(sizes):
                    break
        unique = sorted(set(rows), key=lambda row: (_stored(sizes, row), row))
        return np.array(unique, dtype=np.int64)

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = ring_modes(site)
        return stored_costs(site, sizes, [_bonds(tuple(row), len(sizes)) for row in ranks.tolist()])

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> FittedNetworks:
        dense = weight.double()
        metric = conditioned(moments, dense)
        sizes = ring_modes(site)
        reduced = reduce(dense.reshape(sizes))
        generator = torch.Generator().manual_seed(0)
        found: dict[Rank, list[Tensor]] = {}
        first = start(reduced.core)
        for row in map(tuple, self.ranks(site).tolist()):
            # from the best ring that fits inside: the last one found that is nowhere wider
            inner = next((r for r in reversed(found) if all(a <= b for a, b in zip(r, row, strict=True))), None)
            bonds = _bonds(row, len(sizes))
            begins = [widen(found[inner] if inner else first, bonds, generator)]
            small = reduced.core.numel() <= AFRESH
            if small:  # loops have local minima, which a start of its own may avoid
                begins += [[torch.randn(c.shape, generator=generator, dtype=torch.float64).to(c) for c in begins[0]] for _ in range(2)]
            fits = [fit(reduced.core, cores, sweeps=SWEEPS if small else 10, tolerance=1e-3) for cores in begins]
            found[row] = balanced(min(fits, key=lambda f: f[1])[0])
        return measured_networks(dense, metric, reduced, found, len(sizes))

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        sizes = ring_modes(site)
        return blank(*core_shapes(sizes, _bonds(rank, len(sizes))))

    def describe(self, site: Site, rank: Rank) -> str:
        return "ring " + "-".join(map(str, rank))

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        return contract(factors, len(factors)).reshape(site.shape)

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        return stored_module(site, factors, len(factors), bias)


def ring_modes(site: Site) -> tuple[int, ...]:
    if site.kernel != (1, 1):
        return (site.c_out, site.c_in, site.kernel[0] * site.kernel[1])
    return matrix_modes(site)


def _bonds(row: tuple[int, ...], modes: int) -> Bonds:
    """Bonds between all pairs; entry k of a rank joins mode k to the next, the last one closes the ring."""
    width = {tuple(sorted((k, (k + 1) % modes))): r for k, r in enumerate(row)}
    return tuple(width.get(pair, 1) for pair in pairs(modes))


def _capped(row: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The rank with no bond wider than what the rest of the tensor on either side of its ends can use."""
    modes, capped = len(sizes), list(row)
    for k in range(modes):
        ends = sizes[k] * capped[k - 1], sizes[(k + 1) % modes] * capped[(k + 1) % modes]
        capped[k] = min(capped[k], *ends)
    return tuple(capped)


def _stored(sizes: tuple[int, ...], row: tuple[int, ...]) -> int:
    return sum(math.prod(shape) for shape in core_shapes(sizes, _bonds(row, len(sizes))))
