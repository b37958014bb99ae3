"""Weights overwritten by their reconstructions."""

from __future__ import annotations

import pytest
import torch
from method_cases import (
    batch,
    close,
    optimizer_of,
    oracle,
    supernet,
)
from torch.nn import functional as F

from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.space import Configuration
from ranksearch.supernet.methods import Distortion


@pytest.mark.parametrize("kind", ["tucker2", "svd", "tiled_svd"])
def test_distortion_overwrites_weights_by_their_reconstruction(kind):
    net = supernet()
    method = Distortion(net, F.cross_entropy, decomposition=kind, ratio=0.5, period=3)
    decomposition = next(d for d in DECOMPOSITIONS if d.name == kind)
    optimizer = optimizer_of(net)
    for step in (1, 2, 3):
        steps_before = {s.name: net.weight(s.name).detach().clone() for s in net.sites}
        loss, _ = oracle(net, batch(step))
        optimizer.zero_grad()
        value = method.loss(batch(step))
        assert torch.equal(value.detach(), loss)  # ordinary training between distortions
        value.backward()
        optimizer.step()
        steps_before = {s.name: net.weight(s.name).detach().clone() for s in net.sites}
        method.after_step(step)
        for site in net.sites:
            expected = steps_before[site.name]
            if step == 3 and site.name not in method.untouched:
                rank = method.target[site.name][1]
                state = decomposition.prepare(site, expected.reshape(site.shape))
                expected = decomposition.reconstruct(site, state, rank).reshape(expected.shape)
                assert not close(steps_before[site.name], expected, 1e-3)
            assert close(net.weight(site.name).detach(), expected)
    assert set(method.untouched) == {"svd": set(), "tucker2": {"9"}, "tiled_svd": {"9"}}[kind]
    ratios = {"svd": {"0": (4,), "3": (6,), "5": (6,), "9": (2,)}, "tucker2": {"0": (2, 4), "3": (4, 6), "5": (6, 6)}}
    assert all(method.target[name][1] == rank for name, rank in ratios.get(kind, {}).items())
    if kind == "tiled_svd":
        assert method.target["3"] == ("tiled_svd", (2, 1, 3))


def test_a_linear_schedule_falls_from_full_rank_to_the_target():
    net = supernet()
    target = Configuration({"3": ("tucker2", (2, 4)), "5": ("svd", (3,)), "0": ("tiled_svd", (2, 1, 1))})
    method = Distortion(net, F.cross_entropy, target=target, schedule="linear", steps=100, ramp=0.5, period=10)
    assert method.ranks(0) == {"3": (8, 12), "5": (12,), "0": (2, 1, 4)}
    assert method.ranks(25) == {"3": (5, 8), "5": (8,), "0": (2, 1, 2)}
    assert method.ranks(50) == method.ranks(100) == {"3": (2, 4), "5": (3,), "0": (2, 1, 1)}
    method.after_step(50)
    assert torch.linalg.matrix_rank(net.weight("5").detach().flatten(1)) == 3
    constant = Distortion(net, F.cross_entropy, target=target)
    assert constant.ranks(0) == constant.ranks(10**6) == dict((s, r) for s, _, r in target.choices)
