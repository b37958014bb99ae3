"""Input moments of large patches as products of two factors: what is made of them is what the whole matrix would give, and that is never
made."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from oracles import conv, squared_error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Errors, Kronecker, Moments
from ranksearch.decompositions.kronecker import block, channel_blocks, diagonal_blocks, permuted, solve_half, solve_moment, times, trace
from ranksearch.decompositions.metric import floored, half
from ranksearch.decompositions.quantized import Quantized
from ranksearch.decompositions.svd import SVD
from ranksearch.decompositions.tucker2 import Tucker2
from ranksearch.sites import Site

TYPES = (*DECOMPOSITIONS, Quantized(SVD(), 8))
BETTER = ("svd_in", "tucker2")  # solved in closed form, and not step by step as in a metric that is no product
KERNELS = ((3, 3), (5, 1))


def moment(groups: int, size: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 3 * size, size, generator=random, dtype=torch.float64)
    x = (x + 0.7 * x.roll(1, dims=2)) * torch.linspace(0.3, 2.0, size, dtype=torch.float64)
    return x.mT @ x / x.shape[1]


def whole(product: Kronecker) -> Tensor:
    return torch.stack([torch.kron(c.contiguous(), t.contiguous()) for c, t in zip(product.channel, product.tap, strict=True)])


def metrics(site: Site) -> tuple[Moments, Moments]:
    """One metric, as a product and as a whole."""
    product = Kronecker(moment(site.groups, site.shape[1], 1), moment(site.groups, math.prod(site.kernel), 2))
    output = moment(site.groups, site.c_out // site.groups, 3)
    return Moments(product, output), Moments(whole(product), output)


def cases() -> Iterator[tuple[AnyDecomposition, tuple[int, int], int]]:
    for decomposition in TYPES:
        for kernel in KERNELS:
            for groups in (1, 2):
                if decomposition.undefined(conv(6, 4, kernel, groups)[0]) is None:
                    yield decomposition, kernel, groups


every = pytest.mark.parametrize(("decomposition", "kernel", "groups"), list(cases()), ids=lambda v: getattr(v, "name", str(v)))


def common(one: Errors, other: Errors) -> list[tuple[tuple[int, ...], float, float]]:
    """Ranks of both, with their errors."""
    known = {tuple(rank): float(e) for rank, e in zip(other.ranks.tolist(), other.frobenius, strict=True)}
    return [(tuple(r), float(e), known[tuple(r)]) for r, e in zip(one.ranks.tolist(), one.frobenius, strict=True) if tuple(r) in known]


def test_arithmetic_is_that_of_the_whole_matrix() -> None:
    product = Kronecker(moment(3, 6, 1), moment(3, 4, 2))
    dense, rows = whole(product), torch.randn(3, 5, 24, dtype=torch.float64)
    halves, triangle = half(product), half(dense)
    assert isinstance(halves, Kronecker) and product.shape == dense.shape
    same = torch.testing.assert_close
    same(whole(halves), triangle)
    same(times(rows, product), times(rows, dense))
    same(times(rows[:, None], product[:, None]), (rows @ dense)[:, None])
    same(times(rows, halves.mT), rows @ triangle.mT)
    same(solve_half(rows, halves), solve_half(rows, triangle))
    same(solve_moment(rows, halves), solve_moment(rows, triangle))
    same(trace(product), trace(dense))
    parts = slice(8, 16), slice(0, 8)
    same(times(rows[..., :8], block(product, *parts)), times(rows[..., :8], block(dense, *parts)))
    same(whole(diagonal_blocks(product[0], 3)), diagonal_blocks(dense[0], 3))
    same(channel_blocks(product[0], 6), channel_blocks(dense[0], 6))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    same(whole(permuted(product[:1], order)), permuted(dense[:1], order))


def test_singular_factors_are_floored_each() -> None:
    product = Kronecker(moment(1, 5, 1), torch.ones(1, 4, 4, dtype=torch.float64))
    found = floored(product)
    assert torch.equal(found.channel, product.channel) and float(torch.linalg.eigvalsh(found.tap).min()) > 0
    assert bool(torch.isfinite(solve_moment(torch.randn(1, 3, 20, dtype=torch.float64), half(found))).all())


@every
def test_factored_is_expanded(decomposition: AnyDecomposition, kernel: tuple[int, int], groups: int) -> None:
    site, weight = conv(6, 4, kernel, groups)
    factored, expanded = metrics(site)
    state = decomposition.prepare(site, weight, factored)
    errors, plain = decomposition.errors(state), decomposition.errors(decomposition.prepare(site, weight, expanded))
    assert errors.norm == pytest.approx(plain.norm, rel=1e-9)
    shared = common(errors, plain)
    assert len(shared) == len(plain.ranks) > 0  # a closed form has more
    for rank, found, known in shared:
        if decomposition.name == "svd_in":
            assert found <= known * (1 + 1e-9) + 1e-9, rank
        elif decomposition.name not in BETTER:
            assert found == pytest.approx(known, rel=1e-3 if decomposition.name == "cp" else 1e-6, abs=1e-6), rank
    for rank, found, _ in shared[:: max(1, len(shared) // 4)]:
        made = decomposition.compose(site, decomposition.factors(state, rank))
        error = squared_error(site, weight - made, expanded) ** 0.5 / errors.norm
        if errors.frobenius_is == "bound":
            assert error <= found * (1 + 1e-9) + 1e-9, rank
        else:
            assert error == pytest.approx(found, rel=1e-6, abs=1e-6), rank


@pytest.mark.parametrize("hooi", [0, 2])
def test_tucker2_is_that_of_the_whitened_weight(hooi: int) -> None:
    site, weight = conv(8, 6, (3, 3))
    factored, expanded = metrics(site)
    assert isinstance(expanded.input, Tensor) and expanded.output is not None
    white = (half(expanded.output)[0].T @ weight.flatten(1) @ half(expanded.input)[0]).reshape(weight.shape)
    decomposition = Tucker2(hooi=hooi)
    state = decomposition.prepare(site, weight, factored)
    found, wanted = decomposition.errors(state), decomposition.errors(decomposition.prepare(site, white))
    np.testing.assert_array_equal(found.ranks, wanted.ranks)
    np.testing.assert_allclose(found.frobenius, wanted.frobenius, atol=1e-7)
    np.testing.assert_allclose(found.operator, wanted.operator, atol=1e-7)
    made = decomposition.compose(site, decomposition.factors(state, (3, 4)))
    where = found.ranks.tolist().index([3, 4]) if [3, 4] in found.ranks.tolist() else None
    if where is not None:
        assert squared_error(site, weight - made, expanded) ** 0.5 / found.norm == pytest.approx(found.frobenius[where], rel=1e-8)


class Small(TorchDispatchMode):
    """Refuses tensors as large as the expanded moment."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.largest = entries, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.numel())
                assert one.numel() < self.entries, f"{func} made {tuple(one.shape)}"
        return made


@pytest.mark.parametrize("decomposition", TYPES, ids=lambda d: d.name)
def test_the_whole_moment_is_never_made(decomposition: AnyDecomposition) -> None:
    kernel = (8, 8) if "spatial" in decomposition.name else (64, 1)
    site, weight = conv(4, 16, kernel)  # the second convolution of a pitch tracker, CREPE, with few of its channels
    if decomposition.undefined(site) is not None:
        pytest.skip(str(decomposition.undefined(site)))
    product, side = Kronecker(moment(1, 16, 1), moment(1, 64, 2)), 16 * 64
    metric = Moments(product, moment(1, 4, 3))
    with Small(side * side) as seen:
        state = decomposition.prepare(site, weight, metric)
        errors = decomposition.errors(state)
        rank = tuple(errors.ranks[len(errors.ranks) // 2].tolist())
        decomposition.compose(site, decomposition.factors(state, rank))
    assert seen.largest >= weight.numel()
