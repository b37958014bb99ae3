"""Which multiples of ranks a device likes: ranks between two multiples that take as long as the larger one are wasted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ranksearch.costs import DenseNetwork
from ranksearch.decompositions import AnyDecomposition
from ranksearch.sites import Site

if TYPE_CHECKING:
    from ranksearch.latency.measured import TableLatency

MULTIPLES = (32, 16, 8, 4, 2)
WINDOW = 33  # ranks that are measured, one after the other, around the middle of a layer's
WASTED = 0.02  # by so much a multiple may be slower than the ranks below it, on average


def suggested_round_to(cost: TableLatency, network: DenseNetwork) -> int | None:
    """The largest multiple to which ranks are rounded up at the price of 2 % of time on average, measured at the layer that, with those
    identical to it, takes most of the dense network's time; 1 where every rank counts. None where nothing can be measured or no type
    has single ranks there."""
    taken: dict[str, float] = {}  # identical layers together
    for name in cost.table.sites.values():
        taken[name] = taken.get(name, 0.0) + cost.table.layers[name].dense
    site = max(network.sites, key=lambda site: taken[cost.table.sites[site.name]])
    kind = next((kind for kind in network.decompositions if _single_ranks(kind, site)), None)
    bench = cost.bench
    if kind is None or bench is None:
        return None
    every = kind.options(site)[:, 0]
    begin = max(0, (len(every) - WINDOW) // 2)
    ranks = [(int(rank),) for rank in every[begin : begin + WINDOW]]
    found = bench.points(site, kind, ranks)
    return largest_free_multiple({rank: found[rank,].value for (rank,) in ranks})


def largest_free_multiple(times: Mapping[int, float]) -> int:
    """The largest of `MULTIPLES` to which ranks are rounded up at the price of 2 % of time, on average over at least half of the ranks
    between two of them; 1: none.

    Args:
        times: by rank, of consecutive ranks."""
    for multiple in MULTIPLES:
        pairs = [(time, times.get(-(-rank // multiple) * multiple)) for rank, time in times.items() if rank % multiple]
        ratios = [above / time for time, above in pairs if above is not None]
        if len(ratios) >= multiple // 2 and np.mean(ratios) <= 1 + WASTED:
            return multiple
    return 1


def _single_ranks(kind: AnyDecomposition, site: Site) -> bool:
    """Whether the options of a type are many consecutive ranks of one entry."""
    ranks = kind.options(site)
    return ranks.shape[1] == 1 and len(ranks) >= WINDOW // 2 and bool((np.diff(ranks[:, 0]) == 1).all())
