"""Fits of a sum of rank-one tensors: against tensorly in the plain norm, against dense least squares in a metric."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tensorly
import torch
from oracles import conv, moments, squared_error
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac
from torch import Tensor

from ranksearch.decompositions import Moments, cp_fit
from ranksearch.decompositions.cp_fit import compose, rank_one, refine, sweep, target


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(shape: tuple[int, ...], rank: int) -> list[Tensor]:
    return [random(n, rank, seed=k) for k, n in enumerate(shape)]


SHAPES = ((6, 5, 3, 3), (5, 7, 4))


@pytest.mark.parametrize("shape", SHAPES)
def test_compose_is_the_sum_of_outer_products(shape: tuple[int, ...]) -> None:
    factors = start(shape, 3)
    letters = "abcd"[: len(shape)]
    expected = torch.einsum(",".join(f"{c}r" for c in letters) + "->" + letters, *factors)
    assert torch.allclose(compose(factors), expected)
    assert torch.allclose(rank_one(factors), torch.einsum(",".join(f"{c}r" for c in letters) + f"->{letters}r", *factors).flatten(0, -2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4])
def test_plain_sweeps_are_those_of_tensorly(shape: tuple[int, ...], rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp_fit, "STRETCH", 0.0)
    tensor, begin, ridge = random(*shape, seed=9), start(shape, rank), 1e-3
    found = sweep(tensor, begin, ridge, sweeps=3, enough=0.0)
    assert found is not None
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        expected = parafac(tensor, rank, init=CPTensor((None, [f.clone() for f in begin])), n_iter_max=3, tol=0, l2_reg=ridge)
    assert torch.allclose(compose(found), compose(expected.factors), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_sweeps_never_raise_the_error(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, begin = random(*shape, seed=9), start(shape, 5)

    def errors() -> list[float]:
        found = [sweep(tensor, begin, 1e-10, sweeps=n, enough=0.0) for n in range(1, 12)]
        return [float((tensor - compose(f)).norm()) for f in found if f is not None]

    ahead = errors()
    monkeypatch.setattr(cp_fit, "STRETCH", 0.0)
    plain = errors()
    assert len(ahead) == len(plain) == 11
    for row in (ahead, plain):
        assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(row))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_ahead_that_leads_astray_is_taken_back(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step ahead comes before the third sweep: where that is no better, the fourth starts plainly from the second."""
    tensor, begin, swept = random(*shape, seed=9), start(shape, 5), cp_fit._swept
    plain = sweep(tensor, begin, 1e-10, sweeps=2, enough=0.0)
    assert plain is not None
    after = swept(tensor.flatten(1), shape[1:], [f.mT.contiguous() for f in plain], float(tensor.square().sum()), 1e-10)[0]
    assert after is not None
    calls: list[int] = []

    def astray(*given: Any) -> tuple[Any, float]:
        calls.append(len(calls))
        found, error = swept(*given)
        return found, error if len(calls) != 3 else 2 * float(tensor.square().sum())

    for sweeps, expected in ((3, plain), (4, [f.mT for f in after])):
        calls.clear()
        monkeypatch.setattr(cp_fit, "_swept", astray)
        found = sweep(tensor, begin, 1e-10, sweeps=sweeps, enough=0.0)
        assert found is not None and len(calls) == sweeps
        assert torch.allclose(compose(found), compose(expected), atol=1e-12)


def test_singular_normal_equations_are_said() -> None:
    tensor = random(4, 4, 3)
    assert sweep(tensor, [torch.zeros(n, 2, dtype=torch.float64) for n in tensor.shape], 0.0, sweeps=3, enough=0.0) is None


@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("rank", [2, 9])
def test_refinement_in_a_metric(rank: int, output: bool) -> None:
    """The error never grows; the output factor is that of dense weighted least squares; many sweeps end where no
    factor can be improved."""
    site, weight = conv()
    m = moments(site, output=output)
    assert m.input is not None
    begin, seen = start(tuple(weight.shape), rank), target(weight, m)
    errors = [squared_error(site, weight - compose(refine(begin, seen, sweeps=n)), m) for n in (0, 1, 2, 5, 400)]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
    out = refine(begin, seen, sweeps=0)[0]
    half = torch.linalg.cholesky(m.input[0])
    dense = torch.linalg.lstsq(half.mT @ rank_one(begin[1:]), half.mT @ weight.flatten(1).mT).solution.mT
    assert torch.allclose(out, dense, atol=1e-6 * float(dense.abs().max()))

    def slope(sweeps: int) -> float:
        """The norm of the error's gradient in all factors."""
        factors = refine(begin, seen, sweeps=sweeps)
        factors = [f.detach().clone().requires_grad_() for f in factors]
        residual = (weight - compose(factors)).flatten(1)
        metric = residual @ m.input[0] if m.output is None else m.output[0] @ residual @ m.input[0]  # type: ignore[index]
        return sum(float(g.norm()) for g in torch.autograd.grad((residual * metric).sum(), factors))

    assert slope(400) < 0.02 * slope(0)


def test_in_the_identity_as_metric_it_is_alternating_least_squares() -> None:
    _, weight = conv()
    identity = Moments(torch.eye(weight[0].numel(), dtype=torch.float64)[None])
    begin = start(tuple(weight.shape), 3)
    found = refine(begin, target(weight, identity), sweeps=1, steps=40)
    out = torch.linalg.lstsq(rank_one(begin[1:]), weight.flatten(1).mT).solution.mT
    first = sweep(weight, [out, *begin[1:]], 0.0, sweeps=1, enough=0.0)
    assert first is not None
    expected = torch.linalg.lstsq(rank_one(first[1:]), weight.flatten(1).mT).solution.mT
    assert torch.allclose(compose(found), compose([expected, *first[1:]]), atol=1e-6)
