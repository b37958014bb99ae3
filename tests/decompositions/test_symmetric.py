"""Eigendecompositions whose results are checked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ranksearch.decompositions import symmetric
from ranksearch.decompositions.metric import floored, half
from ranksearch.decompositions.symmetric import eigh, faithful

Pair = tuple[Tensor, Tensor]


def matrices(scale: float = 1.0) -> Tensor:
    """Two, of rank 3 in 12 dimensions."""
    rows = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scale * (rows.mT @ rows)


def twice(values: Tensor, vectors: Tensor) -> Pair:
    """A vector lost: another one in its place."""
    return values, torch.cat([vectors[..., 1:2], vectors[..., 1:]], dim=-1)


def swapped(values: Tensor, vectors: Tensor) -> Pair:
    return values.flip(-1), vectors


def one_of_two(values: Tensor, vectors: Tensor) -> Pair:
    return values, torch.stack([vectors[0], 0 * vectors[1]])


def unknown(values: Tensor, vectors: Tensor) -> Pair:
    return values, vectors * torch.nan


FAULTS = (twice, swapped, one_of_two, unknown)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_what_lapack_gives_is_faithful(scale: float) -> None:
    for matrix in (matrices(scale), torch.zeros(1, 4, 4, dtype=torch.float64), torch.eye(5, dtype=torch.float64)[None]):
        assert faithful(matrix, *torch.linalg.eigh(matrix))
        if scale == 1.0:
            assert faithful(matrix.float(), *torch.linalg.eigh(matrix.float()))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault: Callable[[Tensor, Tensor], Pair]) -> None:
    matrix = matrices()
    assert not faithful(matrix, *fault(*torch.linalg.eigh(matrix)))


@pytest.mark.parametrize("fault", FAULTS)
def test_lapack_takes_the_place_of_a_device_that_fails(fault: Callable[[Tensor, Tensor], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, solver, calls = matrices(), torch.linalg.eigh, []

    def first_wrong(given: Tensor) -> Pair:
        calls.append(given)
        found = solver(given)
        return fault(*found) if len(calls) == 1 else found

    expected = floored(matrix)
    monkeypatch.setattr(torch.linalg, "eigh", first_wrong)
    monkeypatch.setattr(symmetric, "TRUSTED", ())
    values, vectors = eigh(matrix)
    assert len(calls) == 2
    assert torch.allclose((vectors * values[..., None, :]) @ vectors.mT, matrix, rtol=0, atol=1e-12 * float(matrix.max()))
    calls.clear()
    found = floored(matrix)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12 * float(expected.max())) and bool(half(found).isfinite().all())
