"""Refitted factors of every type, against the goal that they are fitted to."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Moments, Quantized, Rank
from ranksearch.decompositions.rounding import layout, round_factors
from ranksearch.networks.descent.weighing import Weighing
from ranksearch.networks.reconstruction.refit import BLIND, Effort, refit, rounded
from ranksearch.networks.reconstruction.regression import Goal
from ranksearch.sites import Call, Site

CONV = Site("c", "conv2d", 8, 6, (3, 3), padding=(1, 1), calls=(Call(1, (5, 5), (5, 5)),))
LINEAR = Site("l", "linear", 12, 8)
WIDE = Site("w", "linear", 8, 12)
TYPES = [(d, site) for d in DECOMPOSITIONS for site in (CONV, LINEAR) if d.name != "dense" and d.undefined(site) is None]


def moment(size: int) -> Tensor:
    factor = torch.randn(1, size, 2 * size, dtype=torch.float64)
    return factor @ factor.mT / size


def made(site: Site, decomposition: AnyDecomposition, two_sided: bool) -> tuple[Goal, Rank, tuple[Tensor, ...]]:
    """A goal beside a dense weight, a middle rank, and the factors that were made of the dense weight."""
    width = site.shape[1] * site.kernel[0] * site.kernel[1]
    dense = torch.randn(site.shape, dtype=torch.float64)
    wanted = dense + 0.7 * torch.randn_like(dense)
    inputs, output = moment(width), moment(site.c_out) if two_sided else None
    flat = wanted.reshape(1, site.c_out, -1)
    moments = Moments(inputs, output)
    goal = Goal(wanted, flat @ inputs @ flat.mT, output, lambda: moments, lambda: Weighing(moments), None, None)
    state = decomposition.prepare(site, dense)
    ranks = decomposition.errors(state).ranks
    rank = tuple(int(r) for r in ranks[len(ranks) // 2])
    return goal, rank, decomposition.factors(state, rank)


def squared(site: Site, goal: Goal, weight: Tensor) -> float:
    """The squared error in the metric, written out."""
    away = (weight - goal.weight).reshape(site.c_out, -1)
    assert goal.moments.input is not None
    left = away if goal.moments.output is None else goal.moments.output[0] @ away
    return float((left * (away @ goal.moments.input[0])).sum())


@pytest.mark.parametrize(("two_sided", "large"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("decomposition", "site"), TYPES, ids=[f"{d.name}-{s.kind}" for d, s in TYPES])
def test_every_fit_gets_nearer_to_the_goal_and_keeps_the_shapes(
    decomposition: AnyDecomposition, site: Site, two_sided: bool, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as of large layers, whose steps are made in float32."""
    if large:
        monkeypatch.setattr("ranksearch.networks.descent.levenberg_marquardt.LARGE", 0)
    goal, rank, factors = made(site, decomposition, two_sided)
    errors = [squared(site, goal, decomposition.compose(site, factors))]
    now = factors
    for _ in range(3):
        now = refit(decomposition, site, rank, now, goal)
        assert [f.shape for f in now] == [f.shape for f in factors]
        errors.append(squared(site, goal, decomposition.compose(site, now)))
    assert errors[1] < 0.95 * errors[0], "there was something to gain"
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(errors))


@pytest.mark.parametrize(("decomposition", "site"), TYPES, ids=[f"{d.name}-{s.kind}" for d, s in TYPES])
def test_descent_knows_the_axes_of_factors_or_is_given_more_iterations(
    decomposition: AnyDecomposition, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def noted(compose: Any, factors: list[Tensor], weight: Tensor, weighing: Weighing, **options: Any) -> tuple[Tensor, ...]:
        told.append(options)
        return tuple(factors)

    monkeypatch.setattr("ranksearch.networks.reconstruction.refit.descend", noted)
    goal, rank, factors = made(site, decomposition, two_sided=True)
    refit(decomposition, site, rank, factors, goal, Effort(3, 7))
    axes = decomposition.axes(site)
    expected = {"steps": 3, "inner": 7 if axes else 7 * BLIND, "axes": axes, "free": range(len(factors))}
    assert told == ([] if decomposition.optimal else [expected])


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("site", [LINEAR, WIDE], ids=["tall", "wide"])
def test_no_factors_of_svd_are_nearer(two_sided: bool, site: Site) -> None:
    """Eckart and Young, by an SVD of the goal between symmetric roots of the moments."""
    decomposition = next(d for d in DECOMPOSITIONS if d.name == "svd")
    goal, rank, factors = made(site, decomposition, two_sided)
    found = squared(site, goal, decomposition.compose(site, refit(decomposition, site, rank, factors, goal)))

    def root(value: Tensor | None, size: int) -> Tensor:
        values, vectors = torch.linalg.eigh(torch.eye(size, dtype=torch.float64) if value is None else value[0])
        return vectors @ torch.diag(values.sqrt()) @ vectors.T

    white = root(goal.output, site.c_out) @ goal.weight.flatten(1) @ root(goal.moments.input, site.c_in)
    assert found == pytest.approx(float(torch.linalg.svdvals(white)[rank[0] :].square().sum()), rel=1e-6)


@pytest.mark.parametrize("kind", ["svd", "svd_in", "spatial", "tucker2"])
def test_at_full_rank_the_layer_is_the_regression(kind: str) -> None:
    decomposition = next(d for d in DECOMPOSITIONS if d.name == kind)
    goal, _, _ = made(CONV, decomposition, two_sided=False)
    rank = tuple(int(r) for r in decomposition.ranks(CONV)[-1])
    start = decomposition.factors(decomposition.prepare(CONV, torch.randn(CONV.shape, dtype=torch.float64)), rank)
    before = squared(CONV, goal, decomposition.compose(CONV, start))
    for _ in range(8):
        start = refit(decomposition, CONV, rank, start, goal)
    assert squared(CONV, goal, decomposition.compose(CONV, start)) < 1e-4 * before


@pytest.mark.parametrize("kind", ["cp", "tucker2", "spatial", "svd_in"])
def test_layers_that_are_rounded_stay_so_while_the_rest_makes_up_for_it(kind: str) -> None:
    """Of four bits a row has the multiples of a number up to seven times, whatever came after; and the error is less than without."""
    inner = next(d for d in DECOMPOSITIONS if d.name == kind)
    site = Site("r", "conv2d", 8, 24, (3, 3), padding=(1, 1), calls=(Call(1, (5, 5), (5, 5)),))
    goal, _, start = made(site, inner, two_sided=True)
    found = rounded(few := Quantized(inner, 4), site, start, goal)
    layers = layout(inner, site, found)
    flat = torch.cat([factor.flatten() for factor in found])
    for layer in layers:
        for row in flat[layer.places].flatten(1):
            assert len(torch.unique((row.abs() / row.abs().max() * 1e6).round())) <= 8
    assert max(flat[layer.places][0].numel() for layer in layers[:1]) > 8, "rows that are not rounded have more"
    alone = round_factors(layers, start, 4)
    assert squared(site, goal, few.compose(site, found)) < squared(site, goal, few.compose(site, alone))
