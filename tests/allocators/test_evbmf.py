"""EVBMF: the rank under noise, the published free energy, and how ranks are weakened to a budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rule_cases import ALL, SVD, TYPES, ladder_of
from torch import nn

from ranksearch.allocators import Problem
from ranksearch.allocators.evbmf import EVBMF, _free_energy, evbmf_rank
from ranksearch.errors import InfeasibleBudget
from ranksearch.proxies import Frobenius
from ranksearch.sites import Cost, find_sites
from ranksearch.space import SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table


@pytest.mark.parametrize("rank", [1, 5, 12])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (60, 60)])
def test_evbmf_finds_the_rank_under_noise(shape, rank):
    rng = np.random.default_rng(rank)
    signal = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    assert evbmf_rank(signal + 0.5 * rng.normal(size=shape)) == rank
    assert evbmf_rank(signal + 0.5 * rng.normal(size=shape), noise=0.25) == rank


@pytest.mark.parametrize(("rows", "columns", "noise"), [(3, 5, 0.3), (4, 4, 1.1), (2, 9, 0.02)])
def test_the_free_energy_is_that_of_the_paper(rows, columns, noise):
    """Nakajima et al. 2013, corollary 2: psi_0(x) = x - log x for every component and psi_1 for those above the threshold."""
    sigma = np.array([6.0, 2.5, 1.0, 0.3])[: min(rows, columns)]
    alpha, tau_edge = rows / columns, 2.5129 * math.sqrt(rows / columns)
    edge = (1 + tau_edge) * (1 + alpha / tau_edge)
    expected, signals = 0.0, 0
    for x in (s**2 / (columns * noise) for s in sigma):
        expected += x - math.log(x)
        if x > edge:
            tau = (x - 1 - alpha + math.sqrt((x - 1 - alpha) ** 2 - 4 * alpha)) / 2
            expected += math.log(tau + 1) + alpha * math.log(tau / alpha + 1) - tau
            signals += 1
    assert signals > 0 and _free_energy(noise, sigma, rows, columns, edge) == pytest.approx(expected)


def test_evbmf_finds_nothing_in_noise_or_zeros_and_ignores_scale():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(50, 80))
    assert evbmf_rank(noise) <= 1 and evbmf_rank(np.zeros((5, 6))) == 0
    low = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 80)) + 0.1 * noise
    assert evbmf_rank(low) == evbmf_rank(1e-3 * low) == 4


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 6), (6, 40)])
def test_evbmf_knows_the_full_rank_of_a_layer_wide_or_tall(inputs, outputs):
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.outer(torch.arange(1.0, outputs + 1), torch.arange(1.0, inputs + 1)))
    model = nn.Sequential(layer)
    rule = EVBMF(Spectra(model, find_sites(model, torch.randn(1, inputs)), [TYPES["svd"]]))
    assert rule.ranks("0") == ((1, 6),)


def test_evbmf_weakening_is_common():
    spectra, space = SVD
    rule = EVBMF(spectra)
    found = rule.allocate(Problem(space, Frobenius().table(space), {"params": 0.6}))
    for ladder, index in zip(space.ladders, found.indices, strict=True):
        (rank, full) = rule.ranks(ladder.site.name)[0]
        option = ladder.options[index]
        assert 1 <= rank <= full and (not option.rank or option.rank[0] <= full)


def test_evbmf_leaves_ranks_full_where_the_budget_lets_it():
    """The ladder of two outputs ends at rank 1, one below full: any weakening at all would take it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 2))
    spectra = Spectra(model, find_sites(model, torch.randn(1, 40)), [TYPES["svd"]])
    space = build_space(spectra)
    assert space.ladders[1].choice(len(space.ladders[1]) - 2) == ("svd", (1,))
    found = EVBMF(spectra).allocate(Problem(space, Frobenius().table(space), {"params": 1.0}))
    assert found.indices.tolist() == space.dense.tolist()


def test_evbmf_says_what_its_smallest_network_has():
    """Of a space in which one layer has no option of its type."""
    spectra, space = ALL
    share = 0.01 + space.smallest("params") / space.baseline.params
    with pytest.raises(InfeasibleBudget) as said:
        EVBMF(spectra).allocate(Problem(space, Frobenius().table(space), {"params": share}))
    of_type = [[o.cost.params for o in ladder.options if o.decomposition == "svd"] for ladder in space.ladders]
    without = sum(not costs for costs in of_type)
    smallest = [min(costs) if costs else ladder.options[-1].cost.params for costs, ladder in zip(of_type, space.ladders, strict=True)]
    total = sum(smallest) + space.fixed["params"]
    assert f"its smallest network has {total:,} (" in str(said.value) and "options of 'svd' alone" in str(said.value)
    assert (f"{without} of {len(space.ladders)} layers have none" in str(said.value)) == bool(without)


def test_evbmf_says_how_many_layers_have_no_option_of_its_type():
    """One of three: another has other types besides. The MACs are those of the budget, to the last one."""
    ladders = [
        ladder_of([("svd", (1,), 50, 0.5, 0.5, 0.5), ("spatial", (1,), 40, 0.5, 0.5, 0.5)], outputs=30),
        ladder_of([("spatial", (1,), 40, 0.5, 0.5, 0.5)], outputs=20), ladder_of([("svd", (1,), 50, 0.5, 0.5, 0.5)], outputs=10),
    ]  # fmt: skip
    space = SearchSpace(tuple(ladders), Cost(params=310, macs=310))
    problem = Problem(space, Table((np.zeros(3), np.zeros(2), np.zeros(2)), "sum"), {"params": 170, "macs": 210})
    said = str(EVBMF(SVD[0])._too_large(problem, np.array([0, 1, 0])))
    assert "params <= 170" in said and "its smallest network has 210" in said and "macs" not in said
    assert "and 1 of 3 layers have none and stay dense" in said


@pytest.mark.parametrize(("made", "decomposition"), [(SVD, "svd"), (ALL, "tucker2")], ids=["svd", "tucker2"])
def test_evbmf_weakens_no_more_than_it_must(made, decomposition):
    """Against all that the rule can give: ranks change where a bound passes an integer, so one factor between each two such is enough."""
    spectra, space = made
    rule = EVBMF(spectra, decomposition=decomposition)
    ranks = {ladder.site.name: rule.ranks(ladder.site.name) for ladder in space.ladders}

    def at(k):
        picked = []
        for ladder in space.ladders:
            bound = [full - k * (full - rank) if k <= 1 else max(1.0, (2 - k) * rank) for rank, full in ranks[ladder.site.name]]
            of_type = [i for i, o in enumerate(ladder.options) if o.decomposition == decomposition]
            fits = [i for i in of_type if all(r <= b for r, b in zip(ladder.rank(i), bound, strict=True))]
            largest = [max(ladder.rank(i)[n] for i in of_type) for n in range(len(bound))] if of_type else []
            if not of_type or (fits and all(int(b) > r for b, r in zip(bound, largest, strict=True))):
                picked.append(len(ladder) - 1)
            else:
                sizes = [(sum(ladder.rank(i)), i) for i in fits or of_type]
                picked.append((max if fits else min)(sizes)[1])
        return np.array(picked)

    pairs = {pair for of_site in ranks.values() for pair in of_site}
    changes = {0.0} | {(full - r) / (full - rank) for rank, full in pairs for r in range(rank, full)}
    changes = sorted(changes | {2 - r / rank for rank, _ in pairs for r in range(1, rank + 1)})
    changes.insert(0, 0.0)
    networks = [at(0.0), *(at(k + 1e-7) for k in changes[1:])]  # full ranks, and what follows every change
    weakened = set()
    for share in np.linspace(0.05, 0.95, 19):
        fits = [space.cost(indices).params <= space.limit("params", share) for indices in networks]
        problem = Problem(space, Frobenius().table(space), {"params": share})
        if not fits[-1]:
            with pytest.raises(InfeasibleBudget):
                rule.allocate(problem)
            continue
        # one that fits, where weakening less does not; costs of rank tuples do not always fall, so that there may be several
        least = [n for n, fit in enumerate(fits) if fit and not (n and fits[n - 1])]
        found = rule.allocate(problem).indices.tolist()
        number = next((n for n in least if networks[n].tolist() == found), None)
        assert number is not None, share
        weakened.add(changes[number] < 1)
    assert weakened == {True, False}  # both halves of the rule
