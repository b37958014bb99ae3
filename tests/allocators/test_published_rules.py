"""The published rules: budgets, and the behaviour that each paper or a dense computation predicts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from rule_cases import ALL, SVD, TYPES, ladder_of, make
from torch import nn

from ranksearch.allocators import Problem
from ranksearch.allocators.alds import ALDS, ALDSHeuristic, _least, relative_errors
from ranksearch.allocators.balf import BALF
from ranksearch.allocators.decomposable_net import DecomposableNet, DecomposableNetRaw, largest_singular_value
from ranksearch.allocators.energy import EnergyThreshold
from ranksearch.allocators.evbmf import EVBMF
from ranksearch.allocators.stn_storage import STNStorage
from ranksearch.costs import COSTS, CostModel, DenseNetwork, LayerOptions
from ranksearch.errors import InfeasibleBudget
from ranksearch.proxies import Frobenius
from ranksearch.sites import Cost, Site, find_sites
from ranksearch.space import Ladder, Option, SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table


def rules(spectra):
    tucker = EVBMF(spectra, decomposition="tucker2") if "tucker2" in spectra.decompositions else EnergyThreshold()
    return [
        EnergyThreshold(), ALDS(), ALDSHeuristic(), DecomposableNet(), DecomposableNet(decompositions=None),
        DecomposableNetRaw(least=1), BALF(), STNStorage(), EVBMF(spectra), tucker,
    ]  # fmt: skip


@pytest.mark.parametrize("spectra, space", [SVD, ALL], ids=["svd", "all"])
@pytest.mark.parametrize("budgets", [{"params": 0.9}, {"params": 0.5}, {"macs": 0.6}, {"params": 0.6, "macs": 0.6}])
def test_budgets_are_never_exceeded_and_answers_repeat(spectra, space, budgets):
    for rule in rules(spectra):
        problem = Problem(space, Frobenius().table(space), budgets)
        first = rule.allocate(problem)
        for name, share in budgets.items():
            assert getattr(space.cost(first.indices), name) <= space.limit(name, share), rule.name
        assert np.array_equal(first.indices, rule.allocate(problem).indices)
        assert np.isnan(first.gap) and first.value == pytest.approx(float(problem.table.score(first.indices)))


@pytest.mark.parametrize("spectra, space", [SVD, ALL], ids=["svd", "all"])
def test_a_budget_of_everything_costs_nothing_and_one_below_all_is_refused(spectra, space):
    table = Frobenius().table(space)
    for rule in rules(spectra):
        if rule.name not in ("evbmf",):  # whose ranks may cost more than dense at no weakening
            assert rule.allocate(Problem(space, table, {"params": 1.0})).value == pytest.approx(0.0, abs=1e-9), rule.name
        with pytest.raises(InfeasibleBudget):
            rule.allocate(Problem(space, table, {"params": space.smallest("params") - 1}))


def test_energy_is_the_smallest_rank_that_keeps_the_share():
    """Against a dense SVD: all layers keep at least 1 - e, one rank less of any would not."""
    spectra, space = SVD
    found = EnergyThreshold().allocate(Problem(space, Frobenius().table(space), {"params": 0.5}))
    errors = [float(np.square(l.column("frobenius"))[i]) for l, i in zip(space.ladders, found.indices, strict=True)]
    e = max(errors)
    for ladder, index in zip(space.ladders, found.indices, strict=True):
        weight = spectra.model.get_submodule(ladder.site.name).weight.detach().double().flatten(1)
        energy = torch.linalg.svdvals(weight).square()
        lost = (1 - energy.cumsum(0) / energy.sum()).numpy()
        option = ladder.options[index]
        if option.decomposition == "svd":
            assert option.rank[0] == int(np.argmax(lost <= e * (1 + 1e-9))) + 1


@pytest.mark.parametrize("share", [0.8, 0.6, 0.45])
def test_alds_equals_brute_force_and_its_heuristic_never_beats_it(share):
    spectra, _ = ALL
    space = build_space(spectra, max_options=5)
    values = space.table("operator", "max")
    problem = Problem(space, Frobenius().table(space), {"params": share})
    limit = space.limit("params", share)
    every = np.array(list(itertools.product(*(range(n) for n in space.shape))))
    feasible = every[space.table("params").score(every) <= limit]
    least = values.score(feasible).min()
    exact = float(values.score(ALDS().allocate(problem).indices))
    heuristic = float(values.score(ALDSHeuristic().allocate(problem).indices))
    assert exact == pytest.approx(float(least), rel=1e-12)
    assert heuristic >= exact - 1e-12


@pytest.mark.parametrize("rule", [ALDS, ALDSHeuristic])
def test_alds_takes_of_groups_the_largest_singular_value_that_one_leaves_out(rule):
    """Against the singular values of the groups' own slices of the kernel, and brute force over all configurations."""
    spectra, _ = make(("svd", "grouped_svd"), widths=(6, 8))
    space = build_space(spectra, max_options=6)
    columns = []
    for ladder in space.ladders:
        weight = spectra.model.get_submodule(ladder.site.name).weight.detach().double()
        column = []
        for option in ladder.options:
            groups, rank = {"svd": (1, *option.rank), "dense": (1, 10**6)}.get(option.decomposition, option.rank)
            slices = [part.flatten(1) for part in weight.chunk(groups, dim=1)]
            left = [torch.linalg.svdvals(part)[rank:].tolist() for part in slices]
            column.append(max((one[0] for one in left if one), default=0.0) / float(torch.linalg.svdvals(weight.flatten(1))[0]))
        columns.append(np.array(column))
    table = relative_errors(space, spectra)
    for found, wanted, whole in zip(table.values, columns, space.table("operator", "max").values, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-7)
        assert (found <= whole + 1e-7).all()
    assert any((f < w - 1e-3).any() for f, w in zip(table.values, space.table("operator", "max").values, strict=True))
    problem = Problem(space, Frobenius().table(space), {"params": 0.6})
    every = np.array(list(itertools.product(*(range(n) for n in space.shape))))
    least = table.score(every[space.table("params").score(every) <= space.limit("params", 0.6)]).min()
    found = float(table.score(rule(spectra).allocate(problem).indices))
    assert found == pytest.approx(float(least), rel=1e-9) if rule is ALDS else found >= least - 1e-12


def test_decomposable_net_drops_bases_in_the_order_of_its_criterion():
    """Against the paper's procedure: one sorted list of C1 C2 over all bases, the least dropped until it fits."""
    spectra, space = SVD
    sites = [l.site for l in space.ladders]
    costs = np.array([[s.cost.params, s.cost.macs] for s in sites], dtype=float)
    c2 = np.prod(1 - costs / costs.sum(axis=0), axis=1)
    sigmas = [torch.linalg.svdvals(spectra.model.get_submodule(s.name).weight.detach().double().flatten(1)).numpy() for s in sites]
    bases = sorted((s[k] / s[0] * c2[i], i, k) for i, s in enumerate(sigmas) for k in range(len(s)))
    limit = space.limit("params", 0.5)

    def network(ranks):
        ladders = zip(space.ladders, ranks, strict=True)
        return np.array([next((j for j, o in enumerate(l.options) if o.rank == (r,)), len(l.options) - 1) for l, r in ladders])

    ranks = [len(s) for s in sigmas]
    for _, i, k in bases:
        if space.cost(network(ranks)).params <= limit:
            break
        assert k == ranks[i] - 1 or k == 0
        ranks[i] = max(k, 1)
    found = DecomposableNet().allocate(Problem(space, Frobenius().table(space), {"params": 0.5}))
    assert found.indices.tolist() == network(ranks).tolist()


def test_raw_sigma_uses_absolute_singular_values_and_keeps_the_least():
    spectra, space = SVD
    for ladder in space.ladders:
        weight = spectra.model.get_submodule(ladder.site.name).weight.detach().double().flatten(1)
        assert largest_singular_value(ladder) == pytest.approx(float(torch.linalg.svdvals(weight)[0]), rel=1e-6)
    found = DecomposableNetRaw(least=3).allocate(Problem(space, Frobenius().table(space), {"params": 0.6}))
    ranks = [l.options[i].rank[0] for l, i in zip(space.ladders, found.indices, strict=True) if l.options[i].rank]
    assert ranks and min(ranks) >= 3


def test_raw_sigma_is_found_between_the_nearest_ranks():
    """Of singular values 4, 3, 1, 1, 1: between neighbours it is exact, over a longer step it is their mean."""
    sigma = np.array([4.0, 3.0, 1.0, 1.0, 1.0])
    left = {rank: float(np.square(sigma[rank:]).sum()) for rank in (1, 3, 4)}
    choices = [("svd", (rank,), 10 * rank, 0.5, sigma[rank] / sigma[0], energy) for rank, energy in left.items()]
    assert largest_singular_value(ladder_of(choices)) == pytest.approx(4.0)
    assert largest_singular_value(ladder_of(choices[:2])) == pytest.approx(np.sqrt(5.0) / 0.75)


def test_decomposable_net_takes_the_largest_rank_of_a_single_layer():
    """Its weight of a layer, the share of the others, is 0 there."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(12, 16)), torch.randn(2, 12)
    space = build_space(Spectra(net, find_sites(net, x), [TYPES["svd"]]))
    (ladder,) = space.ladders
    found = DecomposableNet().allocate(Problem(space, Frobenius().table(space), {"params": 0.8}))
    fitting = [i for i in range(len(ladder)) if space.cost(np.array([i])).params <= space.limit("params", 0.8)]
    assert len(fitting) > 1 and ladder.rank(int(found.indices[0])) == max(ladder.rank(i) for i in fitting)


def test_decomposable_net_counts_an_option_without_a_norm_as_all_that_is_lost():
    """Of two layers with 0.6 and 0.4 of the parameters and MACs the larger one's bases weigh 0.16, the smaller one's 0.36."""
    for operator, reduced in ((0.6, [0, 1]), (0.3, [1, 0])):
        large = ladder_of([("svd", (1,), 50, 0.5, np.nan, 0.5)], outputs=30)
        small = ladder_of([("svd", (1,), 50, 0.5, operator, 0.5)], outputs=20)
        space = SearchSpace((large, small), Cost(params=200, macs=200))
        problem = Problem(space, Table((np.zeros(2),) * 2, "sum"), {"params": 190})
        assert DecomposableNet().allocate(problem).indices.tolist() == reduced


def test_alds_heuristic_compares_costs_relative_to_their_limits():
    """It begins with SVDs, since everything spatial is over the budgets. Then the first layer's other type errs less and costs less: 60 of
    100 parameters and 2 of 10 launches, instead of 40 and 6."""

    def layer(name, svd, spatial):
        found = [("svd", (1,), *svd), ("spatial", (1,), *spatial), ("dense", (), 900, 10, 0.0)]
        options = [Option(kind, rank, Cost(params=p, macs=p, launches=n), e, e, e**2) for kind, rank, p, n, e in found]
        return Ladder.of(Site(name, "linear", 30, 30), options)

    ladders = layer("a", (40, 6, 0.5), (60, 2, 0.1)), layer("b", (10, 1, 0.1), (95, 9, 0.9))
    space = SearchSpace(ladders, Cost(params=1800, macs=1800, launches=20))
    problem = Problem(space, Table((np.zeros(3),) * 2, "sum"), {"params": 100, "launches": 10})
    assert ALDSHeuristic(starts=1).allocate(problem).indices.tolist() == [1, 0]


def test_balf_is_the_best_at_some_price():
    _, space = ALL
    found = BALF().allocate(Problem(space, Frobenius().table(space), {"params": 0.5}))
    values = [np.square(l.column("frobenius")) for l in space.ladders]
    costs = [l.column("params") for l in space.ladders]
    low, high = 0.0, np.inf
    for value, cost, index in zip(values, costs, found.indices, strict=True):
        for other in range(len(value)):
            if cost[other] > cost[index]:
                low = max(low, (value[index] - value[other]) / (cost[other] - cost[index]))
            elif cost[other] < cost[index]:
                high = min(high, (value[other] - value[index]) / (cost[index] - cost[other]))
            else:
                assert value[other] >= value[index]
    assert low <= high * (1 + 1e-9)


def test_balf_takes_each_budget_relative_to_its_limit_however_small_that_is():
    """A budget of one launch weighs as much as one of 100 parameters, so the option with a launch more is never the best at any price."""
    amounts = [("svd", (1,), 50, 0, 0.5), ("svd", (2,), 20, 1, 0.2), ("svd", (3,), 110, 0, 0.1), ("dense", (), 900, 1, 0.0)]
    options = [Option(kind, rank, Cost(params=p, macs=p, launches=n), e, e, e**2) for kind, rank, p, n, e in amounts]
    space = SearchSpace((Ladder.of(Site("layer", "linear", 30, 30), options),), Cost(params=900, macs=900, launches=1))
    assert BALF().allocate(Problem(space, Table((np.zeros(4),), "sum"), {"params": 100, "launches": 1})).indices.tolist() == [0]


def test_stn_storage_leaves_no_step_that_fits():
    _, space = ALL
    problem = Problem(space, Frobenius().table(space), {"params": 0.5})
    found = STNStorage().allocate(problem)
    left = space.limit("params", 0.5) - found.cost.params
    for ladder, index in zip(space.ladders, found.indices, strict=True):
        better = ladder.column("frobenius") < ladder.options[index].frobenius
        rise = ladder.column("params") - ladder.options[index].cost.params
        assert not (better & (rise <= left)).any()


class Factorized(CostModel):
    """How many layers are factorized, of which the dense network has none."""

    name, label, unit = "factorized", "factorized layers", "layers"

    def options(self, layer: LayerOptions) -> np.ndarray:
        return np.full(len(layer.ranks), int(layer.decomposition.name != "dense"), dtype=np.int64)

    def rest(self, network: DenseNetwork) -> int:
        return 0


@pytest.mark.parametrize("rule", [STNStorage(), BALF(), EnergyThreshold(), DecomposableNet()], ids=lambda rule: rule.name)
@pytest.mark.filterwarnings("error")
def test_a_budget_of_nothing_leaves_nothing_of_it(rule):
    spectra, _ = SVD
    space = build_space(spectra, costs=(*COSTS, Factorized()))
    table = Frobenius().table(space)
    found = rule.allocate(Problem(space, table, {"factorized": 0}))
    assert found.cost["factorized"] == 0 and found.cost.params == space.baseline.params
    assert rule.allocate(Problem(space, table, {"factorized": 1})).cost["factorized"] <= 1


def test_stn_storage_moves_what_errs_most_by_what_gains_most_per_parameter():
    """Against the rule step by step, with as little room as makes it close layers."""
    _, space = ALL
    errors = [np.square(ladder.column("frobenius")) for ladder in space.ladders]
    params = [ladder.column("params") for ladder in space.ladders]
    for share in (0.2, 0.35, 0.7):
        room = space.limit("params", share) - space.fixed["params"]
        now = [min(range(len(c)), key=lambda i, c=c, e=e: (c[i], e[i])) for c, e in zip(params, errors, strict=True)]
        closed: set[int] = set()
        while len(closed) < len(now):
            site = max((s for s in range(len(now)) if s not in closed), key=lambda s: errors[s][now[s]])
            left = room - sum(int(c[i]) for c, i in zip(params, now, strict=True))
            e, c, i = errors[site], params[site], now[site]
            moves = [m for m in range(len(e)) if e[m] < e[i] and c[m] - c[i] <= left]
            if moves:
                now[site] = max(moves, key=lambda m: (e[i] - e[m]) / max(c[m] - c[i], 1e-3))
            else:
                closed.add(site)
        found = STNStorage().allocate(Problem(space, Frobenius().table(space), {"params": share}))
        assert found.indices.tolist() == now


def test_stn_storage_gives_what_is_left_to_the_first_of_equals():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].load_state_dict(model[0].state_dict())
    spectra = Spectra(model, find_sites(model, torch.randn(1, 8)), [TYPES["svd"]])
    space = build_space(spectra)
    apart = 0
    for budget in range(space.smallest("params"), space.baseline.params):
        first, second = STNStorage().allocate(Problem(space, Frobenius().table(space), {"params": budget})).indices
        assert first >= second
        apart += int(first > second)
    assert apart


class Seconds(CostModel):
    """An amount that is measured, not counted: a fraction, with half a second beside the layers."""

    name, label, unit = "seconds", "seconds", "s"

    def options(self, layer: LayerOptions) -> np.ndarray:
        return 0.0123 * (1.0 + layer.ranks.sum(axis=1))

    def rest(self, network: DenseNetwork) -> float:
        return 0.5


def test_measured_amounts_are_counted_in_small_units():
    spectra, _ = SVD
    space = build_space(spectra, costs=(*COSTS, Seconds()))
    problem = Problem(space, Frobenius().table(space), {"seconds": 0.8})
    (unit,) = problem.units
    assert 0 < unit < 1e-4 * space.baseline["seconds"]
    for ladder, costs in zip(space.ladders, problem.costs, strict=True):
        assert np.abs(costs[:, 0] * unit - ladder.costs["seconds"]).max() <= 0.51 * unit
    assert (problem.limits[0] - problem.room[0]) * unit == pytest.approx(0.5, abs=0.51 * unit)
    assert problem.text(0, int(problem.limits[0])).startswith(f"seconds <= {problem.limits[0] * unit:.6g} ")


def test_a_budget_in_small_units_has_room_for_its_rounding_and_no_more():
    """Each site and the rest round by half a unit at most; the budget itself is cut off to a whole one."""
    for widths in ((8,), (8, 12), (8, 12, 16)):
        counted = build_space(make(("svd",), widths=widths)[0], costs=(*COSTS, Seconds()))
        problem = Problem(counted, Frobenius().table(counted), {"seconds": 0.8})
        exact = counted.limit("seconds", 0.8) / problem.units[0]
        rounded = (len(counted.ladders) + 1) / 2
        assert math.floor(exact + rounded) <= problem.limits[0] <= math.floor(exact) + rounded + 1


def test_stn_storage_begins_with_what_takes_least_of_all_budgets_together():
    """Of options that err alike: a tenth of one budget is more than a hundredth of the other, however large the numbers are."""
    options = [("svd", (1,), 10, 100_000), ("svd", (2,), 20, 50_000), ("dense", (), 90, 900_000)]
    ladder = Ladder.of(
        Site("layer", "linear", 8, 8),
        [Option(kind, rank, Cost(params=p, macs=m), *(3 * [0.5 if rank else 0.0])) for kind, rank, p, m in options],
    )
    space = SearchSpace((ladder,), Cost(params=90, macs=900_000))
    for budgets, first in (({"params": 40, "macs": 800_000}, 0), ({"params": 80, "macs": 200_000}, 1)):
        assert STNStorage().allocate(Problem(space, Table((np.zeros(3),), "sum"), budgets)).indices.tolist() == [first]


def test_alds_starts_from_every_type_and_takes_the_best_one_for_a_price():
    starts = list(ALDSHeuristic(starts=5)._starts([["a", "b"], ["b"], []]))
    assert starts[:2] == [["a", "b", "dense"], ["b", "b", "dense"]] and len(starts) == 5
    assert all(one in ("a", "b") and (two, three) == ("b", "dense") for one, two, three in starts)
    assert len(list(ALDSHeuristic(starts=1)._starts([["a", "b"]]))) == 2  # each type, whatever was asked for
    first, second, again = (list(ALDSHeuristic(starts=40, seed=seed)._starts([["a", "b"]] * 9)) for seed in (0, 1, 0))
    assert len({tuple(start) for start in first[2:]}) > 2 and first == again != second
    values, prices = np.array([0.3, 0.1, 0.2, 0.0]), np.array([1.0, 2.0, 3.0, 9.0])
    types = np.array(["a", "b", "c", "dense"])
    assert [_least(values, types, prices, index) for index in (0, 1, 2, 3)] == ["a", "b", "b", "b"]
    assert _least(values, types, np.array([5.0, 5.0, 5.0, 4.0]), 3) is None
