"""CP: exact recovery, refusal of diverging components, the metric, and the chain that is built."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ranksearch.decompositions import Moments
from ranksearch.decompositions import cp as module
from ranksearch.decompositions.cp import CP
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site, find_sites


def site(c_out: int = 12, c_in: int = 8, kernel: tuple[int, int] = (3, 3), groups: int = 1) -> Site:
    return Site("layer", "conv2d", c_out, c_in, kernel, padding=(1, 1), groups=groups)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_noiseless_kernel_is_found_at_its_rank(rank: int) -> None:
    """Components of one size that are orthogonal among outputs and among inputs: as a matrix of its outputs the kernel has ``rank`` equal
    singular values, of which r components reach r."""
    where = site()
    cp = CP()
    outputs, inputs = (torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64))[0] for n in where.shape[:2])
    rows, columns = (functional.normalize(torch.randn(n, rank, dtype=torch.float64), dim=0) for n in where.shape[2:])
    errors = cp.errors(cp.prepare(where, torch.einsum("or,ir,hr,wr->oihw", outputs, inputs, rows, columns)))
    found = dict(zip(errors.ranks[:, 0].tolist(), errors.frobenius.tolist(), strict=True))
    assert found[rank] < 0.05
    assert all(error >= (1 - r / rank) ** 0.5 - 1e-6 for r, error in found.items() if r < rank)


def cascade(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """Norms of the rank-one terms of a cascade of singular value decompositions, descending; from the second on the largest go on."""

    def split(part: torch.Tensor) -> list[torch.Tensor]:
        _, values, right = torch.linalg.svd(part.flatten(1), full_matrices=False)
        return [*(values[:, None] * right).unflatten(1, part.shape[1:])]

    parts = split(tensor)
    while parts[0].ndim > 1:
        parts = sorted((inner for part in parts for inner in split(part)), key=lambda part: -float(part.norm()))[:count]
    return torch.stack([part.norm() for part in parts[:count]])


@pytest.mark.parametrize(("shape", "count"), [((6, 5, 3, 3), 7), ((40, 3, 3, 3), 1), ((4, 30, 3), 12), ((7, 4), 3), ((3, 2, 2), 20)])
def test_components_begin_as_the_largest_of_a_cascade(shape: tuple[int, ...], count: int) -> None:
    tensor = torch.randn(shape, dtype=torch.float64)
    terms = torch.einsum(
        ",".join(f"{mode}r" for mode in "abcd"[: len(shape)]) + "->r" + "abcd"[: len(shape)], *module._leading(tensor, count)
    ).flatten(1)
    largest = cascade(tensor, count)
    assert len(terms) == count
    torch.testing.assert_close(terms @ terms.mT, torch.diag(functional.pad(largest.square(), (0, count - len(largest)))))
    torch.testing.assert_close((tensor.flatten() - terms.sum(0)).square().sum(), tensor.square().sum() - largest.square().sum())


def test_more_components_never_hurt_much_and_the_grid_ends_below_dense() -> None:
    where = site(16, 16)
    cp = CP()
    weight = torch.randn(where.shape, dtype=torch.float64)
    errors = cp.errors(cp.prepare(where, weight))
    assert (np.diff(errors.frobenius) < 1e-3).all()  # every rank starts from the one before
    assert errors.frobenius_is == "measured" and np.isnan(errors.operator).all()
    params, _ = cp.costs(where, errors.ranks)
    assert params[-1] <= where.cost.params
    assert errors.ranks[-1, 0] == 16 * 16 * 9 // (16 + 16 + 3 + 3)


def test_diverging_components_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """a b z + a y c + x b c has rank 3 and is a limit of rank-2 kernels whose two components grow without bound
    (de Silva and Lim 2008)."""
    where = Site("layer", "conv1d", 6, 6, (1, 6))
    (a, x), (b, y), (c, z) = torch.randn(3, 2, 6, dtype=torch.float64)
    weight = sum(torch.einsum("o,i,k->oik", *t) for t in ((a, b, z), (a, y, c), (x, b, c)))
    monkeypatch.setattr(module, "SWEEPS", 3000)
    monkeypatch.setattr(module, "ENOUGH", 0.0)
    monkeypatch.setattr(module, "NORM_LIMIT", 3.0)
    monkeypatch.setattr(module, "RIDGES", (1e-12,))
    monkeypatch.setattr(module, "_grid", lambda top: [1, 2])
    cp = CP()
    state = cp.prepare(where, weight.reshape(where.shape))
    assert state.refused == (2,)
    assert cp.errors(state).ranks.tolist() == [[1]]
    with pytest.raises(InvalidArgument, match="diverged"):
        cp.factors(state, (2,))


def test_soundness() -> None:
    generator = torch.Generator().manual_seed(0)
    factors = [torch.nn.functional.normalize(torch.randn(5, 3, generator=generator, dtype=torch.float64), dim=0) for _ in range(4)]
    assert module._is_sound(factors)
    opposed = [f.clone() for f in factors]
    for f in opposed:
        f[:, 1] = f[:, 0]
    opposed[0][:, 1] *= -1
    assert not module._is_sound(opposed)
    assert not module._is_sound([100 * factors[0], *factors[1:]])
    assert not module._is_sound([factors[0] * float("nan"), *factors[1:]])


def test_the_metric_is_what_is_minimised() -> None:
    where = site(6, 5)
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(where.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(200, 45, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, 45, dtype=torch.float64)
    y = torch.randn(50, 6, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, 6, dtype=torch.float64)
    moments = Moments((x.mT @ x)[None] / 200, (y.mT @ y)[None] / 50)
    cp = CP()
    weighted, plain = cp.prepare(where, weight, moments), cp.prepare(where, weight)
    errors = cp.errors(weighted)
    assert moments.input is not None and moments.output is not None

    def relative(state, rank) -> float:
        residual = (weight - cp.reconstruct(where, state, rank)).flatten(1)
        return float((residual * (moments.output[0] @ residual @ moments.input[0])).sum()) ** 0.5 / errors.norm

    for row, error in zip(errors.ranks, errors.frobenius, strict=True):
        rank = tuple(row.tolist())
        assert relative(weighted, rank) == pytest.approx(error, rel=1e-6, abs=1e-9)
        assert relative(weighted, rank) <= relative(plain, rank) + 1e-9


def test_built_of_four_plain_convolutions() -> None:
    layer = nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 2))
    where = find_sites(nn.Sequential(layer), torch.randn(1, 6, 9, 9)).sites[0]
    cp = CP()
    built = cp.module(where, cp.factors(cp.prepare(where, layer.weight.detach()), (4,)), layer.bias)
    assert isinstance(built, nn.Sequential)
    convolutions = [m for m in built if isinstance(m, nn.Conv2d)]
    assert [m.kernel_size for m in convolutions] == [(1, 1), (3, 1), (1, 5), (1, 1)] and len(built) == 4
    assert [m.groups for m in convolutions] == [1, 4, 4, 1]
    assert sum(m.weight.numel() for m in convolutions) == 4 * (6 + 3 + 5 + 8)


def test_undefined_says_why() -> None:
    cp = CP()
    assert "svd" in (cp.undefined(site(kernel=(1, 1))) or "")
    assert "groups" in (cp.undefined(site(groups=2)) or "")
    assert "svd" in (cp.undefined(Site("l", "linear", 8, 8)) or "")
    assert cp.undefined(site()) is None
