"""The portfolio of a search: every rule's and proxy's answers, measured cheaply, of which the front is evaluated."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from search_cases import InFlight, small_space, worth

from ranksearch.allocators import Allocation, Allocator, Problem
from ranksearch.allocators.uniform import Uniform
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.proxies import Frobenius, free_proxies
from ranksearch.samplers import Random
from ranksearch.search.events import Announced
from ranksearch.search.portfolio import PUBLISHED, Portfolio, cheap_front
from ranksearch.search.run import Objectives, SearchRun
from ranksearch.search.starts import optima
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table
from ranksearch.store import Store


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space(max_options=9)


def loss(space: SearchSpace):
    """What the third layer costs counts most, which no rule knows."""
    columns = [w * np.square(ladder.column("frobenius")) for w, ladder in zip((0.1, 1.0, 6.0), space.ladders, strict=True)]
    return lambda indices: float(sum(column[i] for column, i in zip(columns, indices, strict=True)))


def test_every_rule_has_its_say_once(space: SearchSpace) -> None:
    told: list[Announced] = []
    measured = Portfolio(PUBLISHED, lambda indices: 3.0 + loss(space)(indices)).measured(space, free_proxies(), {}, tell=told.append)
    keys = [start.candidate.configuration.id for start, _ in measured]
    assert len(set(keys)) == len(keys) and told == [Announced(f"measuring {len(keys)} answers of rules and proxies without training")]
    for start, value in measured:
        assert value == pytest.approx(loss(space)(start.candidate.indices))  # what it loses more than the dense network, which loses 3
    rules = {start.origin.split(":")[0] for start, _ in measured}
    assert {"additive", "balf", "uniform"} <= rules
    everyone = [s for p in free_proxies() for s in optima(space, [p], {})]
    everyone += [s for rule in PUBLISHED if rule.name != "stn_storage" for s in optima(space, [Frobenius()], {}, allocator=rule)]
    assert {s.candidate.configuration.id for s in everyone} <= set(keys)


def test_what_is_measured_is_what_each_loses_more_than_the_dense_network_loses() -> None:
    space = small_space(2)

    def total(indices: np.ndarray) -> float:
        return 3.0 if (indices == space.dense).all() else float(indices.sum())

    measured = Portfolio((), total).measured(space, [Frobenius()], {})
    assert measured and all(rise == total(start.candidate.indices) - 3.0 for start, rise in measured)
    assert Portfolio((), lambda indices: float("inf")).measured(space, [Frobenius()], {}) == []


def test_what_goes_on_is_the_front_and_is_never_below_a_rule(space: SearchSpace) -> None:
    measured = Portfolio(PUBLISHED, loss(space)).measured(space, free_proxies(), {})
    costs = ("params", "macs")
    front = cheap_front(measured, costs, 1000)
    rows = {id(s): (v, *(s.candidate.cost[c] for c in costs)) for s, v in measured}
    chosen = [rows[id(s)] for s in front]
    assert 2 < len(front) < len(measured)
    for a, b in itertools.permutations(chosen, 2):
        assert not all(x <= y for x, y in zip(a, b, strict=True))
    for row in rows.values():  # whatever a rule answers, something that goes on is as good and costs no more
        assert any(all(x <= y for x, y in zip(one, row, strict=True)) for one in chosen)
    few = cheap_front(measured, costs, 2)
    assert [s.origin for s in few] == [s.origin for s in front[:2]]


def test_limits_bind_and_turns_are_taken(space: SearchSpace) -> None:
    limits = {"params": space.limit("params", 0.5)}
    measured = Portfolio((Uniform(),), loss(space)).measured(space, [Frobenius()], limits, most=4)
    assert len(measured) == 4 and all(s.candidate.cost["params"] <= limits["params"] for s, _ in measured)
    assert {s.origin.split(":")[0] for s, _ in measured} == {"additive", "uniform"}


def test_rules_and_networks_that_fail_are_left_out(space: SearchSpace) -> None:
    class Refusing(Allocator):
        name = "refusing"

        def allocate(self, problem: Problem) -> Allocation:
            raise InvalidArgument("no such budget")

    def fragile(indices: np.ndarray) -> float:
        if indices[0] == 0:
            raise RuntimeError("no such layer")
        return float("nan") if indices[1] == 0 else loss(space)(indices)

    measured = Portfolio((Refusing(),), fragile).measured(space, [Frobenius()], {})
    assert measured and all(s.candidate.indices[0] and s.candidate.indices[1] for s, _ in measured)
    assert cheap_front([], ("params",), 5) == []


def test_measured_proxies_have_their_say_and_those_that_fail_none(space: SearchSpace) -> None:
    class Failing(Frobenius):
        name = "failing"

        def table(self, space: SearchSpace) -> Table:
            raise RuntimeError("a network raises")

    class Measured(Frobenius):
        name = "measured"

        def table(self, space: SearchSpace) -> Table:
            columns = (w * np.square(l.column("frobenius")) for w, l in zip((0.1, 1.0, 6.0), space.ladders, strict=True))
            return Table(tuple(columns), "sum")

    measured = Portfolio((), loss(space), proxies=(Failing, Measured)).measured(space, [Frobenius()], {})
    assert {s.origin.split(":")[1] for s, _ in measured} == {"frobenius", "measured"}
    front = cheap_front(measured, ("params", "macs"), 1000)  # what knows the loss is on it wherever it was asked
    assert sum(s.origin.split(":")[1] == "measured" for s in front) > len(front) / 2


@pytest.mark.parametrize(
    ("names", "limited", "costs"),
    [(("accuracy", "params"), "params", ["params"]), (("accuracy",), "params", ["params"]), (("accuracy",), None, ["macs"])],
)  # fmt: skip
def test_starts_spread_over_costs_that_matter(space: SearchSpace, names: tuple[str, ...], limited: str | None, costs: list[str]) -> None:
    """Objectives and what is bounded; the leading cost where neither is one."""
    objectives = Objectives(names, {"accuracy": "max", "macs": "min", "params": "min"}, space.baseline)
    limits = {limited: space.limit(limited, 0.9)} if limited else {}
    search = SearchRun(
        space, objectives, Fidelity(), 0, 12, Random(), free_proxies(), None, limits, lambda: worth, portfolio=Portfolio((), loss(space))
    )  # fmt: skip
    measured = search._measured(lambda event: None, 12, 6)
    front = [start.candidate.configuration.id for start in cheap_front(measured, costs, 6)]
    assert [start.candidate.configuration.id for start in search._starts((), measured, 12)] == front and len(front) > 1
    assert space.leading_cost == "macs" and search._measured(lambda event: None, 12, 7) == [], "the dense network and six starts are known"


def test_a_search_begins_with_the_front_of_its_portfolio(space: SearchSpace, tmp_path) -> None:
    objectives = Objectives(("accuracy", "macs"), {"accuracy": "max", "macs": "min", "params": "min"}, space.baseline)
    portfolio = Portfolio(PUBLISHED, loss(space))
    search = SearchRun(
        space, objectives, Fidelity(), 0, 12, Random(), free_proxies(), None, {}, lambda: worth, portfolio=portfolio
    )  # fmt: skip
    runner, told = InFlight(2), []
    with Store.open(tmp_path / "s.db", study="small", fingerprint="f", create=True, write=True) as store:
        search.run(store, runner, told.append)
    wanted = cheap_front(portfolio.measured(space, free_proxies(), {}, most=60), ("macs",), 6)
    origins = [request.origin for request in runner.sent]
    assert origins[0] == "dense" and origins[1 : 1 + len(wanted)] == [s.origin for s in wanted]
    assert any("answers of rules" in e.text for e in told if isinstance(e, Announced))
    told.clear()
    with Store.open(tmp_path / "s.db", study="small", fingerprint="f", write=True) as store:
        dataclasses.replace(search, trials=14).run(store, runner, told.append)
    assert len(runner.sent) == 14 and not any("answers of rules" in e.text for e in told if isinstance(e, Announced))
