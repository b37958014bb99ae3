"""Decisions of schedulers: what must hold of any, and ASHA's rule written a second time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ranksearch.errors import InvalidArgument
from ranksearch.results.pareto import fronts
from ranksearch.schedulers import ASHA, SCHEDULERS, NoStopping, ParetoASHA, Scheduler
from ranksearch.schedulers._places import bands, places_before

COARSE = st.integers(0, 5).map(float)  # so few values that many are equal
HALVING = [ASHA, ParetoASHA]
KINDS = [type(scheduler) for scheduler in SCHEDULERS]


def decisions(scheduler: Scheduler, rows: Sequence[Sequence[float]], constant: Sequence[bool]) -> list[bool]:
    started = scheduler.start(constant)
    return [started.goes_on(f"t{i}", 1.0, row) for i, row in enumerate(rows)]


def of_shape(columns: int, most: int = 24) -> st.SearchStrategy[list[list[float]]]:
    return st.lists(st.lists(COARSE, min_size=columns, max_size=columns), min_size=1, max_size=most)


# -- the contract, for every scheduler of the table -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheduler_keeps_the_contract(kind: type[Scheduler]) -> None:
    scheduler = kind()
    assert [each.name for each in SCHEDULERS].count(scheduler.name) == 1
    first, second = scheduler.start([False, True]), scheduler.start([False])
    assert scheduler.constant == () and (first.constant, second.constant) == ((False, True), (False,)), "instances hold no state"
    rungs = scheduler.rungs(10.0)
    assert list(rungs) == sorted(set(rungs)) and all(0 < rung < 10 for rung in rungs) and scheduler.rungs(1e-9) == ()
    assert first.goes_on("a", 1.0, [1.0, 0.5]), "there is nobody to compare the first arrival with"
    first.goes_on("b", 1.0, [9.0, 0.5])
    assert first.goes_on("b", 1.0, [9.0, 0.5]), "who is asked about again was let through"
    for wrong in ([1.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(InvalidArgument, match="2 finite numbers"):
            first.goes_on("c", 1.0, wrong)
    with pytest.raises(InvalidArgument, match="no objective changes"):
        scheduler.start([True, True])


@pytest.mark.parametrize("kind", KINDS)
def test_a_newcomer_that_dominates_everyone_is_never_stopped(kind: type[Scheduler]) -> None:
    @settings(max_examples=60, deadline=None)
    @given(of_shape(3), st.integers(0, 2))
    def check(rows: list[list[float]], better: int) -> None:
        best = np.min(rows, axis=0)
        best[better] -= 1.0
        constant = [False, False, True] if kind is not ASHA else [False, True, True]
        if kind is ASHA and better:  # it looks at the first alone; being as good there as the best is enough
            best[0] = np.min(rows, axis=0)[0]
        assert decisions(kind(), [*rows, best.tolist()], constant)[-1]

    check()


# -- successive halving ---------------------------------------------------------------------------------------------


def percentile_rule(values: Sequence[float], eta: float) -> list[bool | None]:
    """Ray's rule, to be minimised: stop what is worse than the interpolated percentile of those before. None where that lies between
    two of them, and the newcomer too, so that the scale decides."""
    found: list[bool | None] = []
    for n, value in enumerate(values):
        before = sorted(values[:n])
        if not before:
            found.append(True)
            continue
        place = (n - 1) / eta
        low, high = before[math.floor(place)], before[math.ceil(place)]
        found.append(True if value <= low else False if value > high or low == high else None)
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(COARSE | st.floats(-5, 5), min_size=1, max_size=40), st.sampled_from([2.0, 2.5, 3.0, 4.0]))
def test_with_one_objective_both_decide_as_asha_does(values: list[float], eta: float) -> None:
    mine = decisions(ParetoASHA(eta=eta), [[v] for v in values], [False])
    assert mine == decisions(ASHA(eta=eta), [[v] for v in values], [False])
    expected = percentile_rule(values, eta)
    assert [m for m, e in zip(mine, expected, strict=True) if e is not None] == [e for e in expected if e is not None]


def test_the_rule_written_as_ray_writes_it_is_the_same() -> None:
    rng = np.random.default_rng(0)
    values, eta = rng.normal(size=200), 3.0
    expected = percentile_rule(values.tolist(), eta)
    for n, says in enumerate(expected):
        if n and says is not None:
            cutoff = np.nanpercentile(-values[:n], (1 - 1 / eta) * 100)
            assert says == (not -values[n] < cutoff)
    assert sum(says is None for says in expected) < 10


INCREASING: list[Callable[[np.ndarray], np.ndarray]] = [lambda x: 7 * x - 3, np.exp, lambda x: x**3, np.sqrt]


@settings(max_examples=60, deadline=None)
@given(of_shape(4), st.tuples(*[st.integers(0, 3)] * 4))
def test_no_scale_changes_a_decision(rows: list[list[float]], chosen: tuple[int, ...]) -> None:
    constant = [False, True, False, True]
    scaled = np.stack([INCREASING[which](column) for which, column in zip(chosen, np.array(rows).T, strict=True)], axis=1)
    assert decisions(ParetoASHA(), rows, constant) == decisions(ParetoASHA(), scaled.tolist(), constant)


@settings(max_examples=60, deadline=None)
@given(of_shape(3), st.integers(0, 3), st.booleans())
def test_an_objective_that_is_the_same_for_all_changes_nothing(rows: list[list[float]], at: int, is_cost: bool) -> None:
    constant = [False, False, True]
    more = np.insert(np.array(rows), at, 4.0, axis=1).tolist()
    assert decisions(ParetoASHA(), rows, constant) == decisions(ParetoASHA(), more, [*constant[:at], is_cost, *constant[at:]])


@pytest.mark.parametrize("eta", [2, 3, 4])
@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_of_all_orders_of_arrival_exactly_one_of_eta_goes_on(n: int, eta: int) -> None:
    """The last of n arrivals, over all n! orders, in objectives of which two change and one is a cost: ceil(n / eta) of n. A band of its
    own has fewer, so all are in one."""
    rng = np.random.default_rng(n)
    rows = rng.permuted(np.tile(np.arange(n, dtype=float), (3, 1)), axis=1).T
    scheduler = ParetoASHA(eta=eta, bands=1)
    last = [decisions(scheduler, rows[list(order)].tolist(), [False, False, True])[-1] for order in itertools.permutations(range(n))]
    assert sum(last) * n == math.ceil(n / eta) * math.factorial(n)


def test_one_of_eta_goes_on_in_every_band_however_the_metric_follows_cost() -> None:
    """Larger networks are better by far: ASHA keeps those alone, by bands one of eta goes on at every size."""
    rng = np.random.default_rng(1)
    cost = rng.uniform(size=600)
    rows = np.stack([-20 * cost + rng.normal(size=600) * 0.1, cost], axis=1)
    mine = np.array(decisions(ParetoASHA(eta=3), rows.tolist(), [False, True]))[150:]
    asha = np.array(decisions(ASHA(eta=3), rows.tolist(), [False, True]))[150:]
    quarter = (cost[150:] * 4).astype(int)
    for q in range(4):
        many = np.sum(quarter == q)
        # a third and, of small bands, a little more; five standard deviations of so many independent decisions
        assert abs(mine[quarter == q].mean() - 1 / 3) < 0.03 + 5 * math.sqrt(2 / 9 / many)
    assert asha[quarter == 0].sum() == 0 and asha[quarter == 3].mean() > 0.8


def test_a_cost_that_takes_part_in_domination_would_stop_nobody_and_bands_do() -> None:
    rng = np.random.default_rng(2)
    rows = np.stack([rng.normal(size=400), np.arange(400.0)], axis=1)[rng.permutation(400)]
    gone_on = np.mean(decisions(ParetoASHA(eta=3), rows.tolist(), [False, True])[100:])
    assert abs(gone_on - 1 / 3) < 0.03 + 5 * math.sqrt(2 / 9 / 300)  # five standard deviations


def test_rungs_are_geometric_and_below_the_end() -> None:
    assert ParetoASHA(first=0.5, eta=2).rungs(4) == (0.5, 1.0, 2.0) and ASHA().rungs(9.5) == (1.0, 3.0, 9.0)
    assert NoStopping().rungs(100) == ()
    for kind in HALVING:
        for wrong in ({"first": 0}, {"first": math.nan}, {"eta": 1.9}):
            with pytest.raises(InvalidArgument, match=next(iter(wrong))):
                kind(**wrong)
    with pytest.raises(InvalidArgument, match="bands"):
        ParetoASHA(bands=0)


@pytest.mark.parametrize("kind", HALVING)
def test_rungs_know_nothing_of_each_other_and_what_was_seen_before_counts(kind: type[Scheduler]) -> None:
    started = kind(eta=2).start([False])
    for i in range(4):
        started.observe(f"old{i}", 1.0, [float(i)])
    started.observe("old0", 1.0, [100.0])  # the first word counts
    assert not started.goes_on("bad", 1.0, [3.5]) and started.goes_on("good", 1.0, [0.5]) and started.goes_on("bad", 2.0, [3.5])


# -- places ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(of_shape(2, most=30), st.integers(1, 5), st.integers(1, 6))
def test_bands_are_of_neighbours_and_equal_costs_are_together(rows: list[list[float]], least: int, most: int) -> None:
    costs = np.array(rows)[:, :1]
    of = bands(costs, least=least, most=most)
    order = np.argsort(costs[:, 0], kind="stable")
    assert (np.diff(of[order]) >= 0).all() and len(np.unique(of)) <= max(1, min(most, len(rows) // least))
    assert len({(c, b) for c, b in zip(costs[:, 0], of, strict=True)}) == len(np.unique(costs))
    if len(np.unique(costs)) == len(costs):
        sizes = np.bincount(of)
        assert sizes.max() - sizes.min() <= 1


def test_ties_go_to_what_covers_most() -> None:
    """All on one front: the most balanced point first (here, where all sums are alike, the best in the first objective), then the other
    end, then the middle."""
    front = np.array([[float(i), float(8 - i)] for i in range(9)])
    taken = {}
    for i in range(9):
        taken[i] = places_before([np.vstack([np.delete(front, i, axis=0), front[i]])])
    assert [taken[0], taken[8], taken[4]] == [0, 1, 2] and sorted(taken.values()) == list(range(9))
    assert places_before([np.array([[1.0, 1.0], [0.0, 3.0], [3.0, 0.0], [1.0, 1.0]])]) == 2, "among equals the newcomer is first"
    assert places_before([np.ones((5, 2))]) == 0


@settings(max_examples=60, deadline=None)
@given(of_shape(3))
def test_fronts_are_peeled_one_by_one(rows: list[list[float]]) -> None:
    values = np.array(rows)
    found = fronts(values, ["min", "min", "min"])
    for i, point in enumerate(values):
        above = [found[j] for j, other in enumerate(values) if (other <= point).all() and (other < point).any()]
        assert found[i] == (max(above) + 1 if above else 0)
