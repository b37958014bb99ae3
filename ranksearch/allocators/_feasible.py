"""Good solutions without a proof: rounded ones repaired and improved by exchanges, and a beam search over the sites."""

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


def beam(
    options: Options, reduced: np.ndarray, prices: np.ndarray, limits: np.ndarray, *, width: int = 400, depth: int = 12
) -> np.ndarray | None:
    """A good solution by dynamic programming over the sites, of each site the options of least reduced cost, keeping
    the partial sums of least reduced cost, one per level of spent budget. Sums that cannot fit any more are dropped."""
    ends = np.append(options.starts[1:], len(options.site))
    groups = [np.arange(a, b) for a, b in zip(options.starts, ends, strict=True)]
    groups = [group[np.argsort(reduced[group], kind="stable")[:depth]] for group in groups]
    # sites with the finest choices last, where they can use up what the others leave
    groups.sort(key=lambda group: -float(reduced[group[1]]) if len(group) > 1 else -np.inf)
    least = np.array([options.cost[group].min(axis=0) for group in groups])
    rest = least[::-1].cumsum(axis=0)[::-1] - least
    spent, score = np.zeros((1, len(limits)), dtype=np.int64), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for group, later in zip(groups, rest, strict=True):
        parent, choice = np.divmod(np.arange(len(score) * len(group)), len(group))
        total, lost = spent[parent] + options.cost[group[choice]], score[parent] + reduced[group[choice]]
        alive = np.flatnonzero((total + later <= limits).all(axis=1))
        if not len(alive):
            return None
        # one sum per level: with one budget those that no sum of less cost and value beats, else distinct costs
        order = alive[np.lexsort((lost[alive], total[alive, 0]))]
        worth = lost[order] - total[order] @ prices
        if len(limits) == 1:
            best_before = np.minimum.accumulate(worth)
            order = order[np.r_[True, worth[1:] < best_before[:-1]]]
        else:
            order = order[np.r_[True, (total[order[1:]] != total[order[:-1]]).any(axis=1)]]
        if len(order) > width:
            order = order[np.argpartition(lost[order], width)[:width]]
        spent, score = total[order], lost[order]
        history.append((parent[order], group[choice[order]]))
    state = int(np.argmin(score - spent @ prices))
    picked = []
    for parent, choice in reversed(history):
        picked.append(int(choice[state]))
        state = int(parent[state])
    return np.sort(np.array(picked))  # positions are sorted by site
