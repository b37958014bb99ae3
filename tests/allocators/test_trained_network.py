"""Exactness on trained weights: no rule beats the minimax allocator in its own norm at the same cost."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest
import torch

from ranksearch.allocators import Minimax, Problem
from ranksearch.allocators.alds import ALDSHeuristic
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.proxies import Frobenius
from ranksearch.sites import find_sites
from ranksearch.space import SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.tasks.networks import cifar_resnet, load_weights

WEIGHTS = Path(os.environ.get("RANKSEARCH_SHARED", "nowhere")) / "models" / "resnet20_cifar10.safetensors"
TYPES = ("svd", "svd_in", "spatial", "spatial_t", "tucker2", "grouped_svd")


@cache
def _space() -> SearchSpace:
    model = load_weights(cifar_resnet(20), WEIGHTS).eval()
    return build_space(Spectra(model, find_sites(model, torch.zeros(1, 3, 32, 32)), [d for d in DECOMPOSITIONS if d.name in TYPES]))


@pytest.mark.skipif(not WEIGHTS.is_file(), reason="RANKSEARCH_SHARED does not hold trained weights")
@pytest.mark.parametrize("cost", ["params", "macs"])
@pytest.mark.parametrize("norm", ["operator", "frobenius"])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.4, 0.3])
def test_minimax_is_never_above_the_heuristic_of_alds_at_no_more_cost(norm, share, cost):
    space = _space()
    table = space.table(norm, "max")
    heuristic = ALDSHeuristic().allocate(Problem(space, Frobenius().table(space), {cost: share})).indices
    spent = getattr(space.cost(heuristic), cost)
    exact = Minimax().allocate(Problem(space, table, {cost: spent})).indices
    assert getattr(space.cost(exact), cost) <= spent <= space.limit(cost, share)
    assert float(table.score(exact)) <= float(table.score(heuristic))
