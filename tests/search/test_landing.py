"""Costs that are measured where the best configurations land, with a cost that writes down what it was asked to measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from search_cases import small_space

from ranksearch.costs import COSTS, CostModel
from ranksearch.proxies import Energy, Frobenius
from ranksearch.search.landing import FRONT, fronts, landed, refining
from ranksearch.search.starts import optima
from ranksearch.space import SearchSpace


@dataclass(frozen=True)
class Inferred(CostModel):
    """Knows what it has measured; ``asked`` is every question, in order."""

    name: str = "seconds"
    known: frozenset = frozenset()
    asked: list = field(default_factory=list, compare=False)
    label, unit = "seconds", "s"

    @property
    def refines(self) -> bool:
        return True

    def refined(self, chosen: Any) -> CostModel:
        self.asked.append([sorted(network) for network in chosen])
        options = set(chain(*chosen))
        return self if self.known >= options else Inferred(self.name, self.known | options, self.asked)

    def options(self, layer: Any) -> np.ndarray:
        raise AssertionError("no ladder is built of it here")

    def rest(self, network: Any) -> int:
        return 0


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space()


def spectra_of(space: SearchSpace) -> Any:
    return SimpleNamespace(sites={ladder.site.name: ladder.site.name for ladder in space.ladders}, decomposition=str)


def choices(space: SearchSpace, *rows: tuple[int, ...]) -> list[list[tuple[str, str, tuple[int, ...]]]]:
    return [sorted(space.configuration(np.array(row)).choices) for row in rows]


def test_what_is_factorized_is_measured_once_until_nothing_new_is_landed_on(space: SearchSpace) -> None:
    last = len(space.ladders[0]) - 1
    rounds = iter([[(0, 1, last), (0, 1, last - 1)], [(last, 1, last)], [(2, 2, 2)]])
    cost, told, built = Inferred(), [], []

    def build(counts: Any) -> SearchSpace:
        built.append(counts)
        return space

    counts, found = landed(
        [*COSTS, cost], spectra_of(space), build, lambda space: map(np.array, next(rounds)), tell=told.append
    )  # fmt: skip
    assert found is space and cost.asked == [choices(space, (0, 1, last), (0, 1, last - 1)), choices(space, (last, 1, last))]
    assert counts[:-1] == tuple(COSTS) and counts[-1] == Inferred(known=frozenset(chain(*cost.asked[0])))
    assert built == [(*COSTS, cost), counts] and len(told) == 1 and "(round 1 of at most 4)" in told[0]


@pytest.mark.parametrize(("rounds", "kept", "asked"), [(2, (), 2), (0, (), 0), (3, ("seconds",), 0)])
def test_rounds_end_and_costs_that_are_kept_are_not_asked(space: SearchSpace, rounds: int, kept: tuple[str, ...], asked: int) -> None:
    cost, rows = Inferred(), iter([(0, 0, 0), (1, 1, 1), (2, 2, 2)])
    landed([cost], spectra_of(space), lambda counts: space, lambda space: [np.array(next(rows))], rounds=rounds, kept=kept)
    assert len(cost.asked) == asked


def test_of_several_costs_those_are_asked_that_refine_and_are_not_kept(space: SearchSpace) -> None:
    both = [Inferred("one"), Inferred("two")]
    assert refining([*COSTS, *both]) == ["one", "two"] and refining([*COSTS, *both], ["one"]) == ["two"] and refining(COSTS) == []
    landed(both, spectra_of(space), lambda counts: space, lambda space: [np.zeros(3, dtype=np.int64)], rounds=1, kept=["one"])
    assert both[0].asked == [] and len(both[1].asked) == 1


def test_fronts_are_the_optima_within_shares_of_the_named_costs(space: SearchSpace) -> None:
    found = [tuple(indices.tolist()) for indices in fronts(["macs"])(space)]
    starts = optima(space, [Energy(), Frobenius()], {}, shares=FRONT, costs=["macs"])
    assert found == [tuple(start.candidate.indices.tolist()) for start in starts] and len(found) > len(FRONT) // 2
