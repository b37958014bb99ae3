"""Which multiples a device likes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from latency_cases import Machine, dense_network, latency
from torch import nn

from ranksearch.costs import COSTS
from ranksearch.decompositions.svd import SVD
from ranksearch.errors import InvalidArgument
from ranksearch.latency import LatencyTable, TableLatency, suggested_round_to
from ranksearch.latency.rounding import largest_free_multiple
from ranksearch.space import SpaceSpec, build_space
from ranksearch.space.spectra import Spectra


@pytest.mark.parametrize("step", [1, 2, 4, 8, 16, 32])
def test_stairs_are_found_by_their_width(step: int) -> None:
    noise = np.random.default_rng(0).normal(1, 0.01, size=33)
    times = {rank: (1.0 + 0.2 * math.ceil(rank / step) * step) * noise[rank - 8] for rank in range(8, 41)}
    assert largest_free_multiple(times) == step


def test_flat_times_take_the_largest_multiple_and_few_ranks_none() -> None:
    assert largest_free_multiple({rank: 1.0 for rank in range(1, 34)}) == 32
    assert largest_free_multiple({3: 1.0, 4: 1.0}) == 2 and largest_free_multiple({3: 1.0}) == 1


class Stairs(Machine):
    """Takes the time of the next multiple of 8 channels."""

    def seconds(self, module: nn.Module) -> float:
        layers = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
        channels = [(-(-m.in_channels // 8) * 8) * (-(-m.out_channels // 8) * 8) * m.weight[0, 0].numel() for m in layers]
        return 1e-6 + 1e-8 * sum(channels)


def test_it_is_measured_at_the_slowest_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    dense = dense_network(model)
    for machine, expected in ((Stairs(), 8), (Machine(), 1)):
        cost = latency(machine, cache=False).of(dense)
        assert suggested_round_to(cost, dense) == expected
    assert suggested_round_to(TableLatency(cost.table), dense) is None  # of another device


def test_a_space_takes_the_multiple_that_was_measured_and_keeps_it_with_the_table() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)).eval()
    dense = dense_network(model, decompositions=(SVD(),))
    cost = latency(Stairs(), cache=False).of(dense)
    assert cost.table.round_to is None and "round_to" not in cost.table.as_json()
    spectra = Spectra(model, dense.sites, [SVD()])
    found = build_space(spectra, round_to=0, costs=(*COSTS, cost), example=dense.example)
    assert found.ladders == build_space(spectra, round_to=8, costs=(*COSTS, cost), example=dense.example).ladders
    known = LatencyTable.from_json(cost.table.as_json())
    assert known == cost.table and known.round_to == 8
    elsewhere = TableLatency(known)
    assert build_space(spectra, round_to=0, costs=(*COSTS, elsewhere), example=dense.example).ladders == found.ladders
    for costs in (COSTS, (*COSTS, TableLatency(replace(known, round_to=None)))):  # nothing can be measured there
        with pytest.raises(InvalidArgument, match=r"round_to=0 .* count latency that is measured here, or give a number"):
            build_space(spectra, round_to=0, costs=costs, example=dense.example)
    with pytest.raises(InvalidArgument, match="round_to"):
        SpaceSpec((SVD(),), round_to=-1)
