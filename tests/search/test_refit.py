"""Measure, refit, resolve, on losses of which the best configuration is known by brute force."""

from __future__ import annotations

from itertools import count, product
from types import SimpleNamespace

import numpy as np
import pytest
from search_cases import small_space

from ranksearch.allocators import Additive, Problem
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.proxies import Energy
from ranksearch.search import refit as module
from ranksearch.search.refit import ANCHOR_NOISE, _Measured, refit
from ranksearch.space import SearchSpace
from ranksearch.surrogate import curves


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space(max_options=9)


class Loss:
    """A loss whose sites cost otherwise than their errors say, saturating; counts how often it is asked."""

    def __init__(self, space: SearchSpace, weights: tuple[float, ...] = (8.0, 0.1, 1.0)) -> None:
        self.columns = [w * np.square(ladder.column("frobenius")) ** 1.3 for w, ladder in zip(weights, space.ladders, strict=True)]
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, indices: np.ndarray) -> float:
        self.asked.append(tuple(indices.tolist()))
        total = sum(float(column[i]) for column, i in zip(self.columns, indices, strict=True))
        return 0.7 + total / (1 + total / 3)

    def least(self, space: SearchSpace, cost: str, share: float) -> float:
        """The least within a budget."""
        everything = (np.array(row) for row in product(*(range(n) for n in space.shape)))
        copy = Loss.__new__(Loss)
        copy.columns, copy.asked = self.columns, []
        return min(copy(row) for row in everything if space.cost(row)[cost] <= space.limit(cost, share))


@pytest.mark.parametrize("share", [0.35, 0.6])
@pytest.mark.parametrize("anchors", [False, True])
def test_the_optimum_is_found_that_the_errors_do_not_know(space: SearchSpace, share: float, anchors: bool) -> None:
    loss = Loss(space)
    known = curves(space, Energy().table(space))
    found = refit(space, known, loss, {"params": share}, anchors=anchors)
    least = loss.least(space, "params", share)
    assert space.cost(found.indices)["params"] <= space.limit("params", share)
    assert found.value == pytest.approx(Loss(space)(found.indices)) and found.value < found.start
    assert found.value - 0.7 <= 1.02 * (least - 0.7)
    assert len(set(loss.asked)) == len(loss.asked) == found.measured <= 3 + 3 * 8 + (len(space.shape) if anchors else 0)


@pytest.mark.parametrize("anchors", [False, True])
def test_no_more_is_measured_than_it_says(space: SearchSpace, monkeypatch: pytest.MonkeyPatch, anchors: bool) -> None:
    """A solver with another answer every time; two rounds of five."""
    numbers = count(1)

    class Inventive:
        def __init__(self, seconds: float) -> None:
            pass

        def allocate(self, problem: Problem) -> SimpleNamespace:
            return SimpleNamespace(indices=np.array(np.unravel_index(next(numbers), space.shape)))

    monkeypatch.setattr(module, "Additive", Inventive)
    loss, known = Loss(space), [np.array([5, 5, 5]), np.array([5, 5, 6])]
    found = refit(space, curves(space, Energy().table(space)), loss, {"params": 1.0}, known=known, rounds=2, each=5, anchors=anchors)
    assert found.measured == len(set(loss.asked)) == len(loss.asked) == 3 + 2 * 5 + len(known) + (3 if anchors else 0)


def test_what_is_observed_is_what_every_finite_measurement_rises_above_the_dense_network(space: SearchSpace) -> None:
    values = {(0, 0, 0): 5.0, (1, 0, 0): float("inf"), (0, 1, 0): 3.5, tuple(space.dense.tolist()): 2.0}
    seen = _Measured(space, lambda indices: values[tuple(indices.tolist())])
    assert seen.add(np.array([0, 0, 0])) == 5.0 and seen.add(np.array([1, 0, 0])) == float("inf")
    assert seen.add(np.array([0, 1, 0]), noise=ANCHOR_NOISE) == 3.5
    values[0, 0, 0] = 9.0
    assert seen.add(np.array([0, 0, 0])) == 5.0, "nothing is measured twice"
    found = seen.observations()
    assert found.indices.tolist() == [[0, 0, 0], [0, 1, 0]] and found.rises.tolist() == [3.0, 1.5]
    assert found.noise is not None and found.noise.tolist() == [1.0, ANCHOR_NOISE]


def test_ranked_is_what_is_within_the_budgets_to_the_last_of_them_the_least_measured_first(space: SearchSpace) -> None:
    values = {(1, 1, 1): 3.0, (0, 0, 0): 4.0, (2, 1, 1): 1.0, tuple(space.dense.tolist()): 0.0}
    seen = _Measured(space, lambda indices: values[tuple(indices.tolist())])
    for indices in list(values)[:3]:
        seen.add(np.array(indices))
    limit = space.cost(np.array([1, 1, 1]))["params"]
    assert space.cost(np.array([2, 1, 1]))["params"] > limit
    problem = Problem(space, Energy().table(space), {"params": limit})
    assert seen.ranked(problem).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_it_is_never_worse_than_what_was_known(space: SearchSpace) -> None:
    loss = Loss(space, (0.01, 5.0, 0.3))
    best = Additive().allocate(Problem(space, Energy().table(space), {"macs": 0.5})).indices
    within = [row for row in space.sample(400, 0) if space.cost(row)["macs"] <= space.limit("macs", 0.5)]
    lucky = min(within, key=Loss(space, (0.01, 5.0, 0.3)))
    dear = space.dense.copy()  # over the budget: learned from, never the answer
    found = refit(space, curves(space, Energy().table(space)), loss, {"macs": 0.5}, known=[lucky, best, dear - 1], rounds=1, each=1)
    assert found.value <= min(loss(lucky), loss(best))
    assert space.cost(found.indices)["macs"] <= space.limit("macs", 0.5)


def test_the_same_seed_finds_the_same(space: SearchSpace) -> None:
    known = curves(space, Energy().table(space))
    asked = []
    for seed in (0, 0, 1):
        loss = Loss(space)
        refit(space, known, loss, {"params": 0.4}, rounds=2, each=4, seed=seed)
        asked.append(loss.asked)
    assert asked[0] == asked[1]


def test_what_measures_as_no_number_is_left_out(space: SearchSpace) -> None:
    loss = Loss(space)

    def broken(indices: np.ndarray) -> float:
        return float("inf") if sum(indices) % 3 == 0 and (indices != space.dense).any() else loss(indices)

    found = refit(space, curves(space, Energy().table(space)), broken, {"params": 0.5})
    assert np.isfinite(found.value)


def test_bad_input_is_refused(space: SearchSpace) -> None:
    known = curves(space, Energy().table(space))
    for wrong in ({"rounds": 0}, {"each": 0}):
        with pytest.raises(InvalidArgument, match=f"{next(iter(wrong))}=0"):
            refit(space, known, Loss(space), {"params": 0.5}, **wrong)
    with pytest.raises(InfeasibleBudget, match="smallest"):
        refit(space, known, Loss(space), {"params": 1e-6})
