"""A model of the loss that a configuration is expected to have: additive over sites before a saturating link, fitted by least squares with
a prior to whatever was measured, with the covariance of what the measurements leave open.

With z the sum over sites of what each adds (`ranksearch.surrogate.curves`), the rise of channel k (a metric at a fidelity) is

    rise = v / (1 + v / ceiling_k),  v = exp(shift_k) z ^ exponent_k

which grows in proportion to z where losses are small, faster or slower than the sum where they are not (``exponent``: beyond second order,
errors of sites interact), and without end nowhere. All channels share the sites: few costly evaluations and many cheap ones fit one model.
One single site's measured loss, as LEMS (ICML 2026) takes one per site, is an observation like any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from ranksearch.errors import InvalidArgument
from ranksearch.space.table import Table
from ranksearch.surrogate.curves import Chosen, Curves

SCALE, STEEPNESS = 0.5, 0.25  # standard deviations of a site's own scale and steepness in the prior
SHIFT, EXPONENT, CEILING = 3.0, 0.3, 1.0  # and of the three logarithms of a link
NOISE = 0.1  # of a measurement in the transformed scale, before it is known better; this counts as much as `PSEUDO` observations
PSEUDO = 4.0
LINK = 3  # parameters of a link: shift, logarithm of the exponent, logarithm of the ceiling
STEPS, ROUNDS = 30, 4  # of Gauss and Newton, per estimate of the noise; and estimates of the noise


@dataclass(frozen=True)
class Observations:
    """What was measured.

    Attributes:
        indices: options of the sites, int64, shape: (n, n_sites).
        rises: the measured loss less the dense network's, float64, shape: (n,); negative ones are taken.
        channels: which metric and fidelity each belongs to, int64, shape: (n,); None: one for all.
        noise: standard deviations relative to each other, float64, shape: (n,); None: alike.
        floors: per channel, below which differences of a rise mean nothing; None: a hundredth of the median rise.

    Raises:
        InvalidArgument: shapes that do not fit, or values that are not finite.
    """

    indices: np.ndarray
    rises: np.ndarray
    channels: np.ndarray | None = None
    noise: np.ndarray | None = None
    floors: Sequence[float] | None = None

    def __post_init__(self) -> None:
        count = len(self.rises)
        wrong = [a for a in (self.indices, self.channels, self.noise) if a is not None and len(a) != count]
        if wrong or np.ndim(self.indices) != 2:
            raise InvalidArgument(f"indices of shape {np.shape(self.indices)} do not fit {count} rises: one row per rise")
        if not np.isfinite(self.rises).all():
            raise InvalidArgument("rises hold NaN or infinite values: leave failed measurements out")


@dataclass(frozen=True)
class LossModel:
    """A fitted model. Parameters are one vector: those common to all sites, scales and steepnesses of the sites, and the links.

    Attributes:
        curves: what it corrects.
        mean: parameters of the most likely model, float64, shape: (n_parameters,).
        root: lower triangle L of the precision L L^T of the parameters, shape: (n_parameters, n_parameters).
        noise: standard deviation of measurements in the transformed scale, per channel.
        floors: of the transformed scale, asinh(rise / floor), per channel.
    """

    curves: Curves
    mean: np.ndarray
    root: np.ndarray
    noise: np.ndarray
    floors: np.ndarray

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Parameters drawn from what the measurements leave open (Laplace's approximation), shape: (n_parameters,)."""
        return self.mean + solve_triangular(self.root, random.standard_normal(len(self.mean)), lower=True, trans=1)

    def table(self, parameters: np.ndarray | None = None) -> Table:
        """What every option adds before the link: its least sum within a budget is the least loss there, whatever the link is."""
        return Table(tuple(self.curves.added(self.mean if parameters is None else parameters)), "sum")

    def rises(self, indices: np.ndarray, *, channel: int = 0, parameters: np.ndarray | None = None) -> np.ndarray:
        """Expected rises of configurations, float64, shape: (n,).

        Args:
            indices: shape: (n, n_sites).
            parameters: those of `draw`; None: the most likely ones.
        """
        parameters = self.mean if parameters is None else parameters
        return self.linked(self.table(parameters).score(np.asarray(indices)), channel=channel, parameters=parameters)

    def linked(self, sums: np.ndarray, *, channel: int = 0, parameters: np.ndarray | None = None) -> np.ndarray:
        """Expected rises where sums of `table` are given, same shape."""
        parameters = self.mean if parameters is None else parameters
        with np.errstate(divide="ignore"):
            return np.exp(_link(np.log(sums), _link_of(self.curves, parameters, channel)).log_rise)

    def deviation(self, indices: np.ndarray, *, channel: int = 0) -> np.ndarray:
        """Standard deviation of the transformed expected rises, asinh(rise / floor), to first order; noise is not in it; shape: (n,)."""
        indices = np.asarray(indices)
        found = _jacobian(self.curves.at(indices), self.mean, np.full(len(indices), channel), self.floors)
        return np.sqrt(np.square(solve_triangular(self.root, found.jacobian.T, lower=True)).sum(axis=0))

    def transformed(self, rises: np.ndarray, *, channel: int = 0) -> np.ndarray:
        """asinh(rise / floor): in proportion to small rises and to the logarithm of large ones; same shape."""
        return np.arcsinh(rises / self.floors[channel])


def fit(curves: Curves, seen: Observations, *, start: LossModel | None = None) -> LossModel:
    """The most likely model of what was measured.

    Differences are taken between asinh(rise / floor): relative where rises are large, absolute where they are small or negative. The
    noise of every channel is estimated along with the parameters; few observations leave it near what is usual. The dense network's say
    nothing; without any others the model is the prior.

    Cost: a few dozen steps of O(n p^2 + p^3), p = 2 sites and a dozen.

    Args:
        start: a model to start from, of the same curves and channels, such as that of the observations before.

    Raises:
        InvalidArgument: indices that do not fit.
    """
    if np.size(seen.indices) != len(seen.rises) * curves.n_sites:
        raise InvalidArgument(f"indices of shape {np.shape(seen.indices)} do not fit curves of {curves.n_sites} sites")
    channels = np.zeros(len(seen.rises), dtype=np.int64) if seen.channels is None else seen.channels
    everything = np.asarray(seen.indices, dtype=np.int64).reshape(len(channels), curves.n_sites)
    changed = np.logical_or.reduce([np.isfinite(b[everything[:, s]]) for s, b in enumerate(curves.base)])
    count = max(int(channels.max(initial=0)) + 1, 0 if seen.floors is None else len(seen.floors))
    indices, rises, channels = everything[changed], seen.rises[changed], channels[changed]
    relative = np.ones(len(rises)) if seen.noise is None else seen.noise[changed]
    floors = np.array(seen.floors) if seen.floors is not None else _floors(rises, channels, count)
    prior = _Prior.of(curves, indices, rises, channels, floors)
    target = np.arcsinh(rises / floors[channels])
    chosen = curves.at(indices)
    mean = start.mean if start is not None and start.mean.shape == prior.mean.shape else prior.mean
    noise = np.full(count, NOISE)
    root = np.diag(np.sqrt(prior.precision))
    for _ in range(ROUNDS):
        weights = 1 / (noise[channels] * relative)
        mean, root, residual, jacobian = _least_squares(chosen, mean, prior, channels, floors, target, weights)
        used = np.square(solve_triangular(root, (jacobian * weights[:, None]).T, lower=True)).sum(axis=0)  # leverages
        before, noise = noise, _noises(residual / relative, used, channels, count)
        if np.allclose(noise, before, rtol=0.05):
            break
    return LossModel(curves, mean, root, noise, floors)


def _noises(residual: np.ndarray, used: np.ndarray, channels: np.ndarray, count: int) -> np.ndarray:
    """Standard deviations of the channels' residuals, those of parameters that were fitted made up for, drawn to the usual one."""
    found = np.empty(count)
    for channel in range(count):
        mine = channels == channel
        free = max(float((1 - np.minimum(used[mine], 1.0)).sum()), 0.0)
        found[channel] = np.sqrt((np.square(residual[mine]).sum() + PSEUDO * NOISE**2) / (free + PSEUDO))
    return np.clip(found, 0.01, 3.0)


@dataclass(frozen=True)
class _Prior:
    """Independent normal distributions of the parameters."""

    mean: np.ndarray
    precision: np.ndarray

    @classmethod
    def of(cls, curves: Curves, indices: np.ndarray, rises: np.ndarray, channels: np.ndarray, floors: np.ndarray) -> _Prior:
        """Nothing is to be corrected; every link has the shift that makes up for the unit of its metric, and a ceiling above all rises."""
        sites = curves.n_sites
        deviations = [curves.spread, np.full(sites, SCALE), np.full(sites, STEEPNESS)]
        means = [np.zeros(len(curves.spread) + 2 * sites)]
        parts = [b[indices[:, s]] for s, b in enumerate(curves.base)]
        sums = np.logaddexp.reduce(np.stack(parts, axis=1), axis=1)
        for channel, floor in enumerate(floors):
            mine = channels == channel
            positive = np.maximum(rises[mine], floor)
            shift = float(np.median(np.log(positive) - sums[mine])) if mine.any() else 0.0
            ceiling = np.log(3 * float(positive.max())) if mine.any() else 0.0
            means.append(np.array([shift, 0.0, ceiling]))
            deviations.append(np.array([SHIFT, EXPONENT, CEILING]))
        return cls(np.concatenate(means), 1 / np.square(np.concatenate(deviations)))


def _floors(rises: np.ndarray, channels: np.ndarray, count: int) -> np.ndarray:
    """A hundredth of the median size of a channel's rises."""
    sizes = [np.abs(rises[(channels == channel) & (rises != 0)]) for channel in range(count)]
    return np.array([max(0.01 * float(np.median(size)), 1e-12) if len(size) else 1.0 for size in sizes])


def _least_squares(
    chosen: Chosen, mean: np.ndarray, prior: _Prior, channels: np.ndarray, floors: np.ndarray, target: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Levenberg's and Marquardt's minimum of |weights (target - expected)|^2 + |parameters - prior|^2 in the prior's precision.

    Returns:
        parameters; lower triangle of the precision there; residuals; Jacobian, shape: (n, n_parameters)."""

    def total(found: _Expected, parameters: np.ndarray) -> float:
        return float(np.square(weights * (target - found.value)).sum() + (prior.precision * np.square(parameters - prior.mean)).sum())

    def curvature(found: _Expected) -> tuple[np.ndarray, np.ndarray]:
        scaled = found.jacobian * weights[:, None]
        hessian = scaled.T @ scaled
        hessian[diagonal] += prior.precision
        return scaled, hessian

    diagonal = np.diag_indices(len(mean))
    found = _jacobian(chosen, mean, channels, floors)
    value, damping = total(found, mean), 1e-3
    scaled, hessian = curvature(found)
    for _ in range(STEPS):
        gradient = scaled.T @ (weights * (target - found.value)) - prior.precision * (mean - prior.mean)
        damped = hessian.copy()
        damped[diagonal] *= 1 + damping
        step = cho_solve(cho_factor(damped, lower=True, overwrite_a=True, check_finite=False), gradient, check_finite=False)
        trial = _jacobian(chosen, mean + step, channels, floors)
        after = total(trial, mean + step)
        if after < value:
            gain, mean, found, value, damping = value - after, mean + step, trial, after, damping * 0.3
            scaled, hessian = curvature(found)
            if gain < 1e-6 * (1 + value):
                break
        elif damping > 1e8:
            break
        else:
            damping *= 5
    return mean, np.linalg.cholesky(hessian), target - found.value, found.jacobian


@dataclass(frozen=True)
class _Expected:
    """Transformed expected rises, shape: (n,), and their derivatives, shape: (n, n_parameters)."""

    value: np.ndarray
    jacobian: np.ndarray


def _jacobian(chosen: Chosen, parameters: np.ndarray, channels: np.ndarray, floors: np.ndarray) -> _Expected:
    count, sites, shared = chosen.common.shape
    logs = chosen.logs(parameters)
    log_sum = np.logaddexp.reduce(logs, axis=1)
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(np.exp(logs - log_sum[:, None]))  # of each site in the sum; none in the dense network
    by_log_sum = np.concatenate([(share[:, None] @ chosen.common)[:, 0], share, share * chosen.slope], axis=1)
    jacobian = np.zeros((count, len(parameters)))
    value = np.empty(count)
    for channel in range(len(floors)):
        mine = channels == channel
        place = shared + 2 * sites + LINK * channel
        link = _link(log_sum[mine], parameters[place : place + LINK])
        rise = np.exp(link.log_rise) / floors[channel]
        value[mine] = np.arcsinh(rise)
        outer = (rise / np.sqrt(1 + np.square(rise)))[:, None]  # of asinh(rise / floor) by the logarithm of the rise
        jacobian[mine, : shared + 2 * sites] = outer * link.by_log_sum[:, None] * by_log_sum[mine]
        jacobian[mine, place : place + LINK] = outer * link.by_link
    return _Expected(value, jacobian)


def _link_of(curves: Curves, parameters: np.ndarray, channel: int) -> np.ndarray:
    place = len(curves.spread) + 2 * curves.n_sites + LINK * channel
    return parameters[place : place + LINK]


@dataclass(frozen=True)
class _Linked:
    log_rise: np.ndarray  # shape: (n,)
    by_log_sum: np.ndarray  # its derivative by the logarithm of the sum, shape: (n,)
    by_link: np.ndarray  # and by shift and the logarithms of exponent and ceiling, shape: (n, 3)


def _link(log_sum: np.ndarray, link: np.ndarray) -> _Linked:
    shift, exponent, ceiling = link[0], np.exp(link[1]), link[2]
    below = np.maximum(log_sum, -700.0)  # the dense network's sum is 0: its rise is, too
    raised = shift + exponent * below
    over = np.logaddexp(0.0, raised - ceiling)  # log(1 + v / ceiling)
    kept = np.exp(-over)
    by_link = np.stack([kept, kept * exponent * below, 1 - kept], axis=1)
    return _Linked(raised - over, kept * exponent, by_link)
