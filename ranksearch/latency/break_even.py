"""Break-even: from which rank downwards a type is really faster than the dense layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ranksearch.costs import DenseNetwork, LayerOptions
from ranksearch.decompositions import AnyDecomposition, Rank
from ranksearch.latency.measured import TableLatency
from ranksearch.sites import Site


@dataclass(frozen=True)
class BreakEven:
    """One type at one layer."""

    site: str
    identical: tuple[str, ...]  # other sites that share its times
    decomposition: str
    rank: Rank | None  # the option of most MACs whose whole interval is below the dense layer's time; None: there is none
    words: str  # the same, in words
    macs: float  # of that option, as a share of the dense layer's
    ratio: float  # predicted time over the dense layer's
    options: int  # cheaper than dense in params or MACs
    faster: int  # of these, really faster


def break_even(cost: TableLatency, network: DenseNetwork, decompositions: Sequence[AnyDecomposition]) -> list[BreakEven]:
    """One row per different layer and type that is defined there and that the table has."""
    groups: dict[str, list[Site]] = {}
    for site in network.sites:
        groups.setdefault(cost.table.sites[site.name], []).append(site)
    rows = []
    for first, *others in groups.values():
        for decomposition in decompositions:
            ranks = decomposition.options(first) if decomposition.name != "dense" else np.zeros((0, 1), dtype=np.int64)
            if len(ranks):
                row = _row(cost, network, first, tuple(site.name for site in others), decomposition, ranks)
                rows += [] if row is None else [row]
    return rows


def _row(
    cost: TableLatency, network: DenseNetwork, site: Site, identical: tuple[str, ...], decomposition: AnyDecomposition, ranks: np.ndarray
) -> BreakEven | None:
    params, macs = decomposition.costs(site, ranks)
    layer = LayerOptions(network, site, decomposition, ranks, params, macs)
    ratios, high = cost.ratios(layer), cost.ratios(layer, "high")
    if np.isnan(ratios).all():
        return None
    faster = np.flatnonzero(high < 1)
    if not len(faster):
        return BreakEven(site.name, identical, decomposition.name, None, "", float("nan"), float("nan"), len(ranks), 0)
    best = faster[np.argmax(macs[faster])]
    rank = tuple(int(entry) for entry in ranks[best])
    share = float(macs[best]) / max(site.cost.macs, 1)
    words = decomposition.describe(site, rank)
    return BreakEven(site.name, identical, decomposition.name, rank, words, share, float(ratios[best]), len(ranks), len(faster))
