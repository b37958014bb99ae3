"""Singular values and vectors whose results are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ranksearch.decompositions import singular, symmetric

Triple = tuple[Tensor, Tensor, Tensor]


def matrices(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def left_twice(u: Tensor, s: Tensor, vh: Tensor) -> Triple:
    """A vector lost: another one in its place, and the value gone, so that nothing but the vectors shows it."""
    return torch.cat([u[..., 1:2], u[..., 1:]], dim=-1), s, vh


def right_twice(u: Tensor, s: Tensor, vh: Tensor) -> Triple:
    return u, s, torch.cat([vh[..., 1:2, :], vh[..., 1:, :]], dim=-2)


def ascending(u: Tensor, s: Tensor, vh: Tensor) -> Triple:
    return u.flip(-1), s.flip(-1), vh.flip(-2)


def negative(u: Tensor, s: Tensor, vh: Tensor) -> Triple:
    return -u, -s, vh


def smaller(u: Tensor, s: Tensor, vh: Tensor) -> Triple:
    return u, 0.99 * s, vh


def unknown(u: Tensor, s: Tensor, vh: Tensor) -> Triple:
    return u * torch.nan, s, vh


FAULTS = (left_twice, right_twice, ascending, negative, smaller, unknown)


def wrong_once(monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[Any], Any]) -> list[Tensor]:
    solver, calls = getattr(torch.linalg, name), []

    def first_wrong(given: Tensor, **options: Any) -> Any:
        calls.append(given)
        found = solver(given, **options)
        return fault(found) if len(calls) == 1 else found

    monkeypatch.setattr(torch.linalg, name, first_wrong)
    monkeypatch.setattr(symmetric, "TRUSTED", ())
    return calls


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lapack_takes_the_place_of_a_device_that_fails(
    fault: Callable[..., Triple], shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = matrices(*shape, dtype)
    calls = wrong_once(monkeypatch, "svd", lambda found: fault(*found))
    u, s, vh = singular.svd(matrix)
    assert len(calls) == 2 and s.shape == (2, 5)
    torch.testing.assert_close((u * s[..., None, :]) @ vh, matrix)
    torch.testing.assert_close(u.mT @ u, torch.eye(5, dtype=dtype).expand(2, 5, 5))


VALUE_FAULTS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda s: torch.cat([s[..., :-1], s[..., :1]], dim=-1), lambda s: s.flip(-1), lambda s: -s, lambda s: s * torch.nan,
    lambda s: s.square().sum(-1, keepdim=True).div(s.shape[-1]).sqrt().expand_as(s),  # the norm is right, the values are not
)  # fmt: skip


@pytest.mark.parametrize("fault", VALUE_FAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_do_not_hold_are_those_of_lapack(
    fault: Callable[[Tensor], Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = matrices(9, 5, dtype)
    expected = torch.linalg.svdvals(matrix)
    calls = wrong_once(monkeypatch, "svdvals", fault)
    torch.testing.assert_close(singular.svdvals(matrix), expected)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["svd", "svdvals"])
def test_what_lapack_gives_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = wrong_once(monkeypatch, name, lambda found: found)
    of = getattr(singular, name)
    flat = matrices(30, 1) @ matrices(1, 40)
    scaled = (1e-150 * matrices(5, 9), 1e150 * matrices(9, 5))
    given = (matrices(9, 5), *scaled, flat, flat.float(), torch.zeros(3, 4), matrices(200, 300, torch.float32))
    for matrix in given:
        of(matrix)
    assert len(calls) == len(given)
