"""The portfolio that a search starts from: the fronts of every rule and proxy, measured cheaply, of which only the best are evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ranksearch.allocators import ALLOCATORS, Allocator
from ranksearch.errors import InvalidArgument
from ranksearch.proxies import Frobenius, TableProxy
from ranksearch.results.pareto import spread_front
from ranksearch.search.events import Announced
from ranksearch.search.starts import Start, optima
from ranksearch.sites import Amount
from ranksearch.space import Candidate, SearchSpace

# of the table of allocators those that are exact for a proxy's table, and ALDS, whose answers without the errors of groups are those of one
# of them or none better
EXACT = ("additive", "minimax", "alds", "alds_heuristic")
PUBLISHED: tuple[Allocator, ...] = tuple(allocator for allocator in ALLOCATORS if allocator.name not in EXACT)


@dataclass(frozen=True)
class Portfolio:
    """What is measured before the first evaluations, and how.

    Attributes:
        rules: published ways of choosing types and ranks, beside the exact optima of proxies; they take relative errors.
        measure: loss of option indices without training, on a calibration batch, to be minimised; what raises or is not finite is no start,
            and neither is it an evaluation: the search will say of the dense network whether anything can be measured at all.
        proxies: each makes a further proxy, whose optima are measured beside those that the search is given. They may measure networks:
            one that raises has no say.
    """

    rules: Sequence[Allocator]
    measure: Callable[[np.ndarray], float]
    proxies: Sequence[Callable[[], TableProxy]] = ()

    def measured(
        self, space: SearchSpace, proxies: Sequence[TableProxy], limits: Mapping[str, Amount], *, allocator: Allocator | None = None,
        most: int | None = None, tell: Callable[[Announced], None] = lambda stage: None,
    ) -> list[tuple[Start, float]]:  # fmt: skip
        """The distinct optima of the proxies and answers of the rules within the limits, each with how much more it loses than the dense
        network; none where that cannot be measured.

        Args:
            most: how many are measured, proxies and rules taking turns; None: all.
        """
        parts = [optima(space, [proxy], limits, allocator=allocator) for proxy in proxies]
        parts += [_unless(InvalidArgument, optima(space, [Frobenius()], limits, allocator=rule)) for rule in self.rules]
        parts += [_unless(Exception, _made(make, space, limits, allocator)) for make in self.proxies]
        distinct = list(islice(_distinct(_turns(parts)), most))
        tell(Announced(f"measuring {len(distinct)} answers of rules and proxies without training"))
        dense = self._loss(space.candidate(space.dense))
        return [(start, rise) for start in distinct if math.isfinite(rise := self._loss(start.candidate) - dense)]

    def _loss(self, candidate: Candidate) -> float:
        assert candidate.indices is not None  # an optimum lies in the space
        try:
            return float(self.measure(candidate.indices))
        except Exception:  # whatever a network raises: were it evaluated, the store would have the reason
            return math.inf


def cheap_front(measured: Sequence[tuple[Start, float]], costs: Sequence[str], count: int) -> list[Start]:
    """At most ``count`` of the starts that no other beats in what it loses and costs, those first that add most to the front.

    Args:
        costs: that are compared beside the loss.
    """
    rows = [[rise, *(float(start.candidate.cost[name]) for name in costs)] for start, rise in measured]
    return [measured[i][0] for i in spread_front(rows, count)]


def _made(
    make: Callable[[], TableProxy], space: SearchSpace, limits: Mapping[str, Amount], allocator: Allocator | None
) -> Iterator[Start]:
    """The optima of a proxy that is made when the first is asked for."""
    yield from optima(space, [make()], limits, allocator=allocator)


def _unless(error: type[Exception], starts: Iterator[Start]) -> Iterator[Start]:
    """The starts up to an error: a rule may take no such budgets, as STN, which bounds storage alone; a measured proxy may meet a network
    that raises, of which the store will have the reason when it is evaluated."""
    try:
        yield from starts
    except error:
        return


def _turns(parts: Iterable[Iterator[Start]]) -> Iterator[Start]:
    """One of each in turn, until all are at their end."""
    left = list(parts)
    while left:
        for part in tuple(left):
            if (start := next(part, None)) is None:
                left.remove(part)
            else:
                yield start


def _distinct(starts: Iterator[Start]) -> Iterator[Start]:
    seen: set[str] = set()
    for start in starts:
        if (id := start.candidate.configuration.id) not in seen:
            seen.add(id)
            yield start
