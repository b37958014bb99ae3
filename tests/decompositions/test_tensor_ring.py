"""Tensor rings: noiseless recovery, storage that is counted, a weight that is put together from cores and trains."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ranksearch.decompositions.tensor_ring import TensorRing, ring_modes
from ranksearch.errors import InvalidArgument, RanksearchError
from ranksearch.sites import Site, find_sites

ring = TensorRing()


def conv(c_out: int = 12, c_in: int = 10) -> Site:
    return Site("layer", "conv2d", c_out, c_in, (3, 3), padding=(1, 1))


def test_noiseless_rings_are_found_at_their_bonds() -> None:
    """Least squares over a loop has local minima: most of the rings are found, not every one."""
    where = conv()
    found = 0
    for _ in range(4):
        a, b, c = torch.randn(2, 12, 2), torch.randn(2, 10, 2), torch.randn(2, 9, 2)
        weight = torch.einsum("xoy,yiz,zkx->oik", a.double(), b.double(), c.double()).reshape(where.shape)
        errors = ring.errors(ring.prepare(where, weight))
        error = dict(zip(map(tuple, errors.ranks.tolist()), errors.frobenius, strict=True))
        assert error[1, 1, 1] > 0.2 and errors.frobenius_is == "measured"
        found += error[2, 2, 2] < 0.01
    assert found >= 3


def test_wider_rings_have_smaller_errors_on_the_whole() -> None:
    where = conv(16, 16)
    errors = ring.errors(ring.prepare(where, torch.randn(where.shape)))
    params, macs = ring.costs(where, errors.ranks)
    assert (np.diff(params) >= 0).all() and (np.diff(macs[(errors.ranks > 1).all(axis=1)]) >= 0).all() and (macs >= where.cost.macs).all()
    assert errors.frobenius[-1] < 0.5 * errors.frobenius[0]
    uniform = [k for k, row in enumerate(errors.ranks.tolist()) if len(set(row)) == 1]
    assert (np.diff(errors.frobenius[uniform]) < 1e-3).all()


def test_putting_the_weight_together_is_counted_once_per_call() -> None:
    """By hand: two cores are joined over the bond that makes it cheapest, then the third over the other two."""
    where = conv(16, 12)
    a, b, c = 4, 2, 3  # out - in, in - kernel, kernel - out
    first = {"out, in": c * 16 * a * 12 * b, "in, kernel": a * 12 * b * 9 * c, "kernel, out": b * 9 * c * 16 * a}
    last = {"out, in": 16 * 12 * 9 * c * b, "in, kernel": 16 * 12 * 9 * c * a, "kernel, out": 16 * 12 * 9 * a * b}
    cheapest = min(first, key=lambda name: first[name])
    for calls in (1, 3):
        shared = replace(where, calls=where.calls * calls)
        assert ring.cost(shared, (a, b, c)).macs == shared.cost.macs + calls * (first[cheapest] + last[cheapest])
    assert ring.cost(where, (1, 1, 1)).macs == where.cost.macs  # outer products add nothing up


@pytest.mark.parametrize("kind", ["conv2d", "conv1d", "linear"])
def test_the_layer_stores_cores_alone_and_trains(kind: str) -> None:
    layer, example = {
        "conv2d": (nn.Conv2d(6, 8, 3, padding=1), torch.randn(2, 6, 7, 7)),
        "conv1d": (nn.Conv1d(6, 8, 3), torch.randn(2, 6, 9)),
        "linear": (nn.Linear(12, 8), torch.randn(2, 12)),
    }[kind]
    where = find_sites(nn.Sequential(layer), example).sites[0]
    weight = layer.weight.detach().reshape(where.shape)
    state = ring.prepare(where, weight)
    rank = tuple(ring.errors(state).ranks[1].tolist())
    factors = tuple(f.float() for f in ring.factors(state, rank))
    built = ring.module(where, factors, layer.bias)
    assert type(built).__name__.endswith(type(layer).__name__) and parametrize.is_parametrized(built, "weight")
    assert sum(p.numel() for p in built.parameters()) == ring.cost(where, rank).params
    assert set(built.state_dict()) == {"bias", *(f"parametrizations.weight.original{k}" for k in range(len(ring_modes(where))))}
    before = built(example)
    optimizer = torch.optim.SGD(built.parameters(), lr=1e-2)
    (before - layer(example).detach()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in built.parameters())
    optimizer.step()
    after = built(example)
    assert not torch.equal(before, after)
    twin = copy.deepcopy(built)
    twin.load_state_dict(built.state_dict())
    torch.testing.assert_close(twin(example), after)
    with parametrize.cached():
        torch.testing.assert_close(built(example), after)


def test_a_dense_weight_cannot_be_written_into_cores() -> None:
    where = conv()
    state = ring.prepare(where, torch.randn(where.shape))
    built = ring.module(where, ring.factors(state, (1, 1, 1)), None)
    with pytest.raises(RanksearchError, match="dense weight"):
        built.weight = torch.randn(where.shape, dtype=torch.float64)


def test_ranks_off_the_grid_and_undefined_sites() -> None:
    where = conv()
    state = ring.prepare(where, torch.randn(where.shape))
    with pytest.raises(InvalidArgument, match="grid"):
        ring.factors(state, (3, 5, 7))
    assert "prime" in (ring.undefined(Site("l", "linear", 13, 8)) or "")
    assert "table" in (ring.undefined(Site("l", "embedding", 8, 8)) or "")
    assert "groups" in (ring.undefined(Site("l", "conv2d", 8, 8, (3, 3), groups=2)) or "")
