"""The exact allocators against brute force on every random instance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ranksearch.allocators import Additive, Allocation, Minimax, Problem, Uniform, additive_front, lagrangian_hull, minimax_front
from ranksearch.allocators._choice import solve
from ranksearch.allocators._hull import falling
from ranksearch.errors import InfeasibleBudget
from ranksearch.sites import Cost, Site
from ranksearch.space import Ladder, Option, SearchSpace
from ranksearch.space.table import Table

COSTS = ("params", "macs")
SETTINGS = settings(max_examples=120, deadline=None)


def space_of(costs: list[np.ndarray], fixed: tuple[int, int] = (0, 0)) -> SearchSpace:
    """A space with these (params, macs) per option; the last option of each site is dense."""
    ladders = []
    for number, cost in enumerate(costs):
        site = Site(f"layer{number}", "linear", 8, 8)
        names = [("svd", (i + 1,)) for i in range(len(cost) - 1)] + [("dense", ())]
        options = [Option(*name, Cost(params=int(p), macs=int(m)), 0.0, 0.0, 0.0) for name, (p, m) in zip(names, cost, strict=True)]
        ladders.append(Ladder.of(site, options))
    dense = np.sum([cost[-1] for cost in costs], axis=0)
    return SearchSpace(tuple(ladders), Cost(params=int(dense[0]) + fixed[0], macs=int(dense[1]) + fixed[1]))


def every(space: SearchSpace) -> np.ndarray:
    """All configurations, shape: (size, n_sites)."""
    return np.array(list(itertools.product(*(range(n) for n in space.shape))))


@st.composite
def instances(draw: st.DrawFn):
    """(space, values per site): few sites and options, small integers so that ties and zero costs are common."""
    sites = draw(st.integers(1, 4))
    small = draw(st.booleans())
    costs, values = [], []
    for _ in range(sites):
        count = draw(st.integers(2, 5))
        top = 6 if small else 10**7
        part = np.array(draw(st.lists(st.tuples(st.integers(0, top), st.integers(0, top)), min_size=count, max_size=count)))
        part[-1] = part.max(axis=0) + 1  # dense costs most and loses nothing
        level = st.integers(0, 5).map(float) if small else st.floats(0, 1, allow_subnormal=False)
        loss = np.array([*draw(st.lists(level, min_size=count - 1, max_size=count - 1)), 0.0])
        costs.append(part)
        values.append(loss)
    fixed = draw(st.sampled_from([(0, 0), (3, 7)]))
    return space_of(costs, fixed), tuple(values)


def totals(space: SearchSpace, configurations: np.ndarray) -> np.ndarray:
    """Params and MACs of every configuration, shape: (n, 2)."""
    return np.stack([space.cost_tables[name].score(configurations) for name in COSTS], axis=1)


def budgets_between(space: SearchSpace, names: tuple[str, ...], shares: tuple[float, float]) -> dict:
    """Absolute budgets at a share of the way from the feasible minimum to dense, at least 2."""
    budgets = {}
    for name, share in zip(names, shares, strict=False):
        least, dense = space.smallest(name), getattr(space.baseline, name)  # type: ignore[arg-type]
        budgets[name] = max(int(least + share * (dense - least)), 2)
    return budgets


def within(space: SearchSpace, allocation: Allocation, budgets: dict) -> bool:
    cost = space.cost(allocation.indices)
    return cost == allocation.cost and all(getattr(cost, name) <= limit for name, limit in budgets.items())


which = st.sampled_from([("params",), ("macs",), ("params", "macs")])
share = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1)


@SETTINGS
@given(instances(), which, st.tuples(share, share))
def test_additive_is_brute_force(instance, names, shares):
    space, values = instance
    table, budgets = Table(values, "sum", offset=1.5), budgets_between(space, names, shares)
    configurations = every(space)
    cost = totals(space, configurations)
    fits = np.all([cost[:, COSTS.index(name)] <= limit for name, limit in budgets.items()], axis=0)
    if not fits.any():
        with pytest.raises(InfeasibleBudget):
            Additive().allocate(Problem(space, table, budgets))
        return
    allocation = Additive().allocate(Problem(space, table, budgets))
    assert within(space, allocation, budgets)
    assert allocation.value == pytest.approx(table.score(configurations[fits]).min(), rel=1e-9, abs=1e-12)
    assert allocation.value == pytest.approx(float(table.score(allocation.indices)))
    assert allocation.gap == 0.0


@SETTINGS
@given(instances(), which, st.tuples(share, share))
def test_minimax_is_brute_force_and_spends_the_rest_on_the_sum(instance, names, shares):
    space, values = instance
    table, budgets = Table(values, "max"), budgets_between(space, names, shares)
    configurations = every(space)
    cost = totals(space, configurations)
    fits = np.all([cost[:, COSTS.index(name)] <= limit for name, limit in budgets.items()], axis=0)
    if not fits.any():
        with pytest.raises(InfeasibleBudget):
            Minimax().allocate(Problem(space, table, budgets))
        return
    allocation = Minimax().allocate(Problem(space, table, budgets))
    assert within(space, allocation, budgets)
    largest = table.score(configurations[fits])
    assert allocation.value == largest.min()
    sums = Table(values, "sum")
    tied = configurations[fits][largest == largest.min()]
    assert float(sums.score(allocation.indices)) == pytest.approx(sums.score(tied).min(), rel=1e-9, abs=1e-12)


def test_minimax_front_of_two_sites():
    """Values 3, 2, 1 for costs 1, 4, 9 at one, 2 and 0 for 2 and 5 at the other: below 1 the first site has no option."""
    front = minimax_front([np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])], [np.array([1, 4, 9]), np.array([2, 5])])
    assert front.thresholds.tolist() == [3.0, 2.0, 1.0] and front.costs.tolist() == [3, 6, 14]
    assert [front.indices(point).tolist() for point in range(3)] == [[0, 0], [1, 0], [2, 1]]


@SETTINGS
@given(instances())
def test_minimax_front_is_brute_force(instance):
    space, values = instance
    configurations = every(space)
    cost, largest = totals(space, configurations)[:, 0], Table(values, "max").score(configurations)
    front = minimax_front(values, [ladder.column("params").astype(np.int64) for ladder in space.ladders])
    assert (np.diff(front.thresholds) < 0).all() and (np.diff(front.costs) > 0).all()
    expected, best = [], np.inf  # walk the levels upwards; a point wherever the least cost falls
    for level in np.unique(largest):
        least = cost[largest <= level].min()
        if least < best:
            best = least
            expected.append((level, least - space.fixed.params))
    assert list(zip(front.thresholds, front.costs, strict=True))[::-1] == expected
    for point in range(len(front.costs)):
        indices = front.indices(point)
        assert Table(values, "max").score(indices) == front.thresholds[point]
        assert space.cost(indices).params - space.fixed.params == front.costs[point]


@SETTINGS
@given(instances())
def test_hull_is_the_lower_convex_hull_of_all_configurations(instance):
    space, values = instance
    configurations = every(space)
    cost, value = totals(space, configurations)[:, 0] - space.fixed.params, Table(values).score(configurations)
    hull = lagrangian_hull(values, [ladder.column("params").astype(np.int64) for ladder in space.ladders])
    assert (np.diff(hull.costs) > 0).all() and (np.diff(hull.values) < 1e-12).all() and (np.diff(hull.prices) <= 1e-12).all()
    for point in range(len(hull.costs)):
        indices = hull.indices(point)
        assert Table(values).score(indices) == pytest.approx(hull.values[point], abs=1e-9)
        assert space.cost(indices).params - space.fixed.params == hull.costs[point]
    # no configuration lies below the hull, for any price
    assert (value >= np.interp(cost, hull.costs, hull.values) - 1e-9 * max(1.0, float(value.max()))).all()
    assert hull.costs[0] == cost.min() and hull.values[-1] == pytest.approx(value.min(), abs=1e-9)


def test_points_on_a_line_are_no_vertices_of_the_hull():
    hull = lagrangian_hull([np.array([6.0, 4.0, 2.0, 0.0]), np.array([1.0, 0.0])], [np.arange(4), np.array([0, 5])])
    assert hull.costs.tolist() == [0, 3, 8] and hull.prices.tolist() == [2.0, 0.2]


def test_falling_are_the_entries_below_all_earlier_ones_of_their_site():
    site, value = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([3.0, 3.0, 2.0, 2.5, 9.0, 9.0, 9.0])
    assert falling(site, value).tolist() == [True, False, True, False, True, False, True]


def test_hull_of_a_long_cascade_finishes_by_the_chain():
    # a convex curve with one very low point at its end: each pass can only remove the last point of the curve
    cost = np.arange(300)
    value = np.append((1 - cost[:-1] / 1000.0) ** 2 + 5.0, -1e6)
    hull = lagrangian_hull([value, value], [cost, cost])
    assert hull.costs.tolist() == [0, 299, 598]
    assert hull.indices(1).tolist() in ([299, 0], [0, 299])


@SETTINGS
@given(instances(), which, st.tuples(share, share))
def test_uniform_is_the_largest_share_that_fits(instance, names, shares):
    space, values = instance
    table, budgets = Table(values), budgets_between(space, names, shares)
    columns = [COSTS.index(name) for name in names]

    def at(ratio: float) -> np.ndarray:  # the rule, written out
        picked = []
        for ladder, value in zip(space.ladders, values, strict=True):
            costs = np.array([[getattr(o.cost, name) for name in names] for o in ladder.options])
            part = (costs / costs[-1]).max(axis=1)
            fits = [i for i in range(len(part)) if part[i] <= ratio] or [i for i in range(len(part)) if part[i] == part.min()]
            picked.append(min(fits, key=lambda i: (value[i], part[i], costs[i].sum())))
        return np.array(picked)

    ratios = sorted({0.0} | {float(r) for ladder in space.ladders for r in
                     np.max([ladder.column(n) / ladder.column(n)[-1] for n in names], axis=0)})  # fmt: skip
    fitting = [r for r in ratios if (totals(space, at(r)[None])[0, columns] <= [budgets[n] for n in names]).all()]
    if not fitting:
        with pytest.raises(InfeasibleBudget):
            Uniform().allocate(Problem(space, table, budgets))
        return
    allocation = Uniform().allocate(Problem(space, table, budgets))
    assert within(space, allocation, budgets)
    assert allocation.value == pytest.approx(float(table.score(at(fitting[-1]))))
    assert np.isnan(allocation.gap)


@settings(max_examples=40, deadline=None)
@given(instances(), st.sampled_from(COSTS))
def test_fronts_are_monotone_and_reach_both_ends(instance, name):
    space, values = instance
    least, dense = space.smallest(name), getattr(space.baseline, name)
    assume(least >= 2)
    budgets = sorted({least, (least + dense) // 2, (least + 3 * dense) // 4, dense, 2 * dense})
    front = additive_front(space, Table(values), name, budgets)
    assert all(a.value >= b.value - 1e-9 for a, b in itertools.pairwise(front))
    assert getattr(front[0].cost, name) == least
    assert front[-1].value == pytest.approx(0.0, abs=1e-12)  # dense loses nothing and is allowed


def random_instance(sites: int, options: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [rng.random(options) for _ in range(sites)], [rng.integers(1, 10**8, (options, 2)) for _ in range(sites)]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("budgets", [1, 2])
def test_lists_and_fixing_leave_the_optimum_of_the_plain_milp(monkeypatch: pytest.MonkeyPatch, budgets: int, listed: bool) -> None:
    if not listed:
        monkeypatch.setattr("ranksearch.allocators._choice.listed", lambda *given, **options: (None, False))
    values, costs = random_instance(12, 30, seed=budgets)
    costs = [c[:, :budgets] for c in costs]
    limits = (np.sum([np.median(c, axis=0) for c in costs], axis=0) * 0.6).astype(np.int64)
    ours, plain = solve(values, costs, limits), solve(values, costs, limits, fixing=False)
    assert ours is not None and plain is not None
    assert ours.value == pytest.approx(plain.value, rel=1e-9)
    assert ours.remaining == 0 if listed else 0 < ours.remaining < plain.remaining / 2
    assert plain.remaining <= 12 * 30
    assert ours.gap == 0.0 and ours.bound <= ours.value


# random instances of which some have their optimum outside half of the window of reduced costs, before or after the
# dynamic programming has narrowed it: an option that is ruled out too early is missing from the answer
@pytest.mark.parametrize("seed", [11, 19, 33, 81, 109, 113, 145, 155, 197])
def test_reduced_costs_rule_out_nothing_of_the_optimum(seed):
    rng = np.random.default_rng(seed)
    values, costs = [], []
    for _ in range(3):
        cost = rng.integers(0, 1000, (40, 1 + seed // 2 % 2))
        costs.append(cost[np.argsort(cost.sum(axis=1))])
        value = np.sort(rng.integers(0, 1000, 40))[::-1].astype(np.float64)
        value[-1] = 0.0
        values.append(value)
    least, dense = np.sum([c.min(axis=0) for c in costs], axis=0), np.sum([c[-1] for c in costs], axis=0)
    limits = (least + rng.uniform(0.2, 0.7) * (dense - least)).astype(np.int64)
    loss = (values[0][:, None, None] + values[1][:, None] + values[2]).ravel()
    spent = (costs[0][:, None, None] + costs[1][:, None] + costs[2]).reshape(len(loss), -1)
    found = solve(values, costs, limits)
    assert found is not None and found.value == loss[(spent <= limits).all(axis=1)].min() and found.gap == 0.0


def test_large_costs_are_kept_to_the_last_integer():
    # an optimum that fits exactly; one unit less excludes it, far below any floating-point solver's tolerance
    values, costs = random_instance(10, 12, seed=5)
    costs = [c[:, :1] * 97 + 1 for c in costs]
    limit = np.array([int(sum(np.median(c) for c in costs)) // 2])
    best = solve(values, costs, limit)
    assert best is not None
    spent = sum(c[i, 0] for c, i in zip(costs, best.indices, strict=True))
    exact, less = solve(values, costs, np.array([spent])), solve(values, costs, np.array([spent - 1]))
    assert exact is not None and less is not None
    assert exact.value == best.value and less.value > best.value
    assert sum(c[i, 0] for c, i in zip(costs, less.indices, strict=True)) < spent


def test_what_is_no_site_is_kept_to_the_last_integer():
    fixed = 2**60 + 1  # no float64
    space = space_of([np.array([[1, 1], [3, 3]])], fixed=(fixed, fixed))
    problem = Problem(space, Table((np.array([1.0, 0.0]),)), {"params": 1.0, "macs": 1.0})
    assert (problem.limits - problem.room).tolist() == [fixed, fixed]


def test_counted_amounts_are_said_and_kept_to_the_last_digit():
    space = space_of([np.array([[2**60 + 1, 5], [2**61, 9]])])
    problem = Problem(space, Table((np.zeros(2),), "sum"), {"params": 1})
    assert problem.costs[0][:, 0].tolist() == [2**60 + 1, 2**61]
    assert problem.text(0, 1_234_567, bare=True).startswith("1,234,567 (")


def test_two_budgets_that_exclude_each_other_name_what_each_allows():
    costs = [np.array([[1, 9], [9, 1], [10, 10]])] * 2
    space, table = space_of(costs), Table((np.array([1.0, 1.0, 0.0]),) * 2)
    for allocator, given_table in ((Additive(), table), (Minimax(), Table(table.values, "max"))):
        with pytest.raises(InfeasibleBudget, match=r"smallest params within the other budgets is 18 \(0\.9000 of dense\).*macs .* is 18"):
            allocator.allocate(Problem(space, given_table, {"params": 9, "macs": 9}))
        assert allocator.allocate(Problem(space, given_table, {"params": 10, "macs": 10})).cost.params == 10


def test_a_failure_inside_highs_leaves_the_best_known_and_an_honest_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = [np.sort(rng.random(30))[::-1].copy() for _ in range(12)]
    costs = [np.sort(rng.integers(1, 10_000, 30))[:, None] for _ in range(12)]
    for limit in range(30_000, 60_000, 1_000):
        limits = np.array([limit])
        exact = solve(values, costs, limits)
        with monkeypatch.context() as patch:

            def failing(*args, **kwargs):
                raise ValueError("vector::reserve")

            patch.setattr("ranksearch.allocators._milp.milp", failing)
            patch.setattr("ranksearch.allocators._choice.listed", lambda *given, **options: (None, False))
            found = solve(values, costs, limits)
        assert exact is not None and found is not None
        assert sum(int(c[i, 0]) for c, i in zip(costs, found.indices, strict=True)) <= limit
        assert found.bound <= exact.value + 1e-12 and found.value >= exact.value - 1e-12
        if found.remaining:  # HiGHS was asked
            assert found.bound < found.value
            break
    else:
        raise AssertionError("no instance needed HiGHS")
