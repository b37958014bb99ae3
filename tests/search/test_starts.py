"""Where a search starts: optima of proxies, each by the solver of its table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from search_cases import small_space

from ranksearch.allocators import Additive, Allocation, Allocator, Minimax, Problem, exact_for
from ranksearch.allocators.uniform import Uniform
from ranksearch.proxies import Energy, Frobenius, OperatorNorm, TableProxy
from ranksearch.search.run import within
from ranksearch.search.starts import OF_LIMIT, SHARES, Start, optima
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space(max_options=12)


class Recording(Allocator):
    """A user's own rule: the exact optimum, but it says what it was asked."""

    name = "recording"
    reduction = "sum"

    def __init__(self) -> None:
        self.asked: list[Problem] = []

    def allocate(self, problem: Problem) -> Allocation:
        self.asked.append(problem)
        return Additive().allocate(problem)


def parts(starts: Sequence[Start]) -> list[tuple[str, str, str]]:
    """(allocator, proxy, cost) of each start."""
    return [(a, p, c.split("<=")[0]) for a, p, c in (s.origin.split(":") for s in starts)]


def test_starts_are_distinct_exact_optima_within_their_budgets(space: SearchSpace) -> None:
    starts = list(optima(space, [Frobenius(), OperatorNorm()], {}))
    assert len({s.candidate.configuration for s in starts}) == len(starts) > len(SHARES)
    for start in starts:
        allocator, name, budget = start.origin.split(":")
        cost, share = budget.split("<=")
        proxy, solver = (Frobenius(), Additive()) if name == "frobenius" else (OperatorNorm(), Minimax())
        best = solver.allocate(Problem(space, proxy.table(space), {cost: float(share)}))
        assert allocator == solver.name
        assert proxy.table(space).score(start.candidate.indices) == pytest.approx(best.value, rel=1e-9)
        assert start.candidate.cost[cost] <= space.limit(cost, float(share))


def test_limits_bind_every_start(space: SearchSpace) -> None:
    limit = space.limit("macs", 0.45)
    starts = list(optima(space, [Frobenius()], {"macs": limit}))
    assert starts and all(s.candidate.cost.macs <= limit for s in starts)


def test_an_allocator_of_the_users_own_solves_the_tables_that_it_takes(space: SearchSpace) -> None:
    mine = Recording()
    starts = list(optima(space, [Frobenius(), OperatorNorm()], {}, allocator=mine, shares=(0.5, 0.3)))
    assert {(a, p) for a, p, _ in parts(starts)} == {("recording", "frobenius"), ("minimax", "operator_norm")}
    assert len(mine.asked) == 4 and all(problem.table.reduction == "sum" for problem in mine.asked)
    both = list(optima(space, [Frobenius(), OperatorNorm()], {}, allocator=Uniform(), shares=(0.5, 0.3)))
    assert {a for a, _, _ in parts(both)} == {"uniform"}
    assert (exact_for("sum").name, exact_for("max").name) == ("additive", "minimax")


def test_budgets_at_which_a_proxy_is_poor_come_last(space: SearchSpace) -> None:
    class Odd(TableProxy):
        name = "odd"

        def table(self, space: SearchSpace) -> Table:
            return Table(tuple(3 * values for values in Frobenius().table(space).values), "sum")

        def poor_budgets(self, space: SearchSpace) -> tuple[str, ...]:
            return ("params",)

    mine, largest = Recording(), float(Frobenius().table(space).values[0].max())
    list(optima(space, [Odd(), Frobenius()], {}, allocator=mine, shares=(0.5,)))
    asked = [("odd" if float(p.table.values[0].max()) > largest else "frobenius", *p.budgets) for p in mine.asked]
    assert asked == [("odd", "macs"), ("frobenius", "params"), ("frobenius", "macs"), ("odd", "params")]
    assert space.metric == "weight" and tuple(Energy().poor_budgets(space)) == ("macs",)


def test_shares_out_of_reach_are_left_out(space: SearchSpace) -> None:
    least = space.smallest("macs") / space.baseline.macs
    starts = list(optima(space, [Frobenius()], {}, shares=(least + 0.05, least / 2)))
    assert starts and all(s.candidate.cost.macs >= space.smallest("macs") for s in starts)
    assert not any(s.origin.endswith(f"macs<={least / 2:g}") for s in starts)


def test_a_start_is_solved_when_it_is_asked_for(space: SearchSpace) -> None:
    mine = Recording()
    starts = optima(space, [Frobenius()], {}, allocator=mine)
    assert not mine.asked
    next(starts)
    assert len(mine.asked) == 1


def test_starts_lie_at_shares_of_the_limit_nearest_first(space: SearchSpace) -> None:
    fine, limit = small_space(max_options=200), 0.95
    amount = fine.limit("params", limit)
    starts = list(optima(fine, [Frobenius()], {"params": amount}))
    assert [s.origin for s in starts[:2]] == ["additive:frobenius:params<=0.95", "additive:frobenius:params<=0.9025"]
    for start, share in zip(starts, OF_LIMIT, strict=False):  # the layers are small, so a unit of rank is some percent
        assert (share - 0.05) * amount < start.candidate.cost.params <= share * amount
    costs = [cost for _, _, cost in parts(starts)]
    assert costs == sorted(costs, reverse=True) and set(costs) == {"params", "macs"}, "of the limited cost first"


def test_what_highs_has_no_time_for_is_solved_by_the_hull_and_repaired(space: SearchSpace) -> None:
    """Without time for HiGHS starts are within their budgets all the same, and nearly as good."""
    fine = small_space(max_options=200)
    table = Frobenius().table(fine)
    limits = {"params": fine.limit("params", 0.6), "macs": fine.limit("macs", 0.55)}
    for start in optima(fine, [Frobenius()], limits, seconds=1e-3):
        cost, share = start.origin.split(":")[2].split("<=")
        budgets = {**limits, cost: fine.limit(cost, float(share))}
        assert all(start.candidate.cost[name] <= limit for name, limit in budgets.items())
        best = Additive().allocate(Problem(fine, table, {name: fine.budget(name, b) for name, b in budgets.items()}))
        assert best.value <= table.score(start.candidate.indices) * (1 + 1e-9) <= 1.2 * best.value * (1 + 1e-9)


def test_a_limit_is_within_itself_and_one_below_is_not(space: SearchSpace) -> None:
    for indices in (space.dense, space.dense * 0):
        spent = space.cost(indices)
        assert within(space, dict(spent), indices)
        assert not any(within(space, {**spent, name: amount - 1}, indices) for name, amount in spent.items())


def test_the_exact_solver_of_a_table_is_the_one_of_its_reduction() -> None:
    assert (exact_for("sum").name, exact_for("max").name) == ("additive", "minimax")
