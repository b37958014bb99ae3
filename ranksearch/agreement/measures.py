"""How well a proxy predicted what was measured: rank correlations, the share of the best that it finds, and the loss from trusting it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.proxies import ScoreProxy, TableProxy, score
from ranksearch.space import SearchSpace


@dataclass(frozen=True)
class Agreement:
    """How scores agree with measurements, both to be minimised. A value is NaN where it is not defined (too few, or all alike)."""

    count: int
    kendall: float  # tau-b over all pairs
    kendall_matched: float  # tau over the pairs of nearly the same cost, see `agreement`
    pairs_matched: int
    spearman: float
    recall: float  # share of the k measured best among the k best scored
    k: int
    regret: float  # mean over budgets: measured(best scored within the budget) - measured(best within it)
    regret_chance: float  # the same for a blind choice: the mean instead of the best scored


def agreement(
    scores: Sequence[float] | np.ndarray,
    measured: Sequence[float] | np.ndarray,
    costs: Sequence[float] | np.ndarray | None = None,
    *,
    k: int = 5,
    tolerance: float = 0.05,
    budgets: int = 8,
) -> Agreement:
    """Agreement of one proxy with measurements of the same configurations.

    A larger network scores and measures better, so a proxy that only counts parameters correlates well over all
    pairs. ``kendall_matched`` therefore compares only pairs whose costs differ by at most ``tolerance`` of the larger
    one, and ``regret`` chooses among the configurations of nearly one cost.

    Args:
        scores, measured: shape (n,), lower is better; configurations without a finite measurement are left out.
        costs: shape (n,); without them all pairs match.
        k: how many are the best; at most half of them all.
        tolerance: as a share of the cost.
        budgets: at so many quantiles of the costs regret is taken.

    Raises:
        InvalidArgument: misfitting lengths, ``k`` below 1 or a negative tolerance.
    """
    from scipy.stats import kendalltau, spearmanr  # half a second to import: not before it is needed

    score_, value = np.asarray(scores, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    cost = np.ones_like(value) if costs is None else np.asarray(costs, dtype=np.float64)
    if score_.shape != value.shape or cost.shape != value.shape or value.ndim != 1:
        raise InvalidArgument(f"scores {score_.shape}, measured {value.shape}, costs {cost.shape}: must be one vector each, of one length")
    checks.whole("k", k, least=1)
    checks.number("tolerance", tolerance, least=0)
    checks.whole("budgets", budgets, least=1)
    kept = np.isfinite(value) & np.isfinite(score_)
    score_, value, cost = score_[kept], value[kept], cost[kept]
    n = len(value)
    k = max(1, min(k, n // 2))
    nan = float("nan")
    if n < 2:
        return Agreement(n, nan, nan, 0, nan, nan, k, nan, nan)
    varied = bool(np.ptp(score_) > 0 and np.ptp(value) > 0)
    kendall = float(kendalltau(score_, value).statistic) if varied else nan  # type: ignore[attr-defined]
    spearman = float(spearmanr(score_, value).statistic) if varied else nan  # type: ignore[attr-defined]
    matched, pairs = _matched(score_, value, cost, tolerance)
    best_scored, best = set(np.argsort(score_, kind="stable")[:k].tolist()), set(np.argsort(value, kind="stable")[:k].tolist())
    regrets, chances = [], []
    for budget in np.unique(np.quantile(cost, np.linspace(0, 1, budgets + 1)[1:], method="lower")):
        near = np.flatnonzero((cost <= budget) & (cost >= budget * (1 - tolerance)))
        if len(near) > 1:
            least = value[near].min()
            regrets.append(value[near][np.argmin(score_[near])] - least)
            chances.append(value[near].mean() - least)
    regret, chance = (float(np.mean(r)) if r else nan for r in (regrets, chances))
    return Agreement(n, kendall, matched, pairs, spearman, len(best_scored & best) / k, k, regret, chance)


def _matched(score_: np.ndarray, value: np.ndarray, cost: np.ndarray, tolerance: float) -> tuple[float, int]:
    """Kendall's tau over the pairs of nearly equal cost, pairs tied in the measurement left out. O(n^2)."""
    one, two = np.triu_indices(len(value), 1)
    larger = np.maximum(np.abs(cost[one]), np.abs(cost[two]))
    near = (np.abs(cost[one] - cost[two]) <= tolerance * larger) & (value[one] != value[two])
    if not near.any():
        return float("nan"), 0
    signs = np.sign(score_[one] - score_[two]) * np.sign(value[one] - value[two])
    return float(signs[near].mean()), int(near.sum())


def proxy_agreement(
    space: SearchSpace,
    proxies: Sequence[TableProxy | ScoreProxy],
    indices: np.ndarray,
    measured: Mapping[str, Sequence[float] | np.ndarray],
    *,
    k: int = 5,
    tolerance: float = 0.05,
) -> list[dict[str, Any]]:
    """One row per (proxy, fidelity, cost): what `agreement` says, and what the proxy does not cover.

    Args:
        space: of the configurations.
        proxies: to be judged.
        indices: option indices of what was measured, shape: (n, n_sites).
        measured: per fidelity (such as "without fine-tuning") one value to minimise per configuration; NaN where a
            configuration was not measured at it.

    Raises:
        InvalidArgument: a fidelity with another number of measurements than configurations.
    """
    indices = np.atleast_2d(np.asarray(indices))
    rows = []
    for proxy in proxies:
        scores = score(proxy, space, indices)
        uncovered = dict(proxy.uncovered(space))
        for fidelity, values in measured.items():
            for cost, table in space.cost_tables.items():
                found = agreement(scores, values, table.score(indices), k=k, tolerance=tolerance)
                rows.append({"proxy": proxy.name, "fidelity": fidelity, "cost": cost, **asdict(found), "uncovered": uncovered})
    return rows
