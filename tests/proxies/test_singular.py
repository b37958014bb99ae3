"""Proxies of networks whose statistics are singular or badly scaled, against dense traces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.decompositions import DECOMPOSITIONS, Moments
from ranksearch.decompositions.cp import CP
from ranksearch.proxies import ActivationError, DiagonalFisher, Energy, FisherError, free_proxies
from ranksearch.sites import canonical_weight, find_sites
from ranksearch.space import build_space
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import collect
from ranksearch.statistics.metric import moments

TYPES = [CP(max_rank=4) if d.name == "cp" else d for d in DECOMPOSITIONS if not d.storage_only and d.name != "tensor_train"]


def network(scale: float) -> nn.Module:
    """One unit of the first layer is dead, later layers see inputs of another scale."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(),
            nn.Linear(20, 4),
        )  # fmt: skip
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[0].bias.mul_(scale)
        model[0].bias[2], model[0].weight[2] = -1.0, 0.0
        model[2].bias.mul_(scale)
        model[4].weight.div_(scale)
    return model.eval()


@pytest.mark.parametrize("examples", [1, 30])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("metric", ["activation", "fisher"])
def test_every_proxy_of_any_statistics(examples: int, scale: float, metric: str) -> None:
    model = network(scale)
    x = torch.randn(examples, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    sites = find_sites(model, x[:1])
    statistics = collect(model, sites, [x], diagonal=True)
    spectra = Spectra(model, sites, TYPES, moments=moments(statistics, metric))
    space = build_space(spectra, max_options=4)
    collected = [proxy(spectra, statistics) for proxy in (ActivationError, FisherError, DiagonalFisher)]
    for proxy in (*free_proxies(), *collected):
        for values in proxy.table(space).values:
            assert np.isfinite(values).all() and (values >= 0).all() and values[-1] == 0, proxy.name
    fisher = FisherError(spectra, statistics).table(space).values
    if metric == "fisher":
        for ladder, wanted, energy in zip(space.ladders, fisher, Energy().table(space).values, strict=True):
            exact = [spectra.profile(ladder.site, o.decomposition).frobenius_is != "bound" for o in ladder.options]
            assert energy[exact] == pytest.approx(wanted[exact], rel=1e-3, abs=1e-6 * max(energy.max(), wanted.max()))
    for ladder, found in zip(space.ladders, fisher, strict=True):
        site, option = ladder.site, ladder.options[0]
        residual = canonical_weight(model.get_submodule(site.name), site).double()
        residual = residual - spectra.decomposition(option.decomposition).reconstruct(
            site, spectra.state(site, option.decomposition), option.rank
        )
        m = statistics.moments("fisher")[site.name].floored
        assert isinstance(m, Moments) and m.input is not None and m.output is not None
        blocks = residual.reshape(site.groups, site.c_out // site.groups, -1)
        traces = [float(torch.trace(g @ r @ a @ r.T)) for g, r, a in zip(m.output, blocks, m.input, strict=True)]
        assert found[0] == pytest.approx(0.5 * sum(traces), rel=1e-6)
