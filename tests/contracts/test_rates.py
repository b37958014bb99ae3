"""Of every type: rates read a layer's factors as it holds them, and bound what the steps of all of them together do to its weight."""

from __future__ import annotations

import torch
from contract_cases import WEIGHTS, make, over, prepared, some
from torch import nn
from torch.autograd.functional import jacobian

from ranksearch.decompositions import AnyDecomposition
from ranksearch.networks.recovery import factor_rates
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra


@over([case for case in WEIGHTS if case[1].name != "dense"])
def test_the_steps_of_all_factors_change_the_weight_by_no_more_than_the_dense_step(kind: str, decomposition: AnyDecomposition) -> None:
    layer, _, example = make(kind)
    model = nn.Sequential(layer)
    spectra = Spectra(model, find_sites(model, example), (decomposition,))
    (site,) = spectra.sites
    _, _, errors = prepared(kind, decomposition)
    rank = tuple(errors.ranks[some(errors, 3)[len(some(errors, 3)) // 2]].tolist())
    configuration = Configuration({site.name: (decomposition.name, rank)})
    network = build(spectra, configuration)
    factors = spectra.factors(site, decomposition.name, rank)
    rates = factor_rates(network, spectra, configuration)
    with torch.no_grad():  # other factors than the type would give
        for parameter in network.parameters():
            parameter.mul_(3)
    tripled = factor_rates(network, spectra, configuration)
    weight = decomposition.compose(site, factors).numel()
    moved = torch.zeros(weight, weight, dtype=torch.float64)
    learning = [k for k, factor in enumerate(factors) if factor.is_floating_point()]  # an order of channels is of integers
    for k in learning:
        j = jacobian(lambda f, k=k: decomposition.compose(site, (*factors[:k], f, *factors[k + 1 :])), factors[k]).reshape(weight, -1)
        moved += j @ j.T / (len(learning) * torch.linalg.matrix_norm(j, 2) ** 2)
        # the power method comes from below
        expected = 1 / (len(learning) * float(torch.linalg.matrix_norm(j, 2)) ** 2)
        found = [rate for rate in rates.values() if expected * (1 - 1e-9) <= rate <= expected * 1.4]
        assert found, (expected, rates)
    assert float(torch.linalg.eigvalsh(moved)[-1]) <= 1 + 1e-9
    power = 2 * (len(learning) - 1)
    for name, rate in rates.items():
        torch.testing.assert_close(tripled[name], rate / 3**power, rtol=1e-6, atol=0)
