"""What the rules of one `compress` share."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from ranksearch import compression
from ranksearch.compression import portfolio
from ranksearch.space import SpaceSpec, named
from ranksearch.space.spectra import Spectra


def test_when_the_turn_of_another_metric_comes_the_states_of_the_last_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Spectra] = []
    forgotten: list[Spectra] = []
    turns: list[Spectra] = []
    asked = portfolio.Portfolio.spectra

    class Watched(Spectra):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

        def forget(self) -> None:
            forgotten.append(self)
            super().forget()

    def spectra(self: portfolio.Portfolio, metric: Any) -> Spectra:
        turns.append(asked(self, metric))
        return turns[-1]

    monkeypatch.setattr(portfolio, "Spectra", Watched)
    monkeypatch.setattr(portfolio.Portfolio, "spectra", spectra)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8)).eval()
    batches = list(torch.randn(64, 12).split(8))
    rules = ["fisher", "activation", "fisher_relative", "uniform"]
    found = compression.compress(net, batches, space=SpaceSpec(named("svd"), calibration=4), rules=rules, reconstruction=2, params=0.6)
    assert [one.rule for one in found.tried] == rules
    assert len(made) == 3 and forgotten[:2] == made[:2]
    assert forgotten == [one for one, other in pairwise(turns) if one is not other]


def test_spectra_that_forgot_make_the_same_again() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8)).eval()
    spec = SpaceSpec(named("svd"))
    spectra = Spectra(net, spec.sites(net, torch.zeros(1, 12)), spec.decompositions)
    site = spectra.sites["0"]
    state, factors = spectra.state(site, "svd"), spectra.factors(site, "svd", (3,))
    assert spectra.state(site, "svd") is state
    spectra.forget()
    assert spectra.state(site, "svd") is not state
    assert all(torch.equal(a, b) for a, b in zip(spectra.factors(site, "svd", (3,)), factors, strict=True))
