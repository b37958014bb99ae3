"""Adaptive networks as a decomposition: what is learned from a weight, and what it costs. See also `test_exact_structure`,
`test_network_growth` and `test_tree_network`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import LOOPS, TREES, OtherProcessor, composed, rank_of, relative_error, storage, tensor_of

from ranksearch.decompositions.adaptive import Adaptive, edges, learned_path, modes, topology
from ranksearch.decompositions.network import pairs, reduce
from ranksearch.decompositions.network_growth import SHARE
from ranksearch.sites import Site

NAMES = ("a", "b", "c", "d")


@pytest.mark.parametrize("name", ["train", "star", "Tucker", "hub and a bond", "ring", "ring of three"])
def test_the_path_ends_with_the_structure_that_made_the_tensor(name: str) -> None:
    sizes, widths, kind = (TREES | LOOPS)[name]
    names = NAMES[: len(sizes)]
    for seed in range(3):
        tensor = tensor_of(sizes, widths, seed)
        reduced = reduce(tensor)
        path = learned_path(reduced, sizes)
        rank, cores = path[-1]
        assert rank == rank_of(sizes, widths), seed
        assert relative_error(composed(reduced.lift(cores), len(sizes)), tensor) < 1e-9
        assert topology(rank, names).startswith(kind + ":")
        nodes = (*names, "hub")
        assert set(edges(rank, names)) == {(nodes[i], nodes[j], r) for (i, j), r in widths.items()}
        costs = [storage(sizes, step) for step, _ in path]
        assert costs == sorted(set(costs))


def test_as_a_site_the_exact_network_is_the_last_option() -> None:
    where = Site("layer", "linear", 30, 20, bias=False)
    sizes = tuple(modes(where).values())
    adaptive = Adaptive()
    for seed in range(4):
        tensor = tensor_of(sizes, {(0, 2): 3, (1, 3): 3}, seed)
        state = adaptive.prepare(where, tensor.reshape(where.shape))
        errors = adaptive.errors(state)
        rank = tuple(errors.ranks[-1].tolist())
        assert edges(rank, list(modes(where))) == [("out1", "in1", 3), ("out2", "in2", 3)]
        assert errors.frobenius[-1] < 1e-9 < errors.frobenius[0]
        assert adaptive.cost(where, rank).params == 3 * sum(sizes)
        torch.testing.assert_close(adaptive.reconstruct(where, state, rank), tensor.reshape(where.shape))


@pytest.mark.parametrize("kind", ["zero", "rank one", "dead outputs", "equal rows", "one entry"])
def test_weights_that_lack_rank_have_finite_options(kind: str) -> None:
    adaptive = Adaptive()
    for where in (Site("layer", "conv2d", 8, 6, (3, 3), bias=False), Site("layer", "linear", 12, 8, bias=False)):
        weight = torch.randn(where.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        if kind == "zero":
            weight = torch.zeros_like(weight)
        elif kind == "rank one":
            weight = torch.einsum("a,b,c,d->abcd", weight[:, 0, 0, 0], weight[0, :, 0, 0], weight[0, 0, :, 0], weight[0, 0, 0, :])
        elif kind == "dead outputs":
            weight[2:] = 0.0
        elif kind == "equal rows":
            weight = weight[:1].expand_as(weight).clone()
        else:
            weight = torch.zeros_like(weight)
            weight[1, 2] = 1e-20
        state = adaptive.prepare(where, weight)
        errors = adaptive.errors(state)
        assert np.isfinite(errors.frobenius).all()
        for rank, error in zip(map(tuple, errors.ranks.tolist()), errors.frobenius, strict=True):
            back = adaptive.reconstruct(where, state, rank)
            assert float((back - weight).norm()) == pytest.approx(error * float(weight.norm()), rel=1e-6, abs=1e-12 * float(weight.norm()))
        assert errors.frobenius[-1] < 1e-9  # there is a cheaper network that is the weight
        if kind == "zero" or (kind == "rank one" and where.kind == "conv2d"):  # of a matrix, the product may still bind its factors
            assert len(errors.ranks) == 1


def test_options_do_not_depend_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptive, where = Adaptive(), Site("layer", "conv2d", 12, 8, (3, 3), bias=False)
    for seed in range(3):
        weight = torch.randn(where.shape, generator=torch.Generator().manual_seed(seed))
        expected = adaptive.errors(adaptive.prepare(where, weight))
        with monkeypatch.context() as patch:
            OtherProcessor(patch, seed)
            found = adaptive.errors(adaptive.prepare(where, weight))
        np.testing.assert_array_equal(found.ranks, expected.ranks)
        np.testing.assert_allclose(found.frobenius, expected.frobenius, rtol=1e-6)


def test_growth_lowers_the_error_within_the_storage() -> None:
    where = Site("layer", "conv2d", 32, 32, (3, 3), bias=False)
    adaptive = Adaptive()
    errors = adaptive.errors(adaptive.prepare(where, torch.randn(where.shape, generator=torch.Generator().manual_seed(0))))
    params, macs = adaptive.costs(where, errors.ranks)
    assert (np.diff(params) > 0).all()
    # the contraction comes on top; that of rank one sums over nothing
    assert macs[0] == where.cost.macs and (macs[1:] > where.cost.macs).all()
    assert (np.diff(errors.frobenius) < 1e-9).all()
    assert params[-1] <= SHARE * math.prod(where.shape)
    assert len(errors.ranks) > 5 and errors.frobenius_is == "measured"


def test_graphs_have_names() -> None:
    assert topology((1,) * 10, NAMES) == "rank one"
    width = {(0, 1): 2, (1, 2): 2, (1, 3): 4}
    assert topology(tuple(width.get(p, 1) for p in pairs(5)), NAMES) == "star: a -2- b, b -2- c, b -4- d"
    apart = {(0, 1): 2, (2, 3): 2}
    assert topology(tuple(apart.get(p, 1) for p in pairs(5)), NAMES).startswith("network")
