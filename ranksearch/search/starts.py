"""Where a search starts: the optima of proxies at several budgets, each solved when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ranksearch.allocators import Additive, Allocator, Problem, exact_for
from ranksearch.errors import InfeasibleBudget
from ranksearch.proxies import TableProxy
from ranksearch.sites import Amount
from ranksearch.space import Candidate, SearchSpace

SHARES = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1)  # of the dense cost, where nothing limits it
OF_LIMIT = (1.0, 0.95, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2)  # of a limit that is set: near it first, where the best within it are
SECONDS = 1.0  # that HiGHS may take for a start; what the hull, repaired and improved, has by then is as good to start from


@dataclass(frozen=True)
class Start:
    """A configuration to evaluate before the sampler is asked."""

    candidate: Candidate
    origin: str  # who proposes it: for an optimum the allocator, the proxy and the budget, as a share of the dense cost


def optima(
    space: SearchSpace,
    proxies: Sequence[TableProxy],
    limits: Mapping[str, Amount],
    *,
    allocator: Allocator | None = None,
    shares: Sequence[float] | None = None,
    costs: Sequence[str] | None = None,
    seconds: float = SECONDS,
) -> Iterator[Start]:
    """The optimum of every proxy at several budgets within ``limits``: distinct ones, proxy by proxy, so that the first few already span
    the front. Each is solved when the iterator comes to it. Budgets of a cost that has a limit are shares of that (`OF_LIMIT`), of
    another one shares of the dense network's (`SHARES`), which come after those. Budgets at which a proxy is known to be poor come last
    (`TableProxy.poor_budgets`); those that the space cannot reach are left out, and so are costs that the dense network has none of.

    Args:
        allocator: solves the tables that it takes; others, and without it all, are solved exactly.
        shares: instead of both tables.
        costs: budgets are of these alone; None: of all.
        seconds: for HiGHS, per start; where it takes longer, a start is the best that is known by then.
    """
    exact: dict[str, Allocator] = {"sum": Additive(seconds=seconds)}
    seen: set[bytes] = set()
    problems = [(proxy, cost) for proxy in proxies for cost in costs or space.costs if space.baseline[cost]]
    problems.sort(key=lambda problem: (problem[1] in problem[0].poor_budgets(space), bool(limits) and problem[1] not in limits))
    tables = {}
    for proxy, cost in problems:
        if id(proxy) not in tables:
            tables[id(proxy)] = proxy.table(space)
        table = tables[id(proxy)]
        takes = allocator is not None and allocator.reduction in (None, table.reduction)
        solver = allocator if takes and allocator is not None else exact.get(table.reduction) or exact_for(table.reduction)
        for amount, share in _amounts(space, cost, limits, shares):
            try:
                budgets = {name: space.budget(name, limit) for name, limit in {**limits, cost: amount}.items()}
                allocation = solver.allocate(Problem(space, table, budgets))
            except InfeasibleBudget:
                break  # smaller ones are infeasible too
            if (key := allocation.indices.tobytes()) not in seen:
                seen.add(key)
                yield Start(space.candidate(allocation.indices), f"{solver.name}:{proxy.name}:{cost}<={share:.6g}")


def _amounts(space: SearchSpace, cost: str, limits: Mapping[str, Amount], shares: Sequence[float] | None) -> list[tuple[Amount, float]]:
    """Budgets of one cost, falling, each with its share of the dense network's."""
    limit = limits.get(cost)
    if limit is None:
        return [(space.limit(cost, share), share) for share in shares or SHARES]
    return [(type(limit)(limit * share), limit * share / (space.baseline[cost] or 1)) for share in shares or OF_LIMIT]
