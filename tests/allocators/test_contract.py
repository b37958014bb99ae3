"""What every allocator promises, for each one in the table, on the space of a real network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.allocators import ALLOCATORS, Allocator, Problem
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.sites import find_sites
from ranksearch.space import SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table

TYPES = [d for d in DECOMPOSITIONS if d.name in ("dense", "svd", "spatial", "tucker2")]


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return build_space(Spectra(net, find_sites(net, torch.zeros(1, 3, 12, 12)), TYPES))


def table_for(allocator: Allocator, space: SearchSpace) -> Table:
    reduction = allocator.reduction or "sum"
    return Table(tuple(np.square(ladder.column("frobenius")) for ladder in space.ladders), reduction)


@pytest.fixture(params=ALLOCATORS, ids=lambda a: a.name)
def allocator(request) -> Allocator:
    return request.param


@pytest.mark.parametrize("budgets", [{"params": 0.5}, {"macs": 0.4}, {"params": 0.6, "macs": 0.5}, {"params": 1000}])
def test_budgets_hold_and_the_answer_describes_itself(allocator, space, budgets):
    table = table_for(allocator, space)
    allocation = allocator.allocate(Problem(space, table, budgets))
    assert allocation.indices.dtype == np.int64 and allocation.indices.shape == space.dense.shape
    assert allocation.cost == space.cost(allocation.indices)
    assert allocation.value == float(table.score(allocation.indices))
    for name, value in budgets.items():
        assert getattr(allocation.cost, name) <= (value * getattr(space.baseline, name) if value <= 1 else value)
    assert allocation.gap == 0.0 or np.isnan(allocation.gap)


def test_the_same_problem_has_the_same_answer_and_is_left_alone(allocator, space):
    table = table_for(allocator, space)
    before = [values.copy() for values in table.values]
    problem = Problem(space, table, {"params": 0.5})
    first, second = allocator.allocate(problem), allocator.allocate(problem)
    assert (first.indices == second.indices).all()
    assert all((a == b).all() for a, b in zip(before, table.values, strict=True))


def test_at_the_dense_cost_nothing_is_lost(allocator, space):
    allocation = allocator.allocate(Problem(space, table_for(allocator, space), {"params": 1.0, "macs": 1.0}))
    assert allocation.value == 0.0


def test_the_least_cost_is_met_exactly(allocator, space):
    least = space.smallest("params")
    assert allocator.allocate(Problem(space, table_for(allocator, space), {"params": least})).cost.params == least


def test_below_the_least_cost_the_error_names_it(allocator, space):
    least = space.smallest("params")
    share = least / space.baseline.params
    with pytest.raises(InfeasibleBudget, match=rf"{least:,} \({share:.4f} of dense\)"):
        allocator.allocate(Problem(space, table_for(allocator, space), {"params": least - 1}))


def test_more_budget_never_loses_more(allocator, space):
    table = table_for(allocator, space)
    values = [allocator.allocate(Problem(space, table, {"params": b})).value for b in (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)]
    assert values == sorted(values, reverse=True)


def test_uniform_is_never_better_than_the_exact_one(space):
    table = table_for(ALLOCATORS[0], space)
    by_name = {a.name: a for a in ALLOCATORS}
    for budget in (0.3, 0.5, 0.7):
        exact, rule = (by_name[n].allocate(Problem(space, table, {"params": budget})).value for n in ("additive", "uniform"))
        assert exact < rule


def test_the_wrong_reduction_is_refused_with_the_right_allocator_named(allocator, space):
    if allocator.reduction is None:
        return
    wrong = Table(table_for(allocator, space).values, "max" if allocator.reduction == "sum" else "sum")
    other = "minimax" if wrong.reduction == "max" else "additive"
    with pytest.raises(InvalidArgument, match=f"reduction='{wrong.reduction}'.*{other}"):
        allocator.allocate(Problem(space, wrong, {"params": 0.5}))


@pytest.mark.parametrize(
    ("budgets", "message"),
    [({}, "empty"), ({"latency": 0.5}, "not a cost"), ({"params": 0}, "positive"), ({"macs": np.nan}, "positive"), ({"macs": -1}, "posit")],
)
def test_impossible_budgets_are_refused(space, budgets, message):
    with pytest.raises(InvalidArgument, match=message):
        Problem(space, table_for(ALLOCATORS[0], space), budgets)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(space, bad):
    values = [v.copy() for v in table_for(ALLOCATORS[0], space).values]
    values[1][2] = bad
    with pytest.raises(InvalidArgument, match=f"option 2 of site '3' is {bad}"):
        Problem(space, Table(tuple(values)), {"params": 0.5})


def test_a_table_of_another_space_is_refused(space):
    with pytest.raises(InvalidArgument, match="does not fit"):
        Problem(space, Table((np.zeros(3),)), {"params": 0.5})


def test_names_are_distinct():
    assert len({a.name for a in ALLOCATORS}) == len(ALLOCATORS)
