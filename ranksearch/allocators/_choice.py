"""The multiple-choice knapsack behind the additive allocator: least sum of values, one option per site, within any
number of budgets (Sinha and Zoltners 1979; Kellerer, Pferschy, Pisinger, "Knapsack Problems", chapter 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array, hstack, vstack

from ranksearch.allocators._native import without_lines
from ranksearch.errors import RanksearchError

_EPS = 1e-12  # relative to the range of the values: below this two sums are equal in float64


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
    order = order[_falling(site[order], value[order])]
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


def _falling(site: np.ndarray, value: np.ndarray) -> np.ndarray:
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


@dataclass(frozen=True)
class Solution:
    """An optimum, or the best that was found in time."""

    indices: np.ndarray  # option per site, int64, shape: (n_sites,)
    value: float
    bound: float  # no solution has a smaller value
    remaining: int  # options that the reduced costs could not rule out; 0: no MILP was needed

    @property
    def gap(self) -> float:
        """(value - bound) / |value|; below 1e-6, the tolerance that HiGHS proves its bounds to, it is 0."""
        gap = (self.value - self.bound) / max(abs(self.value), 1e-300)
        return gap if gap > 1e-6 else 0.0


@dataclass
class _Flat:
    """Options that can be part of a solution, all sites in one run, sorted by site."""

    site: np.ndarray  # int64, shape: (n,)
    option: np.ndarray
    value: np.ndarray  # float64
    cost: np.ndarray  # int64, shape: (n, n_budgets)

    def __post_init__(self) -> None:
        self.starts = np.flatnonzero(np.r_[True, self.site[1:] != self.site[:-1]])

    def __getitem__(self, kept: np.ndarray) -> _Flat:
        return _Flat(self.site[kept], self.option[kept], self.value[kept], self.cost[kept])

    def lowest(self, score: np.ndarray) -> np.ndarray:
        """Position of the least score per site."""
        order = np.lexsort((score, self.site))
        return order[self.starts]


def solve(
    values: Sequence[np.ndarray], costs: Sequence[np.ndarray], limits: np.ndarray, *, fixing: bool = True, seconds: float = 60.0
) -> Solution | None:
    """Least sum of values with every sum of costs within its limit; None where nothing is.

    A Lagrangian bound with the optimal prices, options whose reduced cost alone exceeds the gap to the best known
    solution ruled out, the MILP (HiGHS, gap 0) on what is left.

    Args:
        values: one array per site, float64, finite, shape: (n_options,).
        costs: one array per site, int64, not negative, shape: (n_options, n_budgets).
        limits: int64, shape: (n_budgets,).
        fixing: rule options out before the MILP; without it the MILP gets them all (for comparison).
        seconds: for the MILP; where it stops early, the gap tells.
    """
    flat = _flatten(values, costs, limits)
    if flat is None:
        return None
    scale = max(float(np.ptp(flat.value)), 1e-300)
    prices, starts = _prices(flat, limits)
    if prices is None:
        return None
    reduced = flat.value + flat.cost @ prices
    floor = reduced[flat.lowest(reduced)]
    bound = float(floor.sum() - limits @ prices)
    reduced -= floor[flat.site]
    best: np.ndarray | None = None
    for start in (*starts, flat.lowest(reduced)):
        picked = _improve(flat, _repair(flat, start, limits), limits)
        if picked is not None and (best is None or flat.value[picked].sum() < flat.value[best].sum()):
            best = picked
    remaining = 0
    window = np.inf if best is None else max(float(flat.value[best].sum()) - bound, 0.0)
    kept = np.arange(len(reduced))
    if fixing:
        kept = kept[reduced <= window * (1 + 1e-9) + _EPS * scale]
        if best is not None and window > _EPS * scale * len(flat.starts):
            picked = _beam(flat[kept], reduced[kept], prices, limits)
            if picked is not None and flat.value[kept[picked]].sum() < flat.value[best].sum():
                best = kept[picked]
                window = max(float(flat.value[best].sum()) - bound, 0.0)
                kept = kept[reduced[kept] <= window * (1 + 1e-9) + _EPS * scale]
    if window > _EPS * scale * len(flat.starts):
        remaining = len(kept)
        picked, lower = _milp(flat[kept], reduced[kept], prices, limits, seconds, window)
        bound += lower
        if picked is not None and (best is None or flat.value[kept[picked]].sum() < flat.value[best].sum()):
            best = kept[picked]
    if best is None:
        return None
    indices = np.empty(len(flat.starts), dtype=np.int64)
    indices[flat.site[best]] = flat.option[best]
    value = float(sum(v[i] for v, i in zip(values, indices, strict=True)))
    if value - bound <= _EPS * scale * len(flat.starts):  # no more than the rounding of the sums
        bound = value
    return Solution(indices, value, min(bound, value), remaining)


def _flatten(values: Sequence[np.ndarray], costs: Sequence[np.ndarray], limits: np.ndarray) -> _Flat | None:
    """Drop options that another one of the site beats, and, in integers, those that fit with no choice of the
    others; None where nothing fits."""
    least = np.array([c.min(axis=0) for c in costs])
    slack = limits - least.sum(axis=0)
    if (slack < 0).any():
        return None
    parts: list[_Flat] = []
    for number, (value, cost) in enumerate(zip(values, costs, strict=True)):
        fits = np.flatnonzero((cost - least[number] <= slack).all(axis=1))
        if not len(fits):
            return None
        if cost.shape[1] == 1:
            order = fits[np.lexsort((value[fits], cost[fits, 0]))]
            kept = order[_falling(np.zeros(len(order), dtype=np.int64), value[order])]
        else:
            kept = fits[moocore.is_nondominated(np.column_stack([cost[fits], value[fits]]))]
        parts.append(_Flat(np.full(len(kept), number), kept, value[kept].astype(np.float64), cost[kept]))
    return _Flat(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("site", "option", "value", "cost")))


def _prices(flat: _Flat, limits: np.ndarray) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """Optimal prices of the budgets (duals of the linear relaxation), shape: (n_budgets,), and choices that round
    its solution; None where it is infeasible."""
    if len(limits) == 1:
        ends = np.append(flat.starts[1:], len(flat.site))
        runs = [slice(a, b) for a, b in zip(flat.starts, ends, strict=True)]
        hull = lagrangian_hull([flat.value[r] for r in runs], [flat.cost[r, 0] for r in runs])
        point = int(np.searchsorted(hull.costs, limits[0], side="right")) - 1
        price = hull.prices[point] if point < len(hull.prices) else 0.0
        return np.array([price]), [flat.starts + hull.indices(point)]
    scale, unit = np.maximum(limits, 1), max(float(np.ptp(flat.value)), 1e-300)
    count = len(flat.site)
    assignment = csr_array((np.ones(count), (flat.site, np.arange(count))))
    result = linprog(
        (flat.value - flat.value.min()) / unit, A_ub=(flat.cost / scale).T, b_ub=limits / scale,
        A_eq=assignment, b_eq=np.ones(len(flat.starts)), bounds=(0, None), method="highs",
    )  # fmt: skip
    if result.x is None:
        # infeasible beyond HiGHS' tolerance; any other end leaves prices of 0, a valid if weak bound
        return (None if result.status == 2 else np.zeros(len(limits))), []
    prices = np.maximum(-result.ineqlin.marginals, 0.0) * unit / scale
    return prices, [flat.lowest(-result.x)]


def _repair(flat: _Flat, picked: np.ndarray, limits: np.ndarray) -> np.ndarray | None:
    """Exchange options, cheapest in value per unit of excess removed, until every budget holds; None if stuck."""
    scale = np.maximum(limits, 1)
    picked = picked.copy()
    for _ in range(4 * len(picked)):
        excess = np.maximum(flat.cost[picked].sum(axis=0) - limits, 0)
        if not excess.any():
            return picked
        after = np.maximum(flat.cost[picked].sum(axis=0) + flat.cost - flat.cost[picked][flat.site] - limits, 0)
        removed = ((excess - after) / scale).sum(axis=1)
        loss = flat.value - flat.value[picked][flat.site]
        moves = np.flatnonzero(removed > 0)
        if not len(moves):
            return None
        move = moves[np.argmin(np.maximum(loss[moves], 0.0) / removed[moves])]
        picked[flat.site[move]] = move
    return None


def _improve(flat: _Flat, picked: np.ndarray | None, limits: np.ndarray) -> np.ndarray | None:
    """Spend what is left: the exchange that saves most value, as long as one fits."""
    if picked is None:
        return None
    picked = picked.copy()
    while True:
        slack = limits - flat.cost[picked].sum(axis=0)
        gain = flat.value[picked][flat.site] - flat.value
        gain[((flat.cost - flat.cost[picked][flat.site]) > slack).any(axis=1)] = 0.0
        move = int(np.argmax(gain))
        if gain[move] <= 0:
            return picked
        picked[flat.site[move]] = move


def _beam(
    flat: _Flat, reduced: np.ndarray, prices: np.ndarray, limits: np.ndarray, *, width: int = 400, options: int = 12
) -> np.ndarray | None:
    """A good solution by dynamic programming over the sites, of each site the options of least reduced cost, keeping
    the partial sums of least reduced cost, one per level of spent budget. Sums that cannot fit any more are dropped."""
    ends = np.append(flat.starts[1:], len(flat.site))
    groups = [np.arange(a, b) for a, b in zip(flat.starts, ends, strict=True)]
    groups = [group[np.argsort(reduced[group], kind="stable")[:options]] for group in groups]
    # sites with the finest choices last, where they can use up what the others leave
    groups.sort(key=lambda group: -float(reduced[group[1]]) if len(group) > 1 else -np.inf)
    least = np.array([flat.cost[group].min(axis=0) for group in groups])
    rest = least[::-1].cumsum(axis=0)[::-1] - least
    spent, score = np.zeros((1, len(limits)), dtype=np.int64), np.zeros(1)
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for group, later in zip(groups, rest, strict=True):
        parent, choice = np.divmod(np.arange(len(score) * len(group)), len(group))
        total, lost = spent[parent] + flat.cost[group[choice]], score[parent] + reduced[group[choice]]
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


def _milp(
    flat: _Flat, reduced: np.ndarray, prices: np.ndarray, limits: np.ndarray, seconds: float, window: float
) -> tuple[np.ndarray | None, float]:
    """Solve in reduced costs: min sum(reduced x) + prices . slack, every coefficient at least 0 and of the size of
    the gap, so that HiGHS' absolute tolerances are far below what matters. Returns positions and a lower bound on
    that sum. A solution that breaks a budget in integers is cut off and the next one sought."""
    count, sites, budgets = len(flat.site), len(flat.starts), len(limits)
    least = np.array([np.minimum.reduceat(flat.cost[:, b], flat.starts) for b in range(budgets)]).T
    over = flat.cost - least[flat.site]
    room = limits - least.sum(axis=0)
    divisor = np.array([max(int(np.gcd.reduce(over[:, b])), 1) for b in range(budgets)])
    rows, room = over // divisor, room // divisor  # the rounded-off rest of the room cannot be used by anybody
    slack_price = prices * divisor
    # the rest of a budget that no choice can use is paid for in any case
    unused = (limits - least.sum(axis=0)) - room * divisor
    base = float(unused @ prices)
    # rows in units of their largest coefficient, but so that HiGHS' tolerance of 1e-6 stays below one integer
    grain = np.clip(rows.max(axis=0), 1, 5e5).astype(np.float64)
    known = np.isfinite(window)  # whether a solution is known; all that matters is then of the size of the window
    unit = (window if known else max(float(reduced.max()), float((slack_price * grain).max()), 1e-300)) / 1e3
    assignment = hstack([coo_array((np.ones(count), (flat.site, np.arange(count))), shape=(sites, count)), coo_array((sites, budgets))])
    budget = hstack([coo_array((rows / grain).T), coo_array(np.eye(budgets))])
    objective = np.concatenate([reduced, slack_price * grain]) / unit
    integral = np.concatenate([np.ones(count), np.zeros(budgets)])
    columns, equal = vstack([assignment, budget]).tocsr(), np.concatenate([np.ones(sites), room / grain])
    constraints = [LinearConstraint(columns, equal, equal)]  # type: ignore[arg-type]
    upper, lower = np.concatenate([np.ones(count), room / grain]), 0.0
    for _ in range(20):
        try:
            with without_lines(b"Highs"):
                result = milp(
                    objective, integrality=integral, bounds=Bounds(0, upper), constraints=constraints,  # type: ignore[arg-type]
                    # HiGHS' presolve finds little here
                    options={"mip_rel_gap": 0.0, "time_limit": seconds, "presolve": False},
                )  # fmt: skip
        except ValueError as error:  # from inside HiGHS ("vector::reserve"), on rare problems that are sound; the gap tells
            if not known:
                raise RanksearchError(f"no allocation found: HiGHS failed ({error}); change the budget a little") from error
            return None, lower
        if result.mip_dual_bound is not None and np.isfinite(result.mip_dual_bound):
            lower = max(result.mip_dual_bound * unit + base, lower)
        if result.x is None:
            if result.status != 2 and not known:
                raise RanksearchError(f"seconds={seconds:g}: no allocation found ({result.message}); give it more or raise a budget")
            return None, lower
        picked = flat.lowest(-result.x[:count])
        if (rows[picked].sum(axis=0) <= room).all():
            return picked, lower
        taken = np.zeros(count + budgets)
        taken[picked] = 1.0
        constraints.append(LinearConstraint(taken[None], -np.inf, sites - 1))
    return None, lower
