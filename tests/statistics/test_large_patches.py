"""Moments of large patches, which are products of a channel and a tap factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ranksearch.decompositions import DECOMPOSITIONS, Kronecker
from ranksearch.sites import find_sites
from ranksearch.statistics import collect
from ranksearch.statistics.moments import kronecker


def test_kronecker_is_exact_for_a_product():
    channel, tap = torch.randn(1, 2, 4).double(), torch.randn(1, 9, 12).double()
    channel, tap = channel @ channel.mT, tap @ tap.mT
    product = torch.einsum("gij,gkl->gikjl", channel, tap).reshape(1, 18, 18)
    traces = [m.diagonal(dim1=1, dim2=2).sum() for m in (channel, tap)]
    found = kronecker(channel * traces[1], tap * traces[0])
    torch.testing.assert_close(torch.kron(found.channel[0], found.tap[0])[None], product)


def test_moments_of_large_patches_are_never_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ranksearch.statistics.inputs.LARGEST", 40)
    model, x = nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.Flatten(), nn.Linear(6 * 4, 2)), torch.randn(40, 8, 4, 4)
    sites = find_sites(model, x[:1])
    statistics = collect(model, sites, [x], cache=tmp_path)
    entries = 72 * 72
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(t.numel() for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        moments = statistics.moments("fisher")
        for decomposition in (d for d in DECOMPOSITIONS if d.name in ("svd", "svd_in", "spatial")):
            state = decomposition.prepare(sites["0"], model[0].weight.detach(), moments["0"])
            errors = decomposition.errors(state)
            assert 0 < errors.frobenius[0] < 1 and np.isfinite(errors.norm)
            decomposition.factors(state, (2,))
    assert isinstance(moments["0"].input, Kronecker) and max(made) < entries
    again = collect(model, sites, [x], cache=tmp_path).input_moment("0")  # what the cache keeps is what was collected
    assert torch.equal(again.channel, statistics.input_moment("0").channel) and torch.equal(again.tap, statistics.input_moment("0").tap)
    assert statistics.fisher_ratio("0") is None
