"""Adaptive networks: the topology that made a noiseless tensor is found, at exactly its widths."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from ranksearch.decompositions import adaptive as module
from ranksearch.decompositions.adaptive import Adaptive, cut_ranks, edges, learn, topology
from ranksearch.decompositions.network import contract, core_shapes, fit, pairs, reduce, start, stored, widen
from ranksearch.sites import Site

NAMES = ("a", "b", "c", "d")
HUB = 4
# name -> sizes of the modes, {pair of nodes: width}, how its graph is called
TOPOLOGIES: dict[str, tuple[tuple[int, ...], dict[tuple[int, int], int], str]] = {
    "train": ((5, 6, 4, 5), {(0, 1): 2, (1, 2): 3, (2, 3): 2}, "train"),
    "train in another order": ((5, 5, 5, 5), {(0, 2): 2, (1, 2): 3, (1, 3): 3}, "train"),
    "ring": ((5, 6, 4, 5), {(0, 1): 2, (1, 2): 2, (2, 3): 2, (0, 3): 2}, "ring"),
    "ring in another order": ((6, 6, 6, 6), {(0, 1): 2, (1, 3): 3, (2, 3): 2, (0, 2): 3}, "ring"),
    "star": ((5, 6, 4, 5), {(0, 1): 2, (0, 2): 2, (0, 3): 3}, "star"),
    "Tucker": ((5, 6, 4, 5), {(0, HUB): 2, (1, HUB): 3, (2, HUB): 2, (3, HUB): 2}, "hub"),
}


def network(sizes: tuple[int, ...], widths: dict[tuple[int, int], int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    nodes = 5 if any(HUB in pair for pair in widths) else 4
    bonds = tuple(widths.get(pair, 1) for pair in pairs(nodes))
    return contract([torch.randn(s, generator=generator, dtype=torch.float64) for s in core_shapes(sizes, bonds)], 4)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(TOPOLOGIES))
def test_the_generating_topology_is_found_at_its_widths(name: str, seed: int) -> None:
    sizes, widths, kind = TOPOLOGIES[name]
    tensor = network(sizes, widths, seed)
    reduced = reduce(tensor)
    path = learn(reduced, sizes)
    rank, cores = path[-1]
    assert rank == tuple(widths.get(pair, 1) for pair in pairs(5))
    found = contract(reduced.lift(cores), 4)
    assert float((found - tensor).norm() / tensor.norm()) < 1e-9
    assert topology(rank, NAMES).startswith(kind + ":")
    assert {(a, b, r) for a, b, r in edges(rank, NAMES)} == {
        ((*NAMES, "hub")[i], (*NAMES, "hub")[j], r) for (i, j), r in widths.items()
    }


def test_as_a_site_the_exact_network_is_the_last_option() -> None:
    where = Site("layer", "linear", 30, 20, bias=False)
    sizes = tuple(module.modes(where).values())
    tensor = network(sizes, {(0, 2): 3, (1, 3): 3}, seed=0)
    adaptive = Adaptive()
    state = adaptive.prepare(where, tensor.reshape(where.shape))
    errors = adaptive.errors(state)
    rank = tuple(errors.ranks[-1].tolist())
    assert edges(rank, list(module.modes(where))) == [("out1", "in1", 3), ("out2", "in2", 3)]
    assert errors.frobenius[-1] < 1e-9 < errors.frobenius[0]
    assert adaptive.cost(where, rank).params == 3 * sum(sizes)


def test_a_tensor_without_structure_is_given_none() -> None:
    assert module._exact(torch.randn(4, 5, 4, 3, dtype=torch.float64), (4, 5, 4, 3)) is None


def test_cut_ranks_are_those_of_the_unfoldings() -> None:
    tensor = network(*TOPOLOGIES["train"][:2], seed=0)
    assert cut_ranks(tensor) == {(0,): 2, (1,): 6, (2,): 4, (3,): 2, (0, 1): 3, (0, 2): 8, (0, 3): 4}


def test_growth_lowers_the_error_within_the_storage_and_quickly() -> None:
    where = Site("layer", "conv2d", 32, 32, (3, 3), bias=False)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(where.shape, generator=generator)
    adaptive = Adaptive()
    began = time.perf_counter()
    errors = adaptive.errors(adaptive.prepare(where, weight))
    assert time.perf_counter() - began < 20  # about 2 s alone on one core
    params, macs = adaptive.costs(where, errors.ranks)
    assert (np.diff(params) > 0).all() and (macs == where.cost.macs).all()
    assert (np.diff(errors.frobenius) < 1e-9).all()
    assert params[-1] <= module.SHARE * math.prod(where.shape)
    assert len(errors.ranks) > 5 and errors.frobenius_is == "measured"


def test_contraction_against_einsum() -> None:
    bonds = (2, 3, 1, 2, 2, 3)
    cores = [torch.randn(s, dtype=torch.float64) for s in core_shapes((4, 3, 5, 2), bonds)]
    expected = torch.einsum("abcw,adex,bdfy,cefz->wxyz", *cores)
    torch.testing.assert_close(contract(cores, 4), expected)
    without = torch.einsum("adex,bdfy,cefz->xyzabc", *cores[1:]).squeeze(5)
    torch.testing.assert_close(contract(cores, 4, skip=0), without)
    assert stored((4, 3, 5, 2), bonds) == sum(c.numel() for c in cores)


def test_widening_changes_nothing_and_least_squares_only_lowers_the_error() -> None:
    tensor = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    cores, error = fit(tensor, start(tensor), sweeps=5)
    wider = widen(cores, (2, 1, 2, 3, 1, 2), torch.Generator().manual_seed(0))
    torch.testing.assert_close(contract(wider, 4), contract(cores, 4))
    fitted, lower = fit(tensor, wider, sweeps=3)
    assert lower < 0.95 * error
    assert lower == pytest.approx(float((contract(fitted, 4) - tensor).square().sum()))


def test_graphs_have_names() -> None:
    assert topology((1,) * 10, NAMES) == "rank one"
    width = {(0, 1): 2, (1, 2): 2, (1, 3): 4}
    assert topology(tuple(width.get(p, 1) for p in pairs(5)), NAMES) == "star: a -2- b, b -2- c, b -4- d"
    apart = {(0, 1): 2, (2, 3): 2}
    assert topology(tuple(apart.get(p, 1) for p in pairs(5)), NAMES).startswith("network")
