"""Topologies from the spectra of slices, the rule in public code of the first author of STN (arXiv 2205.15198) for an earlier
adaptive tensor network; that STN itself uses it is an inference. For every pair of modes (i, j), take the squared singular values of all
n_i x n_j slices, averaged and divided by their sum. Their bond is as wide as the fewest leading values whose share reaches one
threshold, which is the same for all pairs; width 1 is no edge. As the threshold rises, bonds only get wider."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ranksearch.decompositions.exact_structure import solve_work
from ranksearch.decompositions.network import Bonds, balanced, fit, pairs, start, stored, widen
from ranksearch.decompositions.network_growth import SHARE, WORK, Grown
from ranksearch.decompositions.singular import svdvals
from ranksearch.decompositions.tree_network import is_forest, truncate_to_tree

LEVELS = 10  # structures that are fitted, evenly spaced in the logarithm of their storage
SWEEPS = 40  # of least squares for each, at most; fewer once they gain under 3e-4 of the error


def slice_spectra(tensor: Tensor) -> list[Tensor]:
    """For every pair of modes, the mean squared singular values of its slices, divided by their sum; descending."""
    spectra = []
    for i, j in pairs(tensor.ndim):
        slices = tensor.movedim((i, j), (-2, -1)).reshape(-1, tensor.shape[i], tensor.shape[j])
        energies = svdvals(slices).square().mean(0)
        spectra.append(energies / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny))
    return spectra


def slice_structures(tensor: Tensor) -> list[Bonds]:
    """The bonds at every threshold where they change, narrowest first."""
    shares = [s.cumsum(0).cpu() for s in slice_spectra(tensor)]
    thresholds = sorted({float(share) for s in shares for share in s})
    found: list[Bonds] = []
    for threshold in thresholds:
        # shares within rounding of the threshold reach it
        bonds = tuple(min(len(s), 1 + int((s < threshold * (1 - 1e-9)).sum())) for s in shares)
        if not found or bonds != found[-1]:
            found.append(bonds)
    return found


def slice_networks(tensor: Tensor, sizes: tuple[int, ...]) -> list[Grown]:
    """At most `LEVELS` structures of the rule, up to the storage and work where growth ends too, fitted by alternating least squares:
    trees from their closed form, others from the narrower one before them.

    Args:
        tensor: float64; in the bases of its modes, see `network.reduce`.
        sizes: of the modes before they were reduced: what the cores will be stored at."""
    generator = torch.Generator().manual_seed(0)
    limit = SHARE * math.prod(sizes)
    cheap = [b for b in slice_structures(tensor) if stored(sizes, b) <= limit and solve_work(tuple(tensor.shape), b) <= WORK]
    networks: list[Grown] = []
    cores = start(tensor)
    for bonds in _spaced(cheap, [math.log(stored(sizes, b)) for b in cheap]):
        begin = truncate_to_tree(tensor, bonds) if is_forest(bonds) else widen(cores, bonds, generator)
        fitted, error = fit(tensor, begin, sweeps=SWEEPS, tolerance=3e-4)
        cores = balanced(fitted)
        networks.append(Grown(bonds, cores, error))
    return networks


def _spaced(structures: list[Bonds], positions: list[float]) -> list[Bonds]:
    """`LEVELS` of the structures at about equal distances of their positions, which ascend; the last among them."""
    if not structures:
        return []
    step = (positions[-1] - positions[0]) / LEVELS
    wanted = [positions[-1] - k * step for k in reversed(range(LEVELS))]
    chosen = {max(n for n, p in enumerate(positions) if p <= w + 1e-9) for w in wanted}
    return [structures[n] for n in sorted(chosen)]
