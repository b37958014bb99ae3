"""The options of all sites in one run of arrays, without those that no optimum needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import moocore
import numpy as np

from ranksearch.allocators._hull import falling


@dataclass
class Options:
    """Options that can be part of a solution, all sites in one run, sorted by site."""

    site: np.ndarray  # int64, shape: (n,)
    option: np.ndarray
    value: np.ndarray  # float64
    cost: np.ndarray  # int64, shape: (n, n_budgets)

    def __post_init__(self) -> None:
        self.starts = np.flatnonzero(np.r_[True, self.site[1:] != self.site[:-1]])

    def __getitem__(self, kept: np.ndarray) -> Options:
        return Options(self.site[kept], self.option[kept], self.value[kept], self.cost[kept])

    def lowest(self, score: np.ndarray) -> np.ndarray:
        """Position of the least score per site."""
        order = np.lexsort((score, self.site))
        return order[self.starts]

    def levelled(self) -> tuple[Options, float]:
        """The same with values above the least one of their site, in a unit, a power of two, in which the largest is near 1."""
        half = self.value / 2  # a difference of which is a number, whatever the values
        above = half - np.minimum.reduceat(half, self.starts)[self.site]
        largest = float(above.max())
        unit = math.ldexp(1.0, min(math.frexp(largest)[1], 1022)) if largest > 0 else 1.0
        return replace(self, value=above / unit), 2 * unit

    def beyond_least(self, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What every option costs beyond the least of its site, shape (n, n_budgets), and what limits leave for that."""
        least = np.array([np.minimum.reduceat(column, self.starts) for column in self.cost.T]).T
        return self.cost - least[self.site], limits - least.sum(axis=0)


def needed(values: Sequence[np.ndarray], costs: Sequence[np.ndarray], limits: np.ndarray) -> Options | None:
    """Drop options that another one of the site beats, and, in integers, those that fit with no choice of the
    others; None where nothing fits."""
    least = np.array([c.min(axis=0) for c in costs])
    slack = limits - least.sum(axis=0)
    if (slack < 0).any():
        return None
    parts: list[Options] = []
    for number, (value, cost) in enumerate(zip(values, costs, strict=True)):
        fits = np.flatnonzero((cost - least[number] <= slack).all(axis=1))
        if not len(fits):
            return None
        kept = fits[unbeaten(cost[fits], value[fits])]
        parts.append(Options(np.full(len(kept), number), kept, value[kept].astype(np.float64), cost[kept]))
    return Options(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("site", "option", "value", "cost")))


def unbeaten(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Positions of the options that no other one beats or equals in value and in every cost; of equal ones the first.

    Args:
        cost: int64, shape: (n, n_budgets).
        value: shape: (n,).
    """
    if cost.shape[1] > 1:
        return np.flatnonzero(moocore.is_nondominated(np.column_stack([cost, value])))
    order = np.lexsort((value, cost[:, 0]))
    return order[falling(np.zeros(len(order), dtype=np.int64), value[order])]

