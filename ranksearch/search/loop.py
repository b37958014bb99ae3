"""The search loop: exact proxy fronts first, then a sampler; duplicates answered from what is known; every finished
evaluation handed on at once. Runners pull requests from it and push outcomes into it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ranksearch.allocators import ALLOCATORS, Problem
from ranksearch.errors import InfeasibleBudget
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.proxies import PROXIES, Energy, TableProxy
from ranksearch.runners import WAIT, Wait
from ranksearch.samplers import Sampler
from ranksearch.sites import Amount
from ranksearch.space import Configuration, SearchSpace

SHARES = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1)  # of the dense cost: where the search starts
PATIENCE = 200  # duplicates in a row before the space is searched for something new


@dataclass(frozen=True)
class Start:
    """A configuration of an exact proxy front."""

    indices: np.ndarray  # int64, shape: (n_sites,)
    origin: str  # which proxy, allocator and budget it solves


def exact_starts(space: SearchSpace, limits: Mapping[str, Amount], shares: Sequence[float] = SHARES) -> list[Start]:
    """The exact optimum of every proxy at several shares of each cost of the dense network, within ``limits``:
    distinct ones, proxy by proxy, so that the first few already span the front. Shares that the space cannot reach are
    left out.

    The absolute error comes first: its optima lose least. In the weight metric that holds for budgets of params alone: it
    takes the MACs from layers of few weights on large maps, whose loss is dear, so there its MACs budgets come last."""
    starts: list[Start] = []
    seen: set[bytes] = set()
    problems: list[tuple[TableProxy, str]] = [(proxy, cost) for proxy in (Energy(), *PROXIES) for cost in space.costs]
    if space.metric == "weight":
        problems.sort(key=lambda problem: isinstance(problem[0], Energy) and problem[1] == "macs")
    for proxy, cost in problems:
        table = proxy.table(space)
        allocator = next(a for a in ALLOCATORS if a.name == ("additive" if table.reduction == "sum" else "minimax"))
        for share in shares:
            limit = min(limits.get(cost, space.limit(cost, 1.0)), space.limit(cost, share))
            try:
                budgets = {name: space.budget(name, amount) for name, amount in {**limits, cost: limit}.items()}
                allocation = allocator.allocate(Problem(space, table, budgets))
            except InfeasibleBudget:
                break  # smaller shares are infeasible too
            if (key := allocation.indices.tobytes()) not in seen:
                seen.add(key)
                starts.append(Start(allocation.indices, f"{allocator.name}:{proxy.name}:{cost}<={share:g}"))
    return starts


@dataclass
class Search:
    """State of one run. ``known`` maps finished configuration ids to objective values to minimise, None if failed."""

    space: SearchSpace
    sampler: Sampler
    starts: Sequence[Start]
    admissible: Callable[[np.ndarray], bool]
    fidelity: Fidelity
    seed: int
    trials: int
    values: Callable[[Outcome], Sequence[float]]
    on_outcome: Callable[[Outcome], None]
    known: dict[str, Sequence[float] | None] = field(default_factory=dict)
    in_flight: dict[str, np.ndarray] = field(default_factory=dict)
    _queue: list[tuple[np.ndarray, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # half of the evaluations at most go to the exact fronts, the rest to the sampler that learns from them
        starts = self.starts[: self.trials // 2]
        first = [(self.space.dense, "dense"), *((start.indices, start.origin) for start in starts)]
        self._queue = [(indices, origin) for indices, origin in first if self.space.configuration(indices).id not in self.known]
        self._rng = np.random.default_rng(self.seed)

    def resume(self, finished: Iterable[tuple[np.ndarray, Sequence[float] | None]]) -> None:
        """Tell the sampler what earlier runs found."""
        for indices, values in finished:
            self.sampler.observe(indices, values)

    def propose(self) -> Request | Wait | None:
        """The next request; WAIT while all that is left is in flight; None when the study has what it was asked for."""
        if len(self.known) + len(self.in_flight) >= self.trials:
            return WAIT if self.in_flight else None
        while self._queue:
            indices, origin = self._queue.pop(0)
            if (request := self._request(indices, origin)) is not None:
                return request
        for _ in range(PATIENCE):
            indices = self.sampler.propose()
            if (request := self._request(indices, self.sampler.name)) is not None:
                return request
            # a duplicate is answered from what is known; one in flight is answered when it lands
            identity = self.space.configuration(indices).id
            if identity in self.known:
                self.sampler.observe(indices, self.known[identity])
        for _ in range(PATIENCE * 10):
            indices = self._rng.integers(0, np.array(self.space.shape))
            if self.admissible(indices) and (request := self._request(indices, "random")) is not None:
                return request
        return WAIT if self.in_flight else None  # everything there is has been evaluated

    def _request(self, indices: np.ndarray, origin: str) -> Request | None:
        configuration = self.space.configuration(indices)
        if configuration.id in self.known or configuration.id in self.in_flight:
            return None
        self.in_flight[configuration.id] = indices
        return Request(configuration, self.fidelity, self.seed, origin)

    def report(self, outcome: Outcome) -> None:
        """Take in one outcome: stored first, then known to the sampler."""
        self.on_outcome(outcome)
        identity = outcome.request.configuration.id
        indices = self.in_flight.pop(identity)
        self.known[identity] = self.values(outcome) if outcome.status == "done" else None
        self.sampler.observe(indices, self.known[identity])


def indices_of(space: SearchSpace, configuration: Configuration) -> np.ndarray | None:
    """Option indices, or None for a configuration that an earlier, other space of the study held."""
    try:
        return space.indices(configuration)
    except ValueError:
        return None
