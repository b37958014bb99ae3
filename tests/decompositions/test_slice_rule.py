"""The slice rule: its spectra and widths against loops over slices in numpy, and the networks it gives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from networks import OtherProcessor, composed, storage
from torch import Tensor

from ranksearch.decompositions.exact_structure import with_hub
from ranksearch.decompositions.network_growth import SHARE
from ranksearch.decompositions.slice_rule import LEVELS, slice_networks, slice_spectra, slice_structures

SIZES = (6, 5, 3, 4)


def weight(seed: int) -> Tensor:
    tensor = torch.randn(SIZES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for axis, size in enumerate(SIZES):
        tensor = tensor.movedim(axis, -1).mul(torch.arange(1, size + 1, dtype=torch.float64) ** -0.7).movedim(-1, axis)
    return tensor


def spectrum_of(tensor: Tensor, i: int, j: int) -> np.ndarray:
    """Slice by slice."""
    others = [m for m in range(4) if m not in (i, j)]
    energies = []
    for place in itertools.product(*(range(SIZES[m]) for m in others)):
        index: list[int | slice] = [slice(None)] * 4
        for m, at in zip(others, place, strict=True):
            index[m] = at
        energies.append(np.linalg.svd(tensor.numpy()[tuple(index)], compute_uv=False) ** 2)
    return np.mean(energies, axis=0) / np.sum(np.mean(energies, axis=0))


@pytest.mark.parametrize("seed", range(3))
def test_spectra_are_means_over_slices(seed: int) -> None:
    tensor = weight(seed)
    for (i, j), found in zip(itertools.combinations(range(4), 2), slice_spectra(tensor), strict=True):
        np.testing.assert_allclose(found, spectrum_of(tensor, i, j), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_structures_are_those_of_one_threshold_each(seed: int) -> None:
    tensor = weight(seed)
    spectra = [spectrum_of(tensor, i, j) for i, j in itertools.combinations(range(4), 2)]
    # between any two neighbouring shares the threshold gives one structure
    shares = np.unique(np.concatenate([np.cumsum(s) for s in spectra]).round(12))
    expected = []
    for threshold in (shares + np.concatenate([[0.0], shares[:-1]])) / 2:
        bonds = tuple(int(np.argmax(np.cumsum(s) >= threshold)) + 1 for s in spectra)
        expected += [bonds] if bonds not in expected else []
    found = slice_structures(tensor)
    assert found == expected
    assert all(a <= b for narrow, wide in itertools.pairwise(found) for a, b in zip(narrow, wide, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_networks_are_within_the_storage_and_have_the_errors_they_say(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = weight(seed)
    networks = slice_networks(tensor, SIZES)
    params = [storage(SIZES, with_hub(n.bonds, 4)) for n in networks]
    assert 3 < len(networks) <= LEVELS and params == sorted(params) and params[-1] <= SHARE * math.prod(SIZES)
    for network in networks:
        assert network.bonds in slice_structures(tensor)
        assert float(np.linalg.norm(composed(network.cores, 4) - tensor.numpy()) ** 2) == pytest.approx(network.error, rel=1e-9)
    with monkeypatch.context() as patch:
        OtherProcessor(patch, seed)
        again = slice_networks(tensor, SIZES)
    assert [n.bonds for n in again] == [n.bonds for n in networks]
    np.testing.assert_allclose([n.error for n in again], [n.error for n in networks], rtol=1e-6)


def test_slices_of_a_zero_tensor_have_no_edges() -> None:
    assert [len(bonds) for bonds in slice_structures(torch.zeros(SIZES, dtype=torch.float64))] == [6]
