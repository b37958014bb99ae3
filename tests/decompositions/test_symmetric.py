"""Eigendecompositions whose results are checked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ranksearch.decompositions import symmetric
from ranksearch.decompositions.metric import floored, half
from ranksearch.decompositions.symmetric import cholesky_ex, eigh, eigvalsh, faithful

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


# -- eigenvalues alone ---------------------------------------------------------------------------------------------------


def lost(values: Tensor) -> Tensor:
    return torch.cat([values[..., 1:], values[..., -1:]], dim=-1)


def unordered(values: Tensor) -> Tensor:
    return values.flip(-1)


def moved(values: Tensor) -> Tensor:
    """The sum is right, the values are not."""
    by = torch.zeros_like(values)
    by[..., 0], by[..., -1] = -1.0, 1.0
    return values + 0.1 * values[..., -1:] * by


def nothing(values: Tensor) -> Tensor:
    return values * torch.nan


VALUE_FAULTS = (lost, unordered, moved, nothing)


def wrong_once(monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The first call of a solver of torch gives something else, on a device that is not trusted; returns what it is called with."""
    solver, calls = getattr(torch.linalg, name), []

    def first_wrong(given: Tensor) -> Tensor:
        calls.append(given)
        return fault(solver(given)) if len(calls) == 1 else solver(given)

    monkeypatch.setattr(torch.linalg, name, first_wrong)
    monkeypatch.setattr(symmetric, "TRUSTED", ())
    return calls


@pytest.mark.parametrize("fault", VALUE_FAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_that_do_not_hold_are_those_of_lapack(
    fault: Callable[[Tensor], Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = matrices().to(dtype)
    expected = torch.linalg.eigvalsh(matrix)
    calls = wrong_once(monkeypatch, "eigvalsh", fault)
    torch.testing.assert_close(eigvalsh(matrix), expected)
    assert len(calls) == 2


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_eigenvalues_of_lapack_hold(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = wrong_once(monkeypatch, "eigvalsh", lambda values: values)
    large = torch.randn(300, 300, generator=torch.Generator().manual_seed(1))
    given = (matrices(scale), torch.zeros(1, 4, 4, dtype=torch.float64), torch.eye(5)[None], large @ large.mT, large + large.mT)
    for matrix in given:
        eigvalsh(matrix)
    assert len(calls) == len(given)


# -- Cholesky factors ----------------------------------------------------------------------------------------------------


def definite() -> Tensor:
    return matrices() + torch.eye(12, dtype=torch.float64)


def refused(factor: Tensor, failed: Tensor) -> Pair:
    """As a device refused a matrix that is positive definite."""
    return factor, torch.ones_like(failed)


def another(factor: Tensor, failed: Tensor) -> Pair:
    return factor * (1 + 1e-6), failed


def not_a_number(factor: Tensor, failed: Tensor) -> Pair:
    return factor * torch.nan, failed


@pytest.mark.parametrize("fault", [refused, another, not_a_number])
def test_lapack_factorizes_where_a_device_fails(fault: Callable[[Tensor, Tensor], Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, solver, calls = definite(), torch.linalg.cholesky_ex, []
    expected = half(matrix)

    def first_wrong(given: Tensor) -> Pair:
        calls.append(given)
        found = solver(given)
        return fault(*found) if len(calls) == 1 else found

    monkeypatch.setattr(torch.linalg, "cholesky_ex", first_wrong)
    monkeypatch.setattr(symmetric, "TRUSTED", ())
    assert torch.equal(half(matrix), expected) and len(calls) == 2


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_a_sound_factor_is_taken_as_it_is(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, solver = [], torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda given: calls.append(given) or solver(given))
    monkeypatch.setattr(symmetric, "TRUSTED", ())
    for matrix in (scale * definite(), scale * definite()[0].float().double(), torch.eye(5, dtype=torch.float64)[None]):
        calls.clear()
        factor, failed = cholesky_ex(matrix)
        assert len(calls) == 1 and not bool(failed.any())
        assert torch.allclose(factor @ factor.mT, matrix, rtol=1e-12, atol=1e-12 * float(matrix.max()))


def test_what_is_not_definite_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "TRUSTED", ())
    indefinite = torch.stack([torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))])
    assert [bool(one) for one in cholesky_ex(indefinite)[1]] == [False, True]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
@pytest.mark.parametrize("size", [16, 64, 300])
def test_a_floored_moment_has_a_half_on_every_device(device: str, size: int) -> None:
    """Of few samples, so that most of its directions have no more than the floor."""
    rows = torch.randn(1, size, size // 4, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    moment = floored((rows @ rows.mT).to(device))
    triangle = half(moment)
    assert torch.allclose(triangle @ triangle.mT, moment, rtol=0, atol=1e-9 * float(moment.max()))
    assert torch.allclose(moment.cpu(), floored(rows @ rows.mT), rtol=0, atol=1e-9 * float(moment.max()))
