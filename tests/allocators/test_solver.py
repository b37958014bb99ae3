"""The parts of the exact solver, each against brute force: a fault in one must not hide behind the next, which finds the optimum anyway."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import linprog

from ranksearch.allocators._budgets import Budgets
from ranksearch.allocators._choice import _begun, _Gap, _prices, solve
from ranksearch.allocators._feasible import improve, repair
from ranksearch.allocators._lists import listed
from ranksearch.allocators._milp import _Program, optimum
from ranksearch.allocators._options import Options, needed
from ranksearch.allocators.additive import Solution
from ranksearch.errors import RanksearchError


def instance(seed: int, budgets: int) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Values and costs of a few sites, and limits between what they need and what they can spend."""
    rng = np.random.default_rng(seed)
    costs = [rng.integers(0, 200, (int(rng.integers(2, 7)), budgets)) for _ in range(int(rng.integers(2, 5)))]
    values = [np.exp(-c.sum(axis=1) / 100) * rng.lognormal(0, 0.5, len(c)) for c in costs]
    least, most = (np.sum([f(c, axis=0) for c in costs], axis=0) for f in (np.min, np.max))
    return values, costs, (least + rng.uniform(0.3, 0.8, budgets) * (most - least)).astype(np.int64)


def every(values: list[np.ndarray], costs: list[np.ndarray], limits: np.ndarray) -> dict[tuple[int, ...], float]:
    """All choices within the limits and their sums of values."""
    found = {}
    for choice in itertools.product(*(range(len(v)) for v in values)):
        if (sum(c[i] for c, i in zip(costs, choice, strict=True)) <= limits).all():
            found[choice] = float(sum(v[i] for v, i in zip(values, choice, strict=True)))
    return found


def chosen(options: Options, picked: np.ndarray) -> tuple[int, ...]:
    assert options.site[picked].tolist() == list(range(len(picked)))
    return tuple(options.option[picked].tolist())


def feasible(seeds: range, budgets: int):
    """Instances that have a solution, with the options that matter."""
    for seed in seeds:
        values, costs, limits = instance(seed, budgets)
        options = needed(values, costs, limits)
        all_choices = every(values, costs, limits)
        if all_choices:
            assert options is not None
            yield options, limits, all_choices


def test_gap_is_relative_and_forgives_what_highs_cannot_tell() -> None:
    indices = np.zeros(1, dtype=np.int64)
    assert Solution(indices, 10.0, 9.0, 3).gap == pytest.approx(0.1)
    assert Solution(indices, -10.0, -11.0, 3).gap == pytest.approx(0.1)
    assert Solution(indices, 1.0, 1.0 - 5e-7, 3).gap == 0.0 and Solution(indices, 1.0, 1.0 - 5e-6, 3).gap > 0
    assert Solution(indices, 0.0, 0.0, 0).gap == 0.0


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_options_that_are_dropped_are_in_no_solution_or_are_beaten(budgets: int) -> None:
    dropped = 0
    for seed in range(40):
        values, costs, limits = instance(seed, budgets)
        options = needed(values, costs, limits)
        all_choices = every(values, costs, limits)
        if options is None:
            assert not all_choices
            continue
        kept = {(int(s), int(o)) for s, o in zip(options.site, options.option, strict=True)}
        assert [options.value[k] for k in range(len(kept))] == [values[s][o] for s, o in zip(options.site, options.option, strict=True)]
        for site, (value, cost) in enumerate(zip(values, costs, strict=True)):
            for option in range(len(value)):
                beaten = ((cost <= cost[option]).all(axis=1) & (value <= value[option]))[[o for s, o in kept if s == site]].any()
                in_one = any(choice[site] == option for choice in all_choices)
                if (site, option) not in kept:
                    dropped += 1
                    assert beaten or not in_one
                elif budgets == 1:  # none that is kept is beaten
                    others = [o for s, o in kept if s == site and o != option]
                    assert not ((cost[others] <= cost[option]).all(axis=1) & (value[others] <= value[option])).any()
    assert dropped > 0


def test_nothing_is_left_of_a_budget_below_the_least() -> None:
    values, costs = [np.array([1.0, 0.0])] * 2, [np.array([[3], [5]])] * 2
    assert needed(values, costs, np.array([5])) is None
    options = needed(values, costs, np.array([6]))
    assert options is not None and options.option.tolist() == [0, 0]  # no room for a dear one
    options = needed(values, costs, np.array([8]))
    assert options is not None and options.option.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_prices_give_the_bound_of_the_linear_relaxation(budgets: int) -> None:
    for options, limits, all_choices in feasible(range(40), budgets):
        prices, starts = _prices(options, limits)
        assert prices is not None and (prices >= 0).all()
        assignment = (options.site[None] == np.arange(len(options.starts))[:, None]).astype(float)
        relaxed = linprog(options.value, options.cost.T, limits, assignment, np.ones(len(assignment)), bounds=(0, None))
        gap = _Gap(options, limits, prices)
        assert gap.bound == pytest.approx(relaxed.fun, rel=1e-6, abs=1e-9)
        assert gap.bound <= min(all_choices.values()) + 1e-9
        assert (gap.reduced >= -1e-12).all() and np.minimum.reduceat(gap.reduced, options.starts) == pytest.approx(0, abs=1e-12)
        for start in starts:  # one option per site
            assert options.site[start].tolist() == list(range(len(options.starts)))


def test_reduced_costs_bound_what_a_solution_with_an_option_is_above_the_bound() -> None:
    for options, limits, all_choices in feasible(range(20), 2):
        prices, _ = _prices(options, limits)
        assert prices is not None
        gap = _Gap(options, limits, prices)
        for site, option, reduced in zip(options.site, options.option, gap.reduced, strict=True):
            with_it = [value for choice, value in all_choices.items() if choice[site] == option]
            assert not with_it or min(with_it) >= gap.bound + reduced - 1e-9


def test_the_gap_keeps_the_better_solution_and_rules_out_nothing_better() -> None:
    ruled_out = 0
    for options, limits, all_choices in feasible(range(40), 1):
        prices, _ = _prices(options, limits)
        assert prices is not None
        gap = _Gap(options, limits, prices)
        assert gap.window == np.inf and not gap.closed and not gap.offer(None) and gap.best is None
        ranked = sorted(all_choices, key=all_choices.__getitem__)
        here = {(int(s), int(o)): k for k, (s, o) in enumerate(zip(options.site, options.option, strict=True))}
        usable = [choice for choice in ranked if all((s, o) in here for s, o in enumerate(choice))]
        best, middle, worst = (np.array([here[c] for c in enumerate(usable[k])]) for k in (0, len(usable) // 2, -1))
        assert gap.offer(middle)
        assert gap.offer(worst) == (all_choices[usable[-1]] < all_choices[usable[len(usable) // 2]])
        assert gap.best is not None and chosen(options, gap.best) == usable[len(usable) // 2]
        gap.rule_out()
        ruled_out += len(options.site) - len(gap.kept)
        assert set(best.tolist()) <= set(gap.kept.tolist())
        gap.offer(best)
        assert not gap.offer(best)  # no better than itself
        assert gap.window == pytest.approx(all_choices[usable[0]] - gap.bound, abs=1e-12)
    assert ruled_out > 0


def test_the_integer_program_gets_no_option_that_is_ruled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by the first solution that was known nor by the better one of the narrow list."""
    asked = []

    def watched(options, reduced, prices, limits, *, seconds, window):
        asked.append((reduced, window))
        return None, 0.0

    def unproven(*given, width=None, **bounds):
        return (None if width is None else listed(*given, width=width, **bounds)[0]), False

    monkeypatch.setattr("ranksearch.allocators._choice.optimum", watched)
    monkeypatch.setattr("ranksearch.allocators._choice.listed", unproven)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values, costs = [rng.random(30) for _ in range(12)], [rng.integers(1, 10**8, (30, 2)) for _ in range(12)]
        limits = (np.sum([np.median(c, axis=0) for c in costs], axis=0) * 0.6).astype(np.int64)
        assert solve(values, costs, limits) is not None
    assert len(asked) >= 10
    for reduced, window in asked:
        assert reduced.max() <= window * (1 + 1e-8) + 1e-11


@pytest.mark.parametrize("budgets", [1, 2])
def test_repaired_and_improved_choices_fit_and_leave_no_gain(budgets: int) -> None:
    for options, limits, all_choices in feasible(range(40), budgets):
        dear = options.lowest(options.value)  # what one would take without a budget
        found = repair(options, dear, limits)
        if found is None:
            continue
        assert chosen(options, found) in all_choices
        better = improve(options, found, limits)
        assert better is not None and options.value[better].sum() <= options.value[found].sum()
        choice = chosen(options, better)
        neighbours = [
            all_choices[(*choice[:site], int(option), *choice[site + 1 :])]
            for site, option in zip(options.site, options.option, strict=True)
            if (*choice[:site], int(option), *choice[site + 1 :]) in all_choices
        ]
        assert all_choices[choice] == pytest.approx(min(neighbours))
        assert (dear == options.lowest(options.value)).all()  # not changed
    assert improve(options, None, limits) is None


@pytest.mark.parametrize("known", ["nothing", "the worst", "the best"])
@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_lists_of_all_choices_are_exact(budgets: int, known: str) -> None:
    """Whatever solution bounds them: of the best one itself, they find that it is."""
    for options, limits, all_choices in feasible(range(40), budgets):
        prices, _ = _prices(options, limits)
        assert prices is not None
        gap, least, most = _Gap(options, limits, prices), min(all_choices.values()), max(all_choices.values())
        window = {"nothing": np.inf, "the worst": most - gap.bound, "the best": least - gap.bound}[known] + 1e-9
        picked, proven = listed(options, gap.reduced, prices, limits, window=window)
        assert proven and picked is not None and all_choices[chosen(options, picked)] == pytest.approx(least)
        assert listed(options, gap.reduced, prices, limits, window=least - gap.bound - 1e-9) == (None, True), "below the least"


@pytest.mark.parametrize("cut", [{"width": 2}, {"depth": 2}, {"width": 2, "depth": 2}])
@pytest.mark.parametrize("budgets", [1, 2])
def test_lists_that_were_cut_prove_nothing(budgets: int, cut: dict[str, int]) -> None:
    missed = 0
    for options, limits, all_choices in feasible(range(40), budgets):
        prices, _ = _prices(options, limits)
        assert prices is not None
        picked, proven = listed(options, _Gap(options, limits, prices).reduced, prices, limits, window=np.inf, **cut)
        assert picked is None or chosen(options, picked) in all_choices
        if picked is None or all_choices[chosen(options, picked)] > min(all_choices.values()) + 1e-9:
            missed += 1
            assert not proven
    assert missed > 0


def test_lists_give_up_after_so_many_choices() -> None:
    """Two options of each of three sites: 2, 4 and 8 partial choices, of which none is worse than another."""
    site, cost = np.repeat(np.arange(3), 2), np.array([[0], [1], [0], [2], [0], [4]])
    options = Options(site, np.tile([0, 1], 3), np.array([1.0, 0.0, 2.0, 0.0, 4.0, 0.0]), cost)
    given = (options, options.value, np.zeros(1), np.array([7]))
    picked, proven = listed(*given, window=np.inf, work=14)
    assert proven and picked is not None and picked.tolist() == [1, 3, 5]
    assert listed(*given, window=np.inf, work=13) == (None, False)


def test_what_further_sites_cannot_use_of_a_budget_is_paid_for() -> None:
    """At a price of 1 both options of the first site lose 0 so far, but without the dear one two units stay unused."""
    options = Options(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([2.0, 0.0, 0.0]), np.array([[0], [2], [0]]))
    given = (options, np.zeros(3), np.ones(1), np.array([2]))
    picked, proven = listed(*given, window=1.0)
    assert proven and picked is not None and picked.tolist() == [1, 2]
    without = Options(np.array([0, 1]), np.array([0, 0]), np.array([2.0, 0.0]), np.array([[0], [0]]))
    assert listed(without, np.zeros(2), np.ones(1), np.array([2]), window=1.0) == (None, True)


def test_lists_that_were_cut_have_no_place_for_sums_that_the_other_sites_leave_no_room_for() -> None:
    """The best option of the first site leaves two of five, and the other site takes three at least."""
    site, cost = np.array([0, 0, 1, 1]), np.array([[0], [3], [3], [4]])
    options = Options(site, np.array([0, 1, 0, 1]), np.array([1.0, 0.0, 0.5, 0.0]), cost)
    picked, _ = listed(options, options.value, np.zeros(1), np.array([5]), window=np.inf, width=1)
    assert picked is not None and picked.tolist() == [0, 3]


@pytest.mark.parametrize("work", [0.0, 6e6])
def test_lists_find_what_rounding_misses_before_the_integer_program_is_asked(monkeypatch: pytest.MonkeyPatch, work: float) -> None:
    """Of three things that weigh 6, 5 and 5 and gain 7, 5 and 5, ten can be carried: most per weight is the first, best are the others."""
    monkeypatch.setattr("ranksearch.allocators._choice.optimum", lambda *given, **options: (None, 0.0))  # out of time at once
    monkeypatch.setattr("ranksearch.allocators._choice.WORK", work)
    values, costs = [np.array([gain, 0.0]) for gain in (7.0, 5.0, 5.0)], [np.array([[0], [weight]]) for weight in (6, 5, 5)]
    found = solve(values, costs, np.array([10]))
    assert found is not None and found.indices.tolist() == [0, 1, 1] and found.value == 7.0


def test_what_its_bound_proves_is_not_asked_of_the_integer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given, **options):
        raise AssertionError("asked")

    monkeypatch.setattr("ranksearch.allocators._choice.optimum", never)
    values, costs = [np.array([3.0, 1.0, 0.0])] * 3, [np.array([[0], [2], [5]])] * 3
    for fixing in (True, False):
        for limit, least in ((0, 9.0), (4, 5.0), (6, 3.0), (15, 0.0)):  # where one price gives choices that use a budget up
            found = solve(values, costs, np.array([limit]), fixing=fixing)
            assert found is not None and found.value == found.bound == least


@pytest.mark.parametrize("budgets", [1, 2])
@pytest.mark.parametrize("known", [False, True])
def test_the_integer_program_is_exact(budgets: int, known: bool) -> None:
    for options, limits, all_choices in feasible(range(25), budgets):
        prices, _ = _prices(options, limits)
        assert prices is not None
        gap, least = _Gap(options, limits, prices), min(all_choices.values())
        window = max(all_choices.values()) - gap.bound if known else np.inf
        picked, lower = optimum(options, gap.reduced, prices, limits, seconds=60.0, window=window)
        assert picked is not None and all_choices[chosen(options, picked)] == pytest.approx(least, rel=1e-7)
        assert lower == pytest.approx(least - gap.bound, rel=1e-5, abs=1e-6 * least)


def test_a_choice_holds_where_every_budget_does_to_the_last_unit() -> None:
    budgets = Budgets(np.array([[0, 2], [3, 0], [1, 1]]), np.array([4, 3]), np.zeros(2), 0.0)
    assert budgets.hold(np.array([1, 2])) and budgets.hold(np.array([0, 2]))
    assert not budgets.hold(np.array([0, 0])) and not budgets.hold(np.array([1, 1]))


def test_choices_that_are_excluded_one_by_one_come_in_the_order_of_their_sums() -> None:
    """One differs from the next in one site or in both."""
    options = Options(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([0.0, 4.0, 0.0, 1.0]), np.array([[1], [2], [1], [2]]))
    program = _Program(options, options.value, Budgets.of(options, np.zeros(1), np.array([9])), np.inf)
    found = []
    for _ in range(4):
        picked = options.lowest(-program.run(60.0).x[:4])
        found.append(picked.tolist())
        program.exclude(picked)
    assert found == [[0, 2], [0, 3], [1, 2], [1, 3]] and program.run(60.0).x is None


def test_a_choice_that_breaks_a_budget_in_integers_is_followed_by_the_next_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS is made to look away from the budget: three of the four choices are over it."""
    options = Options(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([4.0, 0.0, 1.0, 0.0]), np.array([[1], [2], [1], [2]]))
    made = _Program.__init__

    def without_limits(self, options, reduced, budgets, window) -> None:
        made(self, options, reduced, replace(budgets, room=budgets.room + 9), window)

    monkeypatch.setattr(_Program, "__init__", without_limits)
    arguments = (options, options.value, np.zeros(1), np.array([2]))
    picked, lower = optimum(*arguments, seconds=60.0, window=np.inf)
    assert picked is not None and picked.tolist() == [0, 2] and lower == pytest.approx(5.0)
    monkeypatch.setattr("ranksearch.allocators._milp.ATTEMPTS", 3)
    picked, lower = optimum(*arguments, seconds=60.0, window=np.inf)
    assert picked is None and lower == pytest.approx(4.0)


@pytest.mark.parametrize("window", [0.0, 1.0, np.inf])
def test_the_integer_program_of_one_choice(window: float) -> None:
    """Its only choice is the bound itself, beside which no window is left."""
    options = needed([np.array([3.0]), np.array([2.0])], [np.array([[4]]), np.array([[5]])], np.array([9]))
    assert options is not None
    picked, lower = optimum(options, np.zeros(2), np.zeros(1), np.array([9]), seconds=60.0, window=window)
    assert picked is not None and picked.tolist() == [0, 1] and lower == 0.0


@pytest.mark.parametrize("below", [0.0, 10.0])
def test_an_unproven_solution_keeps_its_lower_bound(below: float) -> None:
    """Of values below zero too, whose sum with their bound says nothing."""
    values, limits = [np.array([-3.0 - below, -1.0 - below])], np.array([5])
    options = needed(values, [np.array([[5], [1]])], limits)
    assert options is not None
    gap = _Gap(options, limits, np.zeros(1))
    assert gap.offer(options.lowest(options.value))
    assert gap.solution(values, 0) == Solution(pytest.approx(np.array([0])), -3.0 - below, -3.0 - below, 0)
    assert gap.among_kept(None) is None and gap.among_kept(np.array([0])) == gap.kept[:1]
    gap.bound -= 1.0
    assert gap.solution(values, 0).bound == -4.0 - below
    gap.bound += 9.0  # what rounding puts above the value is no bound
    assert gap.solution(values, 0).bound == -3.0 - below


@pytest.mark.parametrize("status", [1, 2])
def test_without_a_solution_time_that_ran_out_is_an_error_unless_one_is_known(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(_Program, "run", lambda self, seconds: SimpleNamespace(x=None, status=status, message="time", mip_dual_bound=None))
    options = Options(np.zeros(2, dtype=np.int64), np.arange(2), np.array([1.0, 0.0]), np.array([[0], [1]]))
    arguments = (options, options.value, np.zeros(1), np.array([1]))
    assert optimum(*arguments, seconds=3.0, window=1.0) == (None, 0.0)
    if status == 2:  # infeasible
        assert optimum(*arguments, seconds=3.0, window=np.inf) == (None, 0.0)
    else:
        with pytest.raises(RanksearchError, match="seconds=3: no allocation found"):
            optimum(*arguments, seconds=3.0, window=np.inf)


def test_what_lists_prove_to_have_no_solution_is_not_asked_of_the_integer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ranksearch.allocators._choice.optimum", None)
    costs = [np.array([[1, 9], [9, 1]])] * 3
    assert solve([np.array([1.0, 2.0])] * 3, costs, np.array([15, 15])) is None


def test_budgets_that_hold_alone_but_not_together_have_no_solution() -> None:
    costs = [np.array([[1, 9], [9, 1]])] * 3  # each option leaves room for itself; three cost 30 of both together
    for fixing in (True, False):
        assert solve([np.array([1.0, 2.0])] * 3, costs, np.array([12, 12]), fixing=fixing) is None
        found = solve([np.array([1.0, 2.0])] * 3, costs, np.array([19, 19]), fixing=fixing)
        assert found is not None and found.value == 4.0


@pytest.mark.parametrize("scale", [1e-200, 1e-14, 1e14])
def test_the_scale_of_values_changes_no_choice(scale: float) -> None:
    for seed in range(15):
        values, costs, limits = instance(seed, 1 + seed % 2)
        plain, scaled = solve(values, costs, limits), solve([v * scale for v in values], costs, limits)
        assert (plain is None) == (scaled is None)
        if plain is not None and scaled is not None:
            assert plain.indices.tolist() == scaled.indices.tolist() and scaled.value == pytest.approx(plain.value * scale)


@pytest.mark.parametrize("budgets", [1, 2])
@pytest.mark.parametrize("large", [1e3, 1e14, 1e200, 1e300])
def test_values_of_options_that_no_optimum_has_change_no_choice(budgets: int, large: float) -> None:
    """A large value stands for an option that must not be taken. Sums with it would tell the others apart no more."""
    compared = 0
    for seed in range(60):
        values, costs, limits = instance(seed, budgets)
        rng = np.random.default_rng(seed)
        values = [1e-12 * value for value in values]
        for value in values[:2]:
            value[rng.integers(len(value))] = large
        choices = every(values, costs, limits)
        best = min(choices.values(), default=np.inf)
        if best < 1:  # no choice has to take a large one
            found = solve(values, costs, limits)
            assert found is not None and found.gap == 0
            assert choices[tuple(found.indices.tolist())] == pytest.approx(best, rel=1e-12)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("large", [1e14, 1e300])
def test_bounds_are_those_of_the_options_that_matter(large: float) -> None:
    """A linear program that is scaled by the others tells nothing of these."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        costs = [rng.integers(0, 2000, (12, 2)) for _ in range(10)]
        values = [np.exp(-c.sum(axis=1) / 1000) * rng.lognormal(0, 0.5, len(c)) for c in costs]
        least, most = (np.sum([f(c, axis=0) for c in costs], axis=0) for f in (np.min, np.max))
        limits = (least + 0.5 * (most - least)).astype(np.int64)
        bounds = []
        for among in (values, [np.append(v, large) for v in values]):
            options = needed(among, [np.append(c, 0 * c[:1], axis=0) for c in costs] if among is not values else costs, limits)
            gap = None if options is None else _begun(options, limits)
            assert gap is not None
            bounds.append(gap.solution(among, 0).bound)
        assert bounds[1] >= bounds[0] * (1 - 1e-6)
        found = solve(values, costs, limits)
        assert found is not None and bounds[1] <= found.value * (1 + 1e-9)


def test_values_that_no_choice_can_do_without_hide_no_others() -> None:
    values, costs = [np.array([1e30]), np.array([3.0, 1.0, 2.0])], [np.array([[5]]), np.array([[1], [9], [2]])]
    found = solve(values, costs, np.array([7]))
    assert found is not None and found.indices.tolist() == [0, 2]


@pytest.mark.parametrize("fixing", [True, False])
def test_budgets_that_are_met_to_the_last_unit_have_a_solution(fixing: bool) -> None:
    """HiGHS's presolve finds these infeasible."""
    costs = [np.array([[69772090, 251179524], [697720900, 145125947]]), np.array([[0, 361306266], [0, 420991229]])]
    for spare in (0, 2):
        found = solve([np.array([1.0, 1.0]), np.array([2.0, 1.0])], costs, np.array([69772090 + spare, 612485790]), fixing=fixing)
        assert found is not None and found.indices.tolist() == [0, 0] and found.value == 3.0


def test_layers_of_one_shape_are_proven_by_lists_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a transformer: few different sums of costs, and far too many optima as good as each other for branching."""
    monkeypatch.setattr("ranksearch.allocators._choice.optimum", None)
    rng = np.random.default_rng(0)
    ranks = np.arange(1, 192)
    values = [np.append(np.exp(-ranks / scale), 0.0) for scale in rng.uniform(40, 60, 40)]
    costs = [np.append(ranks * width, 192 * width)[:, None] for width in rng.choice([768, 1920], 40)]
    for share in (0.2, 0.3, 0.5):
        limit = np.array([int(share * sum(int(c[-1, 0]) for c in costs)) + 1])
        found = solve(values, costs, limit)
        assert found is not None and found.gap == 0 and found.remaining == 0
