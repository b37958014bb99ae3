"""How two studies, or two runs of one, compare: hypervolume, coverage and the best metric at budgets, over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from ranksearch.errors import InvalidArgument
from ranksearch.results.frames import DENSE_ID, floats, framed
from ranksearch.results.names import Direction
from ranksearch.results.pareto import non_dominated, relative, relative_hypervolume

LEVEL = 0.95  # of intervals


@dataclass(frozen=True, eq=False)
class Run:
    """The finished evaluations of one seed."""

    seed: int
    values: np.ndarray  # of the objectives, shape: (n, n_objectives)
    dense: np.ndarray  # of the dense network, shape: (n_objectives,)
    metric: np.ndarray  # shape: (n,)
    share: np.ndarray  # of the cost of budgets, shape: (n,)


def runs(frame: pd.DataFrame, objectives: Sequence[str], metric: str, cost: str) -> list[Run]:
    """The seeds of a frame of one fidelity that have a finished evaluation. A seed that lacks the dense network is compared with the mean
    of the others'.

    Args:
        frame: as `ranksearch.results.frames.evaluations` gives it.
        objectives: columns.
        metric, cost: columns, of what is best at a budget of what.

    Raises:
        InvalidArgument: the dense network has not finished at any seed.
    """
    done = frame.loc[(frame["status"] == "done").to_numpy()]
    is_dense = (done["id"] == DENSE_ID).to_numpy(dtype=bool)
    values = np.stack([floats(done[name]) for name in objectives], axis=1)
    if not is_dense.any():
        raise InvalidArgument("the dense network has no finished evaluation, so that nothing can be compared with it; search first")
    mean, seeds, found = values[is_dense].mean(axis=0), done["seed"].to_numpy(), []
    for seed in np.unique(seeds):
        rows = seeds == seed
        own = values[rows & is_dense]
        found.append(
            Run(int(seed), values[rows], own[0] if len(own) else mean, floats(done[metric])[rows], floats(done[f"{cost}_rel"])[rows])
        )
    return found


def comparison(
    a: Sequence[Run], b: Sequence[Run], objectives: Mapping[str, Direction], costs: Sequence[str], *, metric: str,
    direction: Direction, budgets: Sequence[float],
) -> pd.DataFrame:  # fmt: skip
    """One row per measure: ``hypervolume`` (relative to the dense network), ``coverage`` (``a``: the share of b's front that a's
    front has something as good for; ``b``: the reverse), ``METRIC`` the best at each ``budget``, a share of the dense network's cost.

    ``a`` and ``b`` are means over the seeds, ``difference`` is a less b, ``low`` to ``high`` its 95 % confidence interval over seeds
    (Welch 1947, "The generalization of 'Student's' problem when several different population variances are involved"); NaN where a side has
    fewer than two seeds, and for coverage, which is a mean over pairs of seeds. ``seeds_a`` and ``seeds_b`` count the seeds with a value.
    """
    directions, of_cost = list(objectives.values()), [name in costs for name in objectives]
    volumes = [[relative_hypervolume(run.values, run.dense, directions, of_cost) for run in side] for side in (a, b)]
    rows = [_row("hypervolume", math.nan, *volumes)]
    fronts = [[_front(run, directions, of_cost) for run in side] for side in (a, b)]
    covered = [
        float(np.mean([_coverage(mine, theirs) for mine in fronts[i] for theirs in fronts[1 - i]])) for i in (0, 1)
    ]  # fmt: skip
    rows.append({
        "measure": "coverage", "budget": math.nan, "a": covered[0], "b": covered[1], "difference": covered[0] - covered[1],
        "low": math.nan, "high": math.nan, "seeds_a": len(a), "seeds_b": len(b),
    })  # fmt: skip
    sign = -1.0 if direction == "max" else 1.0
    for budget in budgets:
        rows.append(_row(metric, budget, *([_best(run, budget, sign) for run in side] for side in (a, b))))
    found = {name: [row[name] for row in rows] for name in rows[0]}
    return framed({name: pd.Categorical(values) if name == "measure" else np.array(values) for name, values in found.items()})


def interval(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Confidence interval of the difference of two means, mean(a) - mean(b), variances not assumed equal; NaN where a side has fewer
    than two values."""
    if min(len(a), len(b)) < 2:
        return math.nan, math.nan
    difference = float(np.mean(a) - np.mean(b))
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (a, b)]
    total = sum(parts)
    if total == 0:
        return difference, difference
    freedom = total**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True))
    half = float(stdtrit(freedom, 0.5 + level / 2)) * math.sqrt(total)
    return difference - half, difference + half


def _row(measure: str, budget: float, a: Sequence[float], b: Sequence[float]) -> dict[str, float | str | int]:
    a, b = ([value for value in side if not math.isnan(value)] for side in (a, b))
    means = [float(np.mean(side)) if side else math.nan for side in (a, b)]
    low, high = interval(a, b)
    return {
        "measure": measure, "budget": budget, "a": means[0], "b": means[1], "difference": means[0] - means[1], "low": low, "high": high,
        "seeds_a": len(a), "seeds_b": len(b),
    }  # fmt: skip


def _front(run: Run, directions: Sequence[Direction], of_cost: Sequence[bool]) -> np.ndarray:
    points = relative(run.values, run.dense, directions, of_cost)
    if not points.shape[1]:
        return points[:0]
    return points[non_dominated(points, ["min"] * points.shape[1])]


def _coverage(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The share of their front that mine weakly dominates: C of Zitzler & Thiele 1999, "Multiobjective evolutionary algorithms: a
    comparative case study and the strength Pareto approach"."""
    if not len(theirs):
        return math.nan
    as_good = np.logical_and.reduce(mine[None] <= theirs[:, None], axis=2)
    return float(np.logical_or.reduce(as_good, axis=1).mean())


def _best(run: Run, budget: float, sign: float) -> float:
    within = run.metric[(run.share <= budget) & ~np.isnan(run.metric)]
    return float(sign * (sign * within).min()) if len(within) else math.nan
