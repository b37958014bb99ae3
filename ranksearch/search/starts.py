"""Where a search starts: the optima of proxies at several budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ranksearch.allocators import Allocator, Problem, exact_for
from ranksearch.errors import InfeasibleBudget
from ranksearch.proxies import TableProxy
from ranksearch.sites import Amount
from ranksearch.space import Candidate, SearchSpace

SHARES = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1)  # of the dense cost


@dataclass(frozen=True)
class Start:
    """A configuration to evaluate before the sampler is asked."""

    candidate: Candidate
    origin: str  # who proposes it: for an optimum the allocator, the proxy and the budget


def optima(
    space: SearchSpace,
    proxies: Sequence[TableProxy],
    limits: Mapping[str, Amount],
    *,
    allocator: Allocator | None = None,
    shares: Sequence[float] = SHARES,
) -> list[Start]:
    """The optimum of every proxy at several shares of the dense network's costs, within ``limits``: distinct ones, proxy by
    proxy, so that the first few already span the front. Budgets at which a proxy is known to be poor come last
    (`TableProxy.poor_budgets`). Shares that the space cannot reach are left out, and so are costs that the dense network has none of.

    Args:
        allocator: solves the tables that it takes; others, and without it all, are solved exactly.
    """
    starts: list[Start] = []
    seen: set[bytes] = set()
    problems = [(proxy, cost) for proxy in proxies for cost in space.costs if space.baseline[cost]]
    problems.sort(key=lambda problem: problem[1] in problem[0].poor_budgets(space))
    tables = {id(proxy): proxy.table(space) for proxy in proxies}
    for proxy, cost in problems:
        table = tables[id(proxy)]
        solver = allocator if allocator is not None and allocator.reduction in (None, table.reduction) else exact_for(table.reduction)
        for share in shares:
            limit = min(limits.get(cost, space.limit(cost, 1.0)), space.limit(cost, share))
            try:
                budgets = {name: space.budget(name, amount) for name, amount in {**limits, cost: limit}.items()}
                allocation = solver.allocate(Problem(space, table, budgets))
            except InfeasibleBudget:
                break  # smaller shares are infeasible too
            if (key := allocation.indices.tobytes()) not in seen:
                seen.add(key)
                starts.append(Start(space.candidate(allocation.indices), f"{solver.name}:{proxy.name}:{cost}<={share:g}"))
    return starts
