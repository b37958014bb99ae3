"""Residuals of all ranks at once: the same values as of every option by itself, against dense float64 products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.decompositions import SVD
from ranksearch.decompositions.folding import split_groups
from ranksearch.proxies import ActivationError, DiagonalFisher, FisherError
from ranksearch.proxies.residual import tables
from ranksearch.sites import canonical_weight, find_sites
from ranksearch.space import SpaceSpec
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import SampledLabels, collect
from ranksearch.statistics.metric import moments

NETWORKS = {
    "conv": lambda: nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 16, 5)
    ),
    "tokens": lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4), nn.Flatten(), nn.Linear(4 * 24, 5)),
}
INPUTS = {"conv": (40, 4, 6, 6), "tokens": (40, 4, 6, 6)}


@pytest.mark.parametrize("metric", ["weight", "activation", "fisher"])
@pytest.mark.parametrize("case", NETWORKS)
def test_values_of_all_ranks_are_those_of_dense_residuals(case: str, metric: str) -> None:
    model, x = NETWORKS[case]().eval(), torch.randn(INPUTS[case])
    sites = find_sites(model, x[:1])
    statistics = collect(model, sites, [x], labels=SampledLabels(), diagonal=True)
    spectra = Spectra(model, sites, (SVD(),), moments=None if metric == "weight" else moments(statistics, metric))
    space = SpaceSpec((SVD(),)).build(spectra, example=x[:1])
    proxies = [ActivationError(spectra, statistics), FisherError(spectra, statistics), DiagonalFisher(spectra, statistics)]
    for ladder, *columns in zip(space.ladders, *(table.values for table in tables(proxies, space)), strict=True):
        site = ladder.site
        weight = split_groups(site, canonical_weight(model.get_submodule(site.name), site)).double().flatten(2)
        a, g = (statistics.moments(kind)[site.name].floored for kind in ("activation", "fisher"))
        squares = statistics.of[site.name].fisher_diagonal
        assert a.input is not None and g.output is not None and squares is not None
        diagonal = split_groups(site, squares).flatten(2) / statistics.of[site.name].sampled
        energy = float(((weight @ a.input) * weight).sum())
        assert len(ladder) > 2
        for option, *found in zip(ladder.options, *columns, strict=True):
            if option.decomposition == "dense":
                assert found == [0.0, 0.0, 0.0]
                continue
            stand_in = SVD().compose(site, spectra.factors(site, "svd", option.rank))
            rest = weight - split_groups(site, stand_in).flatten(2)
            fisher = 0.5 * float(((g.output @ rest @ g.input) * rest).sum())
            expected = [float(((rest @ a.input) * rest).sum()) / energy, fisher, 0.5 * float((diagonal * rest.square()).sum())]
            assert found == pytest.approx(expected, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_factors_of_a_rank_are_the_first_of_those_of_all_ranks(rank: int) -> None:
    model, x = NETWORKS["tokens"]().eval(), torch.randn(INPUTS["tokens"])
    sites = find_sites(model, x[:1])
    spectra = Spectra(model, sites, (SVD(),), moments=moments(collect(model, sites, [x], labels=SampledLabels()), "fisher"))
    site = sites["0"]
    few, all_of_them = (spectra.factors(site, "svd", (r,)) for r in (rank, 6))
    assert SVD.components
    assert np.allclose(few[0], all_of_them[0][..., :rank]) and np.allclose(few[1], all_of_them[1][:, :rank])
    torch.testing.assert_close(SVD().compose(site, all_of_them), canonical_weight(model[0], site).double())
