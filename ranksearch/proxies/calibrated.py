"""A calibrated additive proxy: another proxy's table with one weight per site, fitted to whole-network measurements,
so that what happens between layers is in the weights; checked on measurements that the fit did not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy.optimize import lsq_linear

from ranksearch.errors import InvalidArgument
from ranksearch.proxies.context import ProxyContext
from ranksearch.proxies.energy import Energy
from ranksearch.proxies.proxy import TableProxy
from ranksearch.space import Configuration, SearchSpace
from ranksearch.space.table import Table

# how far a weight may be from the common one: an allocator would otherwise give away every site whose weight came out
# near zero by chance, since few dozen measurements cannot tell a small effect from none
SPREAD = 4.0


@dataclass(frozen=True)
class Fit:
    """What came of a calibration."""

    weights: np.ndarray  # per site, above 0, float64, shape: (n_sites,)
    common: float  # the best single weight for all sites
    held_out: float  # Spearman correlation of the fitted table with the measurements that the fit did not see
    before: float  # the same for the uncalibrated table
    measurements: int


class Calibrated(TableProxy):
    """w_s x base value, w by ridge regression of the measured rise in loss towards one common weight, within a
    factor ``SPREAD`` of it.

    Args:
        base: proxy of a sum.
        measure: loss of a configuration on calibration data.
        space: of the sample. The weights, one per site, hold in every space of the same sites.
        sample: configurations to measure, option indices of shape (n, n_sites): where the proxy is to be good, such as
            perturbed optima at the budgets of interest.
        held_out: share of them that only checks.
        ridge: strength of the pull to the common weight, relative to the data; chosen by leave-one-out over a grid
            when None.
    """

    name = "calibrated"
    needs = "networks"
    in_metric = True  # as `Energy` is, which a study's is made of

    def __init__(
        self, base: TableProxy, measure: Callable[[Configuration], float], space: SearchSpace, sample: np.ndarray, *,
        held_out: float = 0.25, ridge: float | None = None,
    ) -> None:  # fmt: skip
        if not 0 < held_out < 1 or len(sample) * (1 - held_out) < 4 or len(sample) * held_out < 2:
            raise InvalidArgument(f"sample of {len(sample)} with held_out={held_out}: at least 4 to fit and 2 to check are needed")
        self.base, self.measure, self.space, self.sample = base, measure, space, np.asarray(sample)
        self.share, self.ridge = held_out, ridge

    @classmethod
    def make(cls, context: ProxyContext) -> Self:
        """On `Energy`, fitted near the fronts of it."""
        return cls(Energy(), context.loss, context.space, context.near_fronts(Energy().table(context.space)))

    def table(self, space: SearchSpace) -> Table:
        """See `TableProxy.table`.

        Raises:
            InvalidArgument: a space of other sites than the calibration's."""
        ours, theirs = ([ladder.site.name for ladder in s.ladders] for s in (self.space, space))
        if ours != theirs:
            raise InvalidArgument(f"space with sites {theirs}: the weights were fitted for {ours}; calibrate for this space")
        return Table(tuple(w * v for w, v in zip(self.fit.weights, self._base(space).values, strict=True)), "sum")

    def uncovered(self, space: SearchSpace) -> dict[str, str]:
        """Sites whose weight is at a bound, and what the base does not cover."""
        fit = self.fit
        away = np.abs(np.log(fit.weights / fit.common)) > np.log(SPREAD) * (1 - 1e-3)
        reason = f"its weight is at the bound, a factor {SPREAD:g} from the common one"
        at_bound = {ladder.site.name: reason for ladder, far in zip(space.ladders, away, strict=True) if far}
        return at_bound | dict(self.base.uncovered(space))

    def _base(self, space: SearchSpace) -> Table:
        table = self.base.table(space)
        if table.reduction != "sum":
            raise InvalidArgument(f"base with reduction={table.reduction!r}: an additive table is needed")
        return table

    @cached_property
    def fit(self) -> Fit:
        """The calibration; measured once."""
        table, dense = self._base(self.space), self.measure(Configuration())
        rises = np.array([self.measure(self.space.configuration(row)) for row in self.sample]) - dense
        features = np.stack([v[self.sample[:, s]] for s, v in enumerate(table.values)], axis=1)  # (n, sites)
        check = np.arange(len(rises)) % max(2, round(1 / self.share)) == 0
        fit_x, fit_y = features[~check], np.maximum(rises[~check], 0.0)
        grid = (self.ridge,) if self.ridge is not None else (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
        errors = [_leave_out(fit_x, fit_y, ridge) for ridge in grid]
        weights, common = _ridge(fit_x, fit_y, grid[int(np.argmin(errors))])
        before, after = features[check].sum(axis=1), features[check] @ weights
        return Fit(weights, common, _rank(after, rises[check]), _rank(before, rises[check]), len(rises) + 1)


def _ridge(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """min |(y - x w) / y|^2 + ridge n |(w - w0) s|^2 with w0 / SPREAD <= w <= SPREAD w0; w0 the best common weight, s
    the columns' sizes, so that sites are pulled alike."""
    row = 1 / np.maximum(y, np.median(y) * 0.1 + 1e-12)
    total = x.sum(axis=1) * row
    common = max(float(total @ (y * row) / max(total @ total, 1e-300)), 1e-300)
    size = np.sqrt(np.mean(np.square(x * row[:, None]), axis=0)) + 1e-12 * np.abs(total).max() + 1e-300
    pull = np.sqrt(ridge * len(y)) * size
    left = np.concatenate([x * row[:, None], np.diag(pull)])
    # in units of the common weight
    found = lsq_linear(left * common, np.concatenate([y * row, pull * common]), bounds=(1 / SPREAD, SPREAD))
    return found.x * common, common


def _leave_out(x: np.ndarray, y: np.ndarray, ridge: float, folds: int = 4) -> float:
    """Squared relative error under cross-validation."""
    error = 0.0
    for fold in range(folds):
        out = np.arange(len(y)) % folds == fold
        weights, _ = _ridge(x[~out], y[~out], ridge)
        error += float(np.square((x[out] @ weights - y[out]) / np.maximum(y[out], np.median(y) * 0.1 + 1e-12)).sum())
    return error


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr  # half a second to import: not before it is needed

    return float(spearmanr(a, b).statistic)  # type: ignore[attr-defined]
