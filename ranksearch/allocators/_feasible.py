"""Good solutions without a proof: rounded ones, repaired and improved by exchanges."""

from __future__ import annotations

import numpy as np

from ranksearch.allocators._options import Options


def repair(options: Options, picked: np.ndarray, limits: np.ndarray) -> np.ndarray | None:
    """Exchange options, cheapest in value per unit of excess removed, until every budget holds; None if stuck."""
    scale = np.maximum(limits, 1)
    picked = picked.copy()
    for _ in range(4 * len(picked)):
        excess = np.maximum(options.cost[picked].sum(axis=0) - limits, 0)
        if not excess.any():
            return picked
        after = np.maximum(options.cost[picked].sum(axis=0) + options.cost - options.cost[picked][options.site] - limits, 0)
        removed = ((excess - after) / scale).sum(axis=1)
        loss = options.value - options.value[picked][options.site]
        moves = np.flatnonzero(removed > 0)
        if not len(moves):
            return None
        move = moves[np.argmin(np.maximum(loss[moves], 0.0) / removed[moves])]
        picked[options.site[move]] = move
    return None


def improve(options: Options, picked: np.ndarray | None, limits: np.ndarray) -> np.ndarray | None:
    """Spend what is left: the exchange that saves most value, as long as one fits."""
    if picked is None:
        return None
    picked = picked.copy()
    while True:
        slack = limits - options.cost[picked].sum(axis=0)
        gain = options.value[picked][options.site] - options.value
        gain[((options.cost - options.cost[picked][options.site]) > slack).any(axis=1)] = 0.0
        move = int(np.argmax(gain))
        if gain[move] <= 0:
            return picked
        picked[options.site[move]] = move
