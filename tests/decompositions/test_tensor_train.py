"""Tensor trains: exact errors on the grid, the bound of the unfolding tails, linear layers of factorised modes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ranksearch.decompositions import Moments
from ranksearch.decompositions.tensor_train import TensorTrain, TrainLinear
from ranksearch.sites import Call, Site, find_sites

train = TensorTrain()


def conv(c_out: int = 12, c_in: int = 10, kernel: tuple[int, int] = (3, 3)) -> Site:
    return Site("layer", "conv2d", c_out, c_in, kernel, padding=(1, 1))


def test_conv_errors_are_exact_and_under_the_root_of_the_summed_tails() -> None:
    where = conv()
    weight = torch.randn(where.shape, dtype=torch.float64)
    state = train.prepare(where, weight)
    errors = train.errors(state)
    assert errors.frobenius_is == "exact"
    unfoldings = [weight.permute(1, 2, 3, 0).reshape(rows, -1) for rows in (10, 30, 90)]
    values = [torch.linalg.svdvals(m).square().numpy() for m in unfoldings]
    for row, error in zip(errors.ranks.tolist(), errors.frobenius, strict=True):
        dense = train.reconstruct(where, state, tuple(row))
        assert float((weight - dense).norm() / weight.norm()) == pytest.approx(error, abs=1e-9)
        tails = sum(v[r:].sum() for v, r in zip(values, row, strict=True))
        assert error <= (tails / values[0].sum()) ** 0.5 + 1e-9  # Oseledets 2011, theorem 2.2


@pytest.mark.parametrize("bonds", [(2, 3, 4), (3, 6, 2), (1, 1, 1)])
def test_a_noiseless_train_has_no_error_at_its_bonds_and_some_below(bonds: tuple[int, int, int]) -> None:
    where = conv()
    r1, r2, r3 = bonds
    cores = (torch.randn(10, r1), torch.randn(r1, 3, r2), torch.randn(r2, 3, r3), torch.randn(r3, 12))
    weight = torch.einsum("ia,ahb,bwc,co->oihw", *(c.double() for c in cores))
    errors = train.errors(train.prepare(where, weight))
    enough = (errors.ranks >= np.array(bonds)).all(axis=1)
    assert enough.any()
    assert (errors.frobenius[enough] < 1e-6).all()
    assert (errors.frobenius[~enough] > 1e-4).all()


def test_the_grid_is_small_and_ends_at_the_full_train() -> None:
    ranks = train.ranks(conv(64, 64))
    assert ranks[-1].tolist() == [64, 192, 64]
    assert 100 < len(ranks) < 600
    assert len(np.unique(ranks, axis=0)) == len(ranks)


@pytest.mark.parametrize(("c_out", "c_in", "bonds"), [(8, 12, 1), (6, 4, 1), (64, 64, 2), (64, 128, 2), (10, 64, 1)])
def test_linear_layers_of_factorised_modes(c_out: int, c_in: int, bonds: int) -> None:
    layer = nn.Linear(c_in, c_out).double()
    example = torch.randn(2, 3, c_in, dtype=torch.float64)
    where = find_sites(nn.Sequential(layer), example).sites[0]
    assert where.calls == (Call(3, (1, 1), (1, 1)),)
    state = train.prepare(where, layer.weight.detach())
    errors = train.errors(state)
    assert errors.ranks.shape[1] == bonds and errors.frobenius_is == "exact"
    for k in {0, len(errors.ranks) // 2, len(errors.ranks) - 1}:
        rank = tuple(errors.ranks[k].tolist())
        factors = train.factors(state, rank)
        dense = train.compose(where, factors).reshape(c_out, c_in)
        weight = layer.weight.detach()
        assert float((dense - weight).norm() / weight.norm()) == pytest.approx(errors.frobenius[k], abs=1e-7)
        built = train.module(where, factors, layer.bias)
        with FlopCounterMode(display=False) as counter:
            output = built(example)
        torch.testing.assert_close(output, example @ dense.mT + layer.bias)
        cost = train.cost(where, rank)
        assert counter.get_total_flops() == 2 * 2 * cost.macs  # a batch of two
        assert sum(p.numel() for p in built.parameters()) == cost.params
        assert isinstance(built, TrainLinear)
        assert {type(m) for m in built.modules()} == {TrainLinear, nn.ModuleList, nn.Linear}  # no einsum at run time


def test_a_kronecker_product_is_a_train_of_bond_one() -> None:
    a, b = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    where = Site("layer", "linear", 9, 8)
    state = train.prepare(where, torch.kron(a, b).reshape(where.shape))
    assert train.errors(state).frobenius[0] < 1e-6
    assert train.cost(where, (1,)).params == a.numel() + b.numel() + 9


@pytest.mark.parametrize("where", [conv(6, 5), Site("layer", "linear", 8, 12)])
def test_errors_in_a_metric_are_those_of_the_swept_factors(where: Site) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(where.shape, generator=generator, dtype=torch.float64)
    d = weight[0].numel()
    x = torch.randn(4 * d, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, d, dtype=torch.float64)
    a = x.mT @ x / len(x)
    state, plain = train.prepare(where, weight, Moments(a[None])), train.prepare(where, weight)
    errors = train.errors(state)
    assert errors.frobenius_is == "measured"
    better = 0

    def relative(reconstruction: torch.Tensor) -> float:
        residual = (weight - reconstruction).flatten(1)
        return float((residual @ a * residual).sum()) ** 0.5 / errors.norm

    for row, measured in list(zip(errors.ranks.tolist(), errors.frobenius, strict=True))[::5]:
        rank = tuple(row)
        found = relative(train.reconstruct(where, state, rank))
        assert found == pytest.approx(measured, abs=1e-9)
        assert found <= relative(train.compose(where, train._start(state, rank))) + 1e-9
        better += found < 0.98 * relative(train.reconstruct(where, plain, rank))
    assert better


def test_undefined_says_why() -> None:
    assert "prime" in (train.undefined(Site("l", "linear", 13, 8)) or "")
    assert "tucker2" in (train.undefined(Site("l", "conv1d", 8, 8, (1, 3))) or "")
    assert "svd" in (train.undefined(Site("l", "conv2d", 8, 8)) or "")
    assert "look-up" in (train.undefined(Site("l", "embedding", 8, 8)) or "")
    assert "groups" in (train.undefined(Site("l", "conv2d", 8, 8, (3, 3), groups=2)) or "")
