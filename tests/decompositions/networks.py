"""Noiseless tensors of known structure, a contraction that knows only einsum, and linear algebra as another processor does it."""

from __future__ import annotations

import itertools
import math
import string

import numpy as np
import pytest
import torch
from torch import Tensor

from ranksearch.decompositions import network as network_module

Widths = dict[tuple[int, int], int]  # pair of nodes, the smaller first: width; the node past the modes is a hub
HUB = 4

# name -> sizes of the modes, widths of the bonds, how its graph is called
TREES: dict[str, tuple[tuple[int, ...], Widths, str]] = {
    "train": ((5, 6, 4, 5), {(0, 1): 2, (1, 2): 3, (2, 3): 2}, "train"),
    "train in another order": ((5, 5, 5, 5), {(0, 2): 2, (1, 2): 3, (1, 3): 3}, "train"),
    "train of three": ((6, 5, 6), {(0, 1): 2, (1, 2): 2}, "train"),
    "star": ((5, 6, 4, 5), {(0, 1): 2, (0, 2): 2, (0, 3): 3}, "star"),
    "two matrices": ((5, 6, 4, 5), {(0, 2): 2, (1, 3): 3}, "network"),
    "Tucker": ((5, 6, 4, 5), {(0, HUB): 2, (1, HUB): 3, (2, HUB): 2, (3, HUB): 2}, "hub"),
    "Tucker of three": ((12, 10, 12), {(0, 3): 2, (1, 3): 3, (2, 3): 3}, "hub"),
    "hub and a bond": ((6, 6, 6, 8), {(0, HUB): 3, (1, HUB): 3, (2, HUB): 3, (2, 3): 2}, "tree"),
}
LOOPS: dict[str, tuple[tuple[int, ...], Widths, str]] = {
    "ring": ((5, 6, 4, 5), {(0, 1): 2, (1, 2): 2, (2, 3): 2, (0, 3): 2}, "ring"),
    "ring in another order": ((6, 6, 6, 6), {(0, 1): 2, (1, 3): 3, (2, 3): 2, (0, 2): 3}, "ring"),
    "ring of three": ((6, 6, 6), {(0, 1): 2, (1, 2): 2, (0, 2): 2}, "ring"),
    "ring and a tail": ((6, 6, 6, 5), {(0, 1): 2, (1, 2): 2, (0, 2): 2, (2, 3): 2}, "network"),
    "ring of a convolution": ((24, 24, 3, 3), {(0, 1): 3, (1, 2): 2, (2, 3): 2, (0, 3): 2}, "ring"),
    "ring with a chord": ((8, 8, 8, 8), {(0, 1): 2, (1, 2): 2, (2, 3): 2, (0, 3): 2, (0, 2): 2}, "network"),
}


def rank_of(sizes: tuple[int, ...], widths: Widths) -> tuple[int, ...]:
    """The rank of `adaptive`: widths of all pairs of modes and hub."""
    return tuple(widths.get(pair, 1) for pair in itertools.combinations(range(len(sizes) + 1), 2))


def tensor_of(sizes: tuple[int, ...], widths: Widths, seed: int) -> Tensor:
    """A network of Gaussian cores, put together by einsum over its edges alone."""
    random = np.random.default_rng(seed)
    letter = dict(zip(widths, string.ascii_lowercase, strict=False))
    terms, cores = [], []
    for node in range(len(sizes) + any(len(sizes) in pair for pair in widths)):
        touching = [pair for pair in widths if node in pair]
        mode = string.ascii_uppercase[node] if node < len(sizes) else ""
        terms.append("".join(letter[pair] for pair in touching) + mode)
        cores.append(random.standard_normal([widths[pair] for pair in touching] + list(sizes[node : node + 1])))
    return torch.from_numpy(np.einsum(",".join(terms) + "->" + string.ascii_uppercase[: len(sizes)], *cores, optimize=True))


def composed(cores: list[Tensor] | tuple[Tensor, ...], modes: int) -> np.ndarray:
    """The tensor of cores in the layout of the package, by one einsum."""
    nodes = len(cores)
    letter = dict(zip(itertools.combinations(range(nodes), 2), string.ascii_lowercase, strict=False))
    terms = []
    for node in range(nodes):
        bonds = "".join(letter[min(node, other), max(node, other)] for other in range(nodes) if other != node)
        terms.append(bonds + (string.ascii_uppercase[node] if node < modes else ""))
    return np.einsum(",".join(terms) + "->" + string.ascii_uppercase[:modes], *(c.numpy() for c in cores), optimize=True)


def relative_error(found: np.ndarray, tensor: Tensor) -> float:
    return float(np.linalg.norm(found - tensor.numpy()) / np.linalg.norm(tensor.numpy()))


def storage(sizes: tuple[int, ...], rank: tuple[int, ...]) -> int:
    """Numbers stored for a rank of `adaptive`: each node's size times the widths of its bonds; a hub without bonds is not stored."""
    nodes = len(sizes) + 1
    widths = dict(zip(itertools.combinations(range(nodes), 2), rank, strict=True))
    each = [math.prod(r for pair, r in widths.items() if node in pair) for node in range(nodes)]
    return sum(n * w for n, w in zip(sizes, each, strict=False)) + (each[-1] if each[-1] > 1 else 0)


class OtherProcessor:
    """Linear algebra with other last bits and other signs of singular vectors, as another processor or library has them."""

    def __init__(self, patch: pytest.MonkeyPatch, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.svd, self.eigh, self.contract = torch.linalg.svd, torch.linalg.eigh, network_module.contract
        patch.setattr(torch.linalg, "svd", self._svd)
        patch.setattr(torch.linalg, "eigh", self._eigh)
        patch.setattr(network_module, "contract", self._contract)  # what `sweep` calls

    def _noisy(self, x: Tensor) -> Tensor:
        return x + 4e-16 * x.norm() / x.numel() ** 0.5 * torch.randn(x.shape, generator=self.random, dtype=x.dtype)

    def _signs(self, vectors: Tensor) -> Tensor:
        return torch.randint(0, 2, (vectors.shape[-1],), generator=self.random).mul(2).sub(1).to(vectors)

    def _svd(self, matrix: Tensor, full_matrices: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        left, values, right = self.svd(matrix, full_matrices=full_matrices)
        signs = self._signs(left)
        return self._noisy(left * signs), values, self._noisy(signs[: len(right), None] * right)

    def _eigh(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = self.eigh(matrix)
        return values, self._noisy(vectors * self._signs(vectors))

    def _contract(self, *args: object, **options: object) -> Tensor:
        return self._noisy(self.contract(*args, **options))  # type: ignore[arg-type]
