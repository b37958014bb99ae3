"""What is known of every option of every site before anything is measured: the logarithm of the loss that it is expected to cost, and the
directions in which measurements may correct that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ranksearch.errors import InvalidArgument
from ranksearch.space import Ladder, SearchSpace
from ranksearch.space.table import Table

LARGEST = 300.0  # logarithm of what an option adds: the sum over all sites is a number
TINY = 1e-9  # of the largest value of a table: what is below it cannot be told from no change at all


@dataclass(frozen=True)
class Curves:
    """The logarithm of what site s at option o adds to the loss, before the link:

        base[s][o] + common[s][o] . b + scale_s + steepness_s * slope[s][o]

    with b the same for all sites, and a scale and a steepness of every site, all near 0 (`ranksearch.surrogate.model`).

    Attributes:
        base: float64, shape: (n_options,) each; -inf where an option changes nothing, as the dense one.
        common: float64, shape: (n_options, n_common) each.
        slope: float64, shape: (n_options,) each, 0 at a middling option.
        spread: standard deviations of b in the prior, float64, shape: (n_common,).
    """

    base: tuple[np.ndarray, ...]
    common: tuple[np.ndarray, ...]
    slope: tuple[np.ndarray, ...]
    spread: np.ndarray

    @property
    def n_sites(self) -> int:
        """How many sites there are."""
        return len(self.base)

    def at(self, indices: np.ndarray) -> Chosen:
        """What is known of the options that configurations have, of option indices of shape (n, n_sites)."""
        rows = self._first + indices
        base, common, slope = self._stacked
        return Chosen(base[rows], common[rows], slope[rows])

    def added(self, parameters: np.ndarray) -> list[np.ndarray]:
        """What every option adds before the link, shape: (n_options,) per site.

        Args:
            parameters: b, then scales, then steepnesses; what follows is not looked at.
        """
        base, common, slope = self._stacked
        b, scale, steepness = _split(parameters, common.shape[1], self.n_sites)
        logs = base + common @ b + scale[self._site] + steepness[self._site] * slope
        return np.split(np.exp(np.minimum(logs, LARGEST)), self._first[1:])

    @cached_property
    def _stacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The arrays of all sites, one below the other."""
        return np.concatenate(self.base), np.concatenate(self.common), np.concatenate(self.slope)

    @cached_property
    def _site(self) -> np.ndarray:
        """The site of every row of these."""
        return np.repeat(np.arange(self.n_sites), [len(base) for base in self.base])

    @cached_property
    def _first(self) -> np.ndarray:
        """Their first row of every site."""
        return np.concatenate([[0], np.cumsum([len(base) for base in self.base[:-1]])]).astype(np.int64)


@dataclass(frozen=True)
class Chosen:
    """`Curves` at one option of every site, gathered once for the many parameters that a fit goes through; shapes: (n, n_sites) of ``base``
    and ``slope``, (n, n_sites, n_common) of ``common``."""

    base: np.ndarray
    common: np.ndarray
    slope: np.ndarray

    def logs(self, parameters: np.ndarray) -> np.ndarray:
        """Logarithms of what these options add before the link, shape: (n, n_sites); parameters as for `Curves.added`."""
        _, sites, count = self.common.shape
        b, scale, steepness = _split(parameters, count, sites)
        return self.base + self.common @ b + scale + steepness * self.slope


def _split(parameters: np.ndarray, common: int, sites: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those common to all sites, scales, and steepnesses."""
    end = common + sites
    return parameters[:common], parameters[common:end], parameters[end : end + sites]


def curves(space: SearchSpace, table: Table, *, others: Sequence[tuple[Table, float]] = ()) -> Curves:
    """The curves of a space, from a table whose sum is the loss as far as it is small, such as `Energy`'s in the Fisher metric.

    What measurements may correct, of all sites alike: how steep curves are over the relative error e; whether they rise with e^2 or with
    -log(1 - e^2), the logarithm of the kept energy, which a layer that loses all of it sends to infinity; how much of a site's norm counts
    (at one end errors are absolute, at the other relative); how much early sites cost against late ones, since an error is carried
    through all that follows (LEMS's depth factor); and every type beside the common curve.

    Args:
        table: reduction ``sum``, values of at least 0; dense has 0.
        others: further tables, and the standard deviation of the weight that the logarithm of their ratio to ``table`` may get.

    Raises:
        InvalidArgument: tables of another reduction or space.
    """
    base = _logarithms(space, table)
    errors = [_log(np.square(np.nan_to_num(ladder.column("frobenius"), nan=1.0))) for ladder in space.ladders]
    norms = np.array([_typical(_differences(values, error)) for values, error in zip(base, errors, strict=True)])
    norms = norms - norms.mean()
    middle = [_typical(error) for error in errors]
    slopes = [np.where(np.isfinite(e), e - m, 0.0) for e, m in zip(errors, middle, strict=True)]
    steepness = float(np.mean(middle))
    depth = np.linspace(0.5, -0.5, len(base)) if len(base) > 1 else np.zeros(1)
    columns: list[tuple[list[np.ndarray], float]] = [
        ([np.where(np.isfinite(e), e - steepness, 0.0) for e in errors], 0.6),
        ([_lost(error) for error in errors], 0.7),
        ([np.full(len(e), -norm) for e, norm in zip(errors, norms, strict=True)], 0.3),
        ([np.full(len(e), d) for e, d in zip(errors, depth, strict=True)], 0.5),
    ]
    for name in _types(space.ladders):
        columns.append(([ladder.mask((name,)).astype(np.float64) for ladder in space.ladders], 0.3))
    for other, spread in others:
        values = _logarithms(space, other)
        ratios = [_differences(a, b) for a, b in zip(values, base, strict=True)]
        centre = float(np.mean([_typical(ratio) for ratio in ratios]))
        columns.append(([np.where(np.isfinite(ratio), ratio - centre, 0.0) for ratio in ratios], spread))
    common = tuple(np.stack([column[s] for column, _ in columns], axis=1) for s in range(len(base)))
    return Curves(base, common, tuple(slopes), np.array([spread for _, spread in columns]))


def _logarithms(space: SearchSpace, table: Table) -> tuple[np.ndarray, ...]:
    """Logarithms of a table's values; -inf for what changes nothing: dense, and values of no size."""
    if table.reduction != "sum" or tuple(len(values) for values in table.values) != space.shape:
        raise InvalidArgument(f"table with reduction={table.reduction!r}: a model of the loss takes the summed table of its own space")
    largest = max(float(np.max(values)) for values in table.values)
    if not (np.isfinite(largest) and largest > 0 and min(float(values.min()) for values in table.values) >= 0):
        raise InvalidArgument("table: a model of the loss takes finite values of at least 0, of which some are positive")
    found = []
    for values in table.values:
        logs = _log(np.maximum(values, TINY * largest))
        logs[-1] = -np.inf
        found.append(logs)
    return tuple(found)


def _lost(errors: np.ndarray) -> np.ndarray:
    """Logarithm of -log(1 - e^2) / e^2, from the logarithm of e^2: 0 for small errors."""
    squared = np.minimum(np.exp(errors), 1 - 1e-6)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(squared > 1e-9, np.log(-np.log1p(-squared) / squared), 0.0)


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(values)


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b where both are finite, else NaN."""
    both = np.isfinite(a) & np.isfinite(b)
    return np.where(both, np.where(both, a, 0.0) - np.where(both, b, 0.0), np.nan)


def _typical(values: np.ndarray) -> float:
    """Median of the finite ones; 0 where there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else 0.0


def _types(ladders: Sequence[Ladder]) -> list[str]:
    """The types that get a correction of their own: all but the one with most options, which the common curve is of."""
    counts: dict[str, int] = {}
    for ladder in ladders:
        for name in ladder.present - {"dense"}:
            counts[name] = counts.get(name, 0) + int(ladder.mask((name,)).sum())
    return sorted(counts, key=lambda name: (-counts[name], name))[1:]
