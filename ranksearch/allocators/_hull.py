"""The convex front of an additive problem, from the lower hulls of its sites (Sinha and Zoltners 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hull:
    """The lower convex hull of (cost, value) over all configurations: what some price per unit of cost selects.

    Point 0 is the cheapest configuration; step k exchanges one option of one site and leads to point k + 1."""

    values: np.ndarray  # float64, falling, shape: (n_points,)
    costs: np.ndarray  # rising, shape: (n_points,)
    prices: np.ndarray  # value bought per unit of cost by each step, falling, shape: (n_points - 1,)
    start: np.ndarray  # option per site of point 0, int64, shape: (n_sites,)
    site: np.ndarray  # which site each step changes, int64, shape: (n_points - 1,)
    option: np.ndarray  # and to which option

    def indices(self, point: int) -> np.ndarray:
        """Option per site at a point, int64, shape: (n_sites,)."""
        indices = self.start.copy()
        # steps of one site are in order, and numpy lets the last of repeated assignments stand
        indices[self.site[:point]] = self.option[:point]
        return indices


def lagrangian_hull(values: Sequence[np.ndarray], costs: Sequence[np.ndarray]) -> Hull:
    """The whole convex front of an additive problem: the lower hulls of all sites, merged by slope. O(n log n).

    Args:
        values, costs: one array per site, shape: (n_options,).
    """
    sizes = np.array([len(v) for v in values])
    site = np.repeat(np.arange(len(sizes)), sizes)
    option = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    value, cost = np.concatenate(values).astype(np.float64), np.concatenate(costs)
    order = np.lexsort((value, cost, site))
    order = order[falling(site[order], value[order])]
    order = order[_convex(site[order], cost[order].astype(np.float64), value[order])]
    site, option, value, cost = site[order], option[order], value[order], cost[order]
    first = np.ones(len(site), dtype=bool)
    first[1:] = site[1:] != site[:-1]
    step = np.flatnonzero(~first)
    gain, rise = value[step - 1] - value[step], cost[step] - cost[step - 1]
    prices = gain / rise
    by_price = np.argsort(-prices, kind="stable")  # within a site prices fall, so its steps stay in order
    step = step[by_price]
    return Hull(
        values=value[first].sum() - np.concatenate([[0.0], np.cumsum(gain[by_price])]),
        costs=np.concatenate([[cost[first].sum()], cost[first].sum() + np.cumsum(rise[by_price])]),
        prices=prices[by_price], start=option[first].astype(np.int64), site=site[step], option=option[step].astype(np.int64),
    )  # fmt: skip


def falling(site: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Mask of entries whose value is below all earlier ones of their site; entries are sorted by site, then cost."""
    rank = np.unique(value, return_inverse=True)[1]
    shifted = rank - site * (len(rank) + 1)  # every site starts below all that went before, so one sweep does
    kept = np.ones(len(site), dtype=bool)
    kept[1:] = shifted[1:] < np.minimum.accumulate(shifted)[:-1]
    return kept


def _convex(site: np.ndarray, cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Positions of the lower hull's vertices, per site; entries rise in cost and fall in value.

    All points above the line through their neighbours go at once, until none is left: each pass is vectorised, and
    a few do. Where a cascade would need many, the sites concerned finish by the sequential monotone chain."""
    kept = np.arange(len(site))
    for _ in range(40):
        s, c, v = site[kept], cost[kept], value[kept]
        above = (s[:-2] == s[2:]) & ((v[:-2] - v[1:-1]) * (c[2:] - c[1:-1]) <= (v[1:-1] - v[2:]) * (c[1:-1] - c[:-2]))
        if not above.any():
            return kept
        kept = np.delete(kept, np.flatnonzero(above) + 1)
    chain: list[int] = []
    sites, costs, values = site.tolist(), cost.tolist(), value.tolist()
    for k in kept.tolist():
        while len(chain) > 1 and sites[chain[-2]] == sites[k]:
            a, b = chain[-2], chain[-1]
            if (values[a] - values[b]) * (costs[k] - costs[b]) > (values[b] - values[k]) * (costs[b] - costs[a]):
                break
            chain.pop()
        chain.append(k)
    return np.array(chain, dtype=np.int64)
