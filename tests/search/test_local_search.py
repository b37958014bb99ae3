"""Local search: never worse, within budgets, within its evaluations, and as good as brute force where that is small."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.allocators import Problem
from ranksearch.decompositions import SVD, SVDIn
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.surgery import build
from ranksearch.proxies import CalibrationLoss
from ranksearch.search import local_search
from ranksearch.search.local_search import (
    _corrected,
    _exchange,
    _improved,
    _Incumbent,
    _moves,
    _nearest,
    _probe,
    _reluctant,
    _scored,
    _total,
    polish,
)  # fmt: skip
from ranksearch.sites import find_sites
from ranksearch.space import Configuration, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table
from ranksearch.tasks import Classification


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip
    sites = find_sites(model, torch.randn(1, 3, 8, 8))
    spectra = Spectra(model, sites, [SVD(), SVDIn()])
    return model, spectra, build_space(spectra, max_options=6)


def landscape(space, seed):
    """A measurement that disagrees with every table: random, with interactions between neighbours."""
    rng = np.random.default_rng(seed)
    values = [np.square(l.column("frobenius")) * rng.lognormal(0, 1, len(l.options)) for l in space.ladders]
    cross = rng.random((len(values), max(space.shape), max(space.shape)))

    def measure(indices):
        own = sum(v[i] for v, i in zip(values, indices, strict=True))
        return float(own + 0.1 * sum(cross[s, indices[s], indices[s + 1]] for s in range(len(values) - 1)))

    return measure


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budgets", [{"params": 0.6}, {"macs": 0.5, "params": 0.7}])
def test_never_worse_never_over_budget_never_over_count(setting, seed, budgets):
    _, _, space = setting
    rng = np.random.default_rng(seed)
    inner = landscape(space, seed)
    seen = []

    def measure(indices):
        seen.append(indices.copy())
        assert all(getattr(space.cost(indices), n) <= space.limit(n, v) for n, v in budgets.items())
        return inner(indices)

    feasible = [r for r in space.sample(400, seed) if all(getattr(space.cost(r), n) <= space.limit(n, v) for n, v in budgets.items())]
    start = feasible[rng.integers(len(feasible))]
    given = start.copy()
    count = int(rng.integers(1, 60))
    found = polish(space, start, measure, budgets, evaluations=count)
    assert np.array_equal(start, given)
    assert found.value <= found.start == inner(start) and found.value == inner(found.indices)
    assert found.evaluations == len(seen) <= count and len({s.tobytes() for s in seen}) == len(seen)
    again = polish(space, start, inner, budgets, evaluations=count)
    assert np.array_equal(again.indices, found.indices) and again.evaluations == found.evaluations


def test_ends_where_no_growth_of_a_site_is_better_and_near_the_best_there_is(setting):
    """From random starts; of all feasible configurations few are better, at half of which a random one would be."""
    _, _, space = setting
    every = np.array(list(itertools.product(*(range(n) for n in space.shape))))
    limit = space.limit("params", 0.6)
    feasible = every[space.table("params").score(every) <= limit]
    better = []
    for seed in range(6):
        inner = landscape(space, seed)
        all_values = np.array([inner(i) for i in feasible])
        start = feasible[np.random.default_rng(seed).integers(len(feasible))]
        found = polish(space, start, inner, {"params": 0.6}, evaluations=300)
        better.append((all_values < found.value).mean())
        if found.evaluations < 300:  # it ended by itself
            changed = feasible != found.indices
            for neighbour in feasible[changed.sum(1) == 1]:
                site = int(np.flatnonzero(neighbour != found.indices)[0])
                errors = space.ladders[site].column("frobenius")
                assert errors[neighbour[site]] >= errors[found.indices[site]] or inner(neighbour) >= found.value
    assert np.mean(better) < 0.1


def weighted(space, seed):
    """A table of the space, every site at a scale of its own, and a configuration inside the ladders."""
    rng = np.random.default_rng(seed)
    values = tuple(np.square(l.column("frobenius")) * rng.lognormal(0, 1) for l in space.ladders)
    return Table(values, "sum"), np.array([rng.integers(1, n - 1) for n in space.shape])


@pytest.mark.parametrize("seed", range(8))
def test_moves_grow_a_site_within_the_budgets_best_predicted_first(setting, seed):
    _, _, space = setting
    table, now = weighted(space, seed)
    problem = Problem(space, table, {"params": float(space.cost(now).params)})  # no room: whoever grows needs another to give
    moves = list(_moves(problem, now, np.ones(len(now)), 3))
    assert moves
    gains: dict[int, list[float]] = {}
    for site, candidate in moves:
        assert table.values[site][candidate[site]] < table.values[site][now[site]], "the site grows"
        assert _total(problem, candidate) <= problem.room and (candidate != now).sum() <= 2
        gains.setdefault(site, []).append(float(table.score(candidate) - table.score(now)))
    assert all(np.array_equal(found, np.sort(found)) for found in gains.values())
    assert gains[moves[0][0]][0] == min(found[0] for found in gains.values())
    turns = dict.fromkeys(gains, 0)
    for site, _ in moves:
        assert all(turns[other] >= min(turns[site] // 2 * 2, len(gains[other])) for other in gains), "a third of one after two of each"
        turns[site] += 1


@pytest.mark.parametrize("seed", range(8))
def test_probes_are_of_the_cheaper_option_with_the_most_typical_rise(setting, seed):
    _, _, space = setting
    table, now = weighted(space, seed)
    asked = []
    found = _Incumbent(lambda indices: asked.append(indices.copy()) or 1.0 + float(table.score(indices)), now)
    problem = Problem(space, table, {"params": 1.0})
    probed = _probe(problem, found)
    current = np.array([v[i] for v, i in zip(table.values, now, strict=True)])
    typical = max(current.mean(), 1e-3 * np.mean([v.max() for v in table.values]))
    for site, values in enumerate(table.values):
        (option,) = {int(row[site]) for row in asked} - {int(now[site])}
        params = space.ladders[site].costs["params"]
        rises = values - current[site]
        usable = [i for i in range(len(values)) if params[i] <= params[now[site]] and rises[i] > 0]
        assert option in usable
        distance = {i: abs(float(np.log(rises[i] / typical))) for i in usable}
        assert distance[option] == pytest.approx(min(distance.values()))
    # what is measured is what the table says: no site is weighed otherwise than before
    for before, after in zip(table.values, probed.values, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_probes_cost_no_more_and_promise_less_whatever_the_table(setting, seed):
    """By other errors than those that the ladders are made of, options that cost less may lose less."""
    _, _, space = setting
    rng = np.random.default_rng(seed)
    table, now = Table(tuple(rng.random(n) for n in space.shape), "sum"), np.array([rng.integers(1, n - 1) for n in space.shape])
    now[0], table.values[0][:] = 2, [0.5, 1.0, 0.7, 0.1, *[0.2] * (space.shape[0] - 4)]  # there is one
    asked = []
    _probe(Problem(space, table, {"params": 1.0}), _Incumbent(lambda indices: asked.append(indices.copy()) or 1.0, now))
    assert len(asked) > 1
    for row in asked[1:]:
        (site,) = np.flatnonzero(row != now)
        params = space.ladders[site].costs["params"]
        assert params[row[site]] <= params[now[site]] and table.values[site][row[site]] > table.values[site][now[site]]


def test_a_site_without_a_cheaper_option_keeps_its_weight(setting):
    """The others' are corrected: one of them measures a hundred times what the table says."""
    _, _, space = setting
    table, now = weighted(space, 2)
    now[1] = int(np.argmin(space.ladders[1].costs["params"]))

    def measure(indices):
        steps = [values[i] - values[k] for values, i, k in zip(table.values, indices, now, strict=True)]
        return sum(step * (100 if site == 0 else 1) for site, step in enumerate(steps))

    probed = _probe(Problem(space, table, {"params": 1.0}), _Incumbent(measure, now))
    factors = [float(after[0] / before[0]) for before, after in zip(table.values, probed.values, strict=True)]
    assert factors == pytest.approx([local_search.SPREAD**0.5, *[1.0] * (len(now) - 1)])


def test_probing_ends_after_two_rounds_in_vain_or_three_quarters_of_the_evaluations(setting, monkeypatch):
    _, _, space = setting
    problem, rounds = Problem(space, space.table("frobenius"), {"params": 0.6}), []
    start = np.zeros(len(space.shape), dtype=np.int64)

    def probed(problem, found):
        rounds.append(found.evaluations)
        return problem.table

    monkeypatch.setattr(local_search, "_probe", probed)
    _corrected(problem, _Incumbent(lambda indices: 1.0, start), 1000)
    assert len(rounds) == 2
    rounds.clear()
    # every configuration that is looked at is another one, and better than those before
    values, others = itertools.count(0, -1), itertools.product(*(range(n) for n in space.shape))
    found = _Incumbent(lambda indices: next(values), np.array(next(others)))
    monkeypatch.setattr(found, "improves", lambda candidate: _Incumbent.improves(found, np.array(next(others))))
    _corrected(problem, found, 40)
    assert rounds[-1] + len(start) + 2 <= 30 < found.evaluations + len(start) + 2


def test_probes_that_measure_no_difference_leave_the_table(setting):
    _, _, space = setting
    table, now = weighted(space, 0)
    probed = _probe(Problem(space, table, {"params": 1.0}), _Incumbent(lambda indices: 1.0, now))
    assert probed is table


def test_reluctance_is_a_price_on_every_option_but_the_present_one(setting):
    _, _, space = setting
    table, now = weighted(space, 1)
    step = 0.25 * float(np.mean([values[index] for values, index in zip(table.values, now, strict=True)]))
    for before, after, index in zip(table.values, _reluctant(table, now).values, now, strict=True):
        np.testing.assert_allclose(after - before, np.where(np.arange(len(before)) == index, 0.0, step))


def test_moves_that_were_taken_are_counted(setting):
    space = setting[2]
    assert polish(space, space.dense, lambda i: 0.0, {"params": 1.0}, evaluations=40).accepted == 0
    found = polish(space, space.dense * 0, landscape(space, 0), {"params": 0.6}, evaluations=40)
    assert (found.accepted > 0) == (found.value < found.start)


def test_a_growth_that_misled_is_trusted_less_and_one_that_helped_more() -> None:
    found = _Incumbent(lambda indices: {0: 2.0, 1: 3.0, 2: 1.0, 3: 0.0}[int(indices[0])], np.array([0]))
    moves = iter([(0, np.array([0])), (1, np.array([1])), (2, np.array([2])), (3, np.array([3]))])
    trust = np.ones(4)
    assert _improved(moves, found, 10, trust) is True and found.value == 1.0
    assert trust.tolist() == [1.0, 0.7, 1.5, 1.0]  # what was known already says nothing, and the round ends with what helps
    assert found.improves(np.array([1])) is False and found.improves(np.array([3])) is True
    found = _Incumbent(lambda indices: -float(indices[0]), np.array([0]))
    assert _improved(iter([(0, np.array([1]))]), found, 1, trust) is False and found.evaluations == 1


def test_rounds_without_a_better_configuration_look_farther_up_to_a_width(setting, monkeypatch):
    _, _, space = setting
    asked = []

    def none(problem, now, trust, width):
        asked.append((width, trust.tolist()))
        return iter(())

    monkeypatch.setattr(local_search, "_moves", none)
    problem = Problem(space, space.table("frobenius"), {"params": 0.6})
    _exchange(problem, _Incumbent(lambda indices: 0.0, space.dense), 10, 3)
    widths = [width for width, _ in asked]
    assert widths == [3 * 2**k for k in range(len(widths))] and widths[-1] <= 4 * max(space.shape) < 2 * widths[-1]
    assert all(trust == [1.0] * len(space.shape) for _, trust in asked)
    asked.clear()
    _exchange(problem, _Incumbent(lambda indices: 0.0, space.dense), 10, 4 * max(space.shape) + 1)
    assert asked == []


def test_a_move_is_scored_by_what_the_table_predicts_of_it() -> None:
    values = [np.array([4.0, 1.0]), np.array([2.0, 5.0]), np.array([7.0])]
    change, number, site, candidate = _scored(values, np.zeros(3, dtype=np.int64), {0: 1, 1: 1}, 0, np.array([0.5, 9.0, 9.0]), 6)
    assert (change, number, site, candidate.tolist()) == (0.5 * -3.0 + 3.0, 6, 0, [1, 1, 0])


def test_the_nearest_are_taken_in_growing_steps_up_to_the_farthest() -> None:
    gain = np.array([0.0, 5.0, 1.0, 9.0, 2.0, 7.0, 3.0, 8.0, 4.0, 6.0, 10.0])
    options = np.arange(1, 11)
    by_gain = options[np.argsort(gain[options])]
    found = _nearest(options, gain, 3)
    assert found.tolist() == [by_gain[0], by_gain[2], by_gain[9]]  # steps of 1, of the square root of ten, and of ten
    assert _nearest(options, gain, 100).tolist() == by_gain[np.unique(np.round(np.geomspace(1, 10, 10)).astype(int)) - 1].tolist()
    assert _nearest(options[:1], gain, 3).tolist() == [1] and len(_nearest(options[:0], gain, 3)) == 0


def test_a_start_over_one_of_two_budgets_is_refused(setting):
    _, _, space = setting
    with pytest.raises(InfeasibleBudget, match="over the budgets"):
        polish(space, space.dense, lambda indices: 0.0, {"params": 0.6, "macs": 1.0})


def test_refusals(setting):
    _, _, space = setting
    with pytest.raises(InfeasibleBudget):
        polish(space, space.dense, lambda i: 0.0, {"params": 0.5})
    with pytest.raises(InfeasibleBudget):
        polish(space, space.dense, lambda i: 0.0, {"params": 0.5, "macs": 1.0})  # one of two is enough
    with pytest.raises(InvalidArgument):
        polish(space, space.dense, lambda i: 0.0, {"params": 1.0}, evaluations=0)
    with pytest.raises(InvalidArgument):
        polish(space, space.dense[:-1], lambda i: 0.0, {"params": 1.0})


def batches(count=3, size=16):
    torch.manual_seed(1)
    return [(torch.randn(size, 3, 8, 8), torch.randint(0, 5, (size,))) for _ in range(count)]


def test_calibration_loss_is_that_of_the_built_network(setting):
    model, spectra, space = setting
    data = batches()
    configuration = space.configuration(space.dense - 2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    measure = CalibrationLoss(spectra, data, nn.functional.cross_entropy)
    with torch.no_grad():
        network = build(spectra, configuration).eval()
        expected = float(np.mean([float(nn.functional.cross_entropy(network(x), y)) for x, y in data]))
        dense = float(np.mean([float(nn.functional.cross_entropy(model(x), y)) for x, y in data]))
    assert measure(configuration) == pytest.approx(expected, rel=1e-5) == measure(configuration)
    assert measure(Configuration()) == pytest.approx(dense, rel=1e-6)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_batch_statistics_are_those_of_one_batch_re_estimated(setting):
    _, spectra, space = setting
    data = batches(1, 64)
    configuration = space.configuration(space.dense - 2)
    measure = CalibrationLoss(spectra, data, nn.functional.cross_entropy, normalization="batch")
    network = build(spectra, configuration)
    recalibrate(network, [data[0][0]])
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(network.eval()(data[0][0]), data[0][1]))
    assert measure(configuration) == pytest.approx(expected, rel=1e-3)
    assert measure(configuration) == measure(configuration)  # nothing is left behind in shared layers


def test_polish_lowers_a_real_loss(setting):
    _, spectra, space = setting
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, 8, 8, generator=generator)
    with torch.no_grad():
        y = spectra.model(x).argmax(1)
    task = Classification(train=(x, y), validation=(x, y), learning_rate=0.01, classes=5)
    measure = CalibrationLoss(spectra, list(task.labelled(2)), task.loss)
    start = np.array([0] * len(space.ladders))
    found = polish(space, start, lambda i: measure(space.configuration(i)), {"params": 0.7}, evaluations=40)
    assert found.value < found.start and found.accepted > 0


def test_a_site_may_go_by_another_of_its_paths() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 5)).eval()
    spectra = Spectra(model, find_sites(model, torch.randn(2, 8)), [SVD()])
    assert spectra.sites["2"].name == "0"
    data = [(torch.randn(16, 8), torch.randint(0, 5, (16,)))]
    measure = CalibrationLoss(spectra, data, nn.functional.cross_entropy)
    losses = [measure(Configuration({name: ("svd", (2,))})) for name in ("0", "2")]
    assert losses[0] == losses[1] != measure(Configuration())
