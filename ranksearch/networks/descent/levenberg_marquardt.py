"""Least squares in the metric |R|^2 = tr(G R A R^T) over all factors of a layer at once (Levenberg, 1944; Marquardt, 1963)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.networks.descent.axes import Axes
from ranksearch.networks.descent.curvature import Block, Curvature
from ranksearch.networks.descent.views import Compose, Parts, View, view_of
from ranksearch.networks.descent.weighing import Weighing

DAMPING = 1e-2  # at first, of each factor's curvature
FALLS, RISES, LEAST = 4.0, 8.0, 1e-6  # damping after a step that was taken, after one that was not, and at least
TRIES = 10  # of one step, at rising damping
GAIN = 1e-4  # of the error: a step that gains less is the last, unless it is damped more than the first
LARGE = 1 << 15  # entries of a weight, from which on steps are made in float32: of smaller ones in float64, in hardly more time
ROUNDING = 1e-26  # of the weight's energy: an error below it is not descended on
SOLVED = 1e-4  # of the first squared residual of a linear system: it is solved as far as its model of the error is worth


def descend(
    compose: Compose, factors: Sequence[Tensor], weight: Tensor, weighing: Weighing, *, steps: int, inner: int,
    axes: Sequence[str] | None = None, free: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Factors whose composed weight is nearer to ``weight``: steps that move all factors together, where `refinement.refine` moves one
    after the other and crawls along the valleys that products of many factors have.

    A step x minimises |weight - compose(factors) - J x|^2 + damping x^T P x by conjugate gradients, preconditioned with P: the `Curvature`
    of every factor, or where nobody has said what its axes are, a number, its curvature along its gradient. It is taken if the error
    falls; otherwise it is tried again with more damping. The error never grows. Factors of integers (an order of channels) stay.

    With P, no matter how the factors share out their product among them, a step is the same, and conjugate gradients need a quarter of
    the iterations or fewer.

    Steps of a large weight are made in float32, in half of the time or, on most GPUs, in far less, and taken in float64: what rounding
    makes of a direction the next step mends, as in iterative refinement of linear systems. It costs conjugate gradients an iteration or so.

    Args:
        compose: multilinear in the factors, and differentiable twice; its value has the shape of ``weight``, and the precision of the
            factors.
        weight: shape (groups, c_out / groups, c_in / groups, kh, kw), float64.
        weighing: by the metric, as it is.
        steps: at most so many.
        inner: at most so many conjugate gradients per step.
        axes: of the factors, see `Decomposition.axes`.
        free: places of the factors that may move; None: of all.

    Raises:
        InvalidArgument: ``axes`` do not join the factors into a tree.
    """
    places = [k for k in (range(len(factors)) if free is None else free) if factors[k].is_floating_point()]
    known = None if axes is None else Axes(axes, factors, weight.shape)
    view = view_of(compose, factors, weighing := weighing.in_unit_of(weight), known)
    now = _Place.first(view, weight, factors, places)
    damping, rough = DAMPING, view.rough() if weight.numel() >= LARGE else view
    curvature = None if known is None else Curvature(known, weighing, weight.device)
    for _ in range(steps):
        if now.error < ROUNDING:  # the energy is near 1
            break
        system = _Linearized(now, rough, curvature)
        for _ in range(TRIES):
            new = now.moved(system.solve(damping, inner))
            if new.error < now.error:
                break
            damping *= RISES
        else:
            break
        small, now = damping <= DAMPING and now.error - new.error < GAIN * now.error, new
        damping = max(damping / FALLS, LEAST)
        if small:
            break
    return tuple(now.factors)


class _Place:
    """Factors, their error, and its slope in what is seen of the composed weight."""

    def __init__(self, view: View, wanted: tuple[Parts, Parts], factors: list[Tensor], free: Sequence[int]) -> None:
        self.view, self.wanted, self.factors, self.free = view, wanted, factors, free
        with torch.no_grad():
            lacking, beside = (_less(*pair) for pair in zip(wanted, view.seen_and_beside(factors), strict=True))
        self.slope = view.behind(beside)
        self.error = _dot(lacking, self.slope)

    @staticmethod
    def first(view: View, weight: Tensor, factors: Sequence[Tensor], free: Sequence[int]) -> _Place:
        """Where a descent to a weight begins."""
        seen = view.of(weight)
        return _Place(view, (seen, view.beside(seen)), [factor.detach().clone() for factor in factors], free)

    @torch.no_grad()
    def moved(self, step: Sequence[Tensor]) -> _Place:
        factors = list(self.factors)
        for k, part in zip(self.free, step, strict=True):
            factors[k] = factors[k] + part
        return _Place(self.view, self.wanted, factors, self.free)


class _Linearized:
    """The error around a place, with what is seen linear in all factors together, in the precision of a view."""

    def __init__(self, place: _Place, view: View, curvature: Curvature | None = None) -> None:
        self._view = view
        factors = [f.to(view.dtype, copy=True) if f.is_floating_point() else f for f in place.factors]
        with torch.enable_grad():
            every = [f.detach().requires_grad_(k in place.free) for k, f in enumerate(factors)]
            self._variables = [every[k] for k in place.free]
            self._seen, beside = view.seen_and_beside(every)
            self._slopes = [torch.zeros_like(part, requires_grad=True) for part in beside]
            self._transposed = torch.autograd.grad(beside, self._variables, self._slopes, create_graph=True)
        self._gradient = self._pulled([part.to(view.dtype) for part in place.slope])
        if curvature is None:
            self._blocks: Sequence[Block | _Number] = [_Number(self._along(k, part)) for k, part in enumerate(self._gradient)]
        else:
            self._blocks = curvature.at(place.factors, place.free, view.dtype)

    def solve(self, damping: float, inner: int) -> list[Tensor]:
        """The step, by preconditioned conjugate gradients. What P makes of a direction follows from what it was made of."""
        step = [torch.zeros_like(part) for part in self._gradient]
        left = image = list(self._gradient)
        direction = ahead = self._solved(left)
        size = first = _dot(left, ahead)
        for _ in range(inner):
            if not size > SOLVED * first:
                break
            pushed = self._pulled(self._weighed(direction))
            pushed = [p + damping * i for p, i in zip(pushed, image, strict=True)]
            curvature = _dot(direction, pushed)
            if not curvature > 0:
                break
            length = size / curvature
            step = [s + length * d for s, d in zip(step, direction, strict=True)]
            left = [r - length * p for r, p in zip(left, pushed, strict=True)]
            ahead = self._solved(left)
            last, size = size, _dot(left, ahead)
            direction, image = ([a + size / last * b for a, b in zip(*pair, strict=True)] for pair in ((ahead, direction), (left, image)))
        return step

    def _solved(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """What P makes into them."""
        return [block.solved(part) for block, part in zip(self._blocks, parts, strict=True)]

    def _pulled(self, slopes: Sequence[Tensor], of: slice = slice(None)) -> list[Tensor]:
        """J^T of slopes in what is seen, for all factors or some."""
        return list(torch.autograd.grad(self._seen, self._variables[of], slopes, retain_graph=True))

    def _weighed(self, step: Sequence[Tensor], of: slice = slice(None)) -> Parts:
        """G (J of a step, of all factors or some) B: the derivative of (G J)^T, which is linear, in slopes."""
        return self._view.behind(torch.autograd.grad(self._transposed[of], self._slopes, step, retain_graph=True))

    def _along(self, k: int, along: Tensor) -> float:
        """The curvature of the error in one factor, along its gradient; 1 where that is zero."""
        one = slice(k, k + 1)
        found, square = _dot(self._pulled(self._weighed([along], one), one), [along]), float(along.square().sum())
        return found / square if found > 0 and square > 0 else 1.0


@dataclass(frozen=True)
class _Number:
    """The curvature of one factor, the same in all directions."""

    value: float

    def solved(self, part: Tensor) -> Tensor:
        """See `Block.solved`."""
        return part / self.value


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


def _less(one: Parts, other: Parts) -> Parts:
    return tuple(a - b for a, b in zip(one, other, strict=True))
