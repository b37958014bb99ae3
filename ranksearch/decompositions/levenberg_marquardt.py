"""Least squares in the metric |R|^2 = tr(G R A R^T) over all factors of a layer at once (Levenberg, 1944; Marquardt, 1963)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.decompositions.curvature import Block, Curvature
from ranksearch.decompositions.weighing import Weighing

Compose = Callable[[Sequence[Tensor]], Tensor]

DAMPING = 1e-2  # at first, of each factor's curvature
FALLS, RISES, LEAST = 4.0, 8.0, 1e-6  # damping after a step that was taken, after one that was not, and at least
TRIES = 10  # of one step, at rising damping
GAIN = 1e-4  # of the error: a step that gains less is the last, unless it is damped more than the first
LARGE = 1 << 15  # entries of a weight, from which on steps are made in float32: of smaller ones in float64, in hardly more time
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
        compose: multilinear in the factors; its value has the shape of ``weight``, and the precision of the factors.
        weight: shape (groups, c_out / groups, c_in / groups, kh, kw), float64.
        weighing: by the metric, as it is.
        steps: at most so many.
        inner: at most so many conjugate gradients per step.
        axes: of the factors, see `Decomposition.axes`.
        free: places of the factors that may move; None: of all.
    """
    weighing = weighing.in_unit_of(weight)
    places = [k for k in (range(len(factors)) if free is None else free) if factors[k].is_floating_point()]
    now = _Place(compose, [factor.detach().clone() for factor in factors], places, weight, weighing)
    damping, rough = DAMPING, weighing.rough() if weight.numel() >= LARGE else weighing
    curvature = None if axes is None else Curvature(axes, factors, weight.shape, weighing)
    for _ in range(steps):
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
    """Factors, their error, and its slope in the composed weight."""

    def __init__(self, compose: Compose, factors: list[Tensor], free: Sequence[int], weight: Tensor, weighing: Weighing) -> None:
        self.compose, self.factors, self.free, self.weight, self.weighing = compose, factors, free, weight, weighing
        with torch.no_grad():
            residual = weight - compose(factors)
        self.slope = weighing(residual)
        self.error = float((residual * self.slope).sum())

    @torch.no_grad()
    def moved(self, step: Sequence[Tensor]) -> _Place:
        factors = list(self.factors)
        for k, part in zip(self.free, step, strict=True):
            factors[k] = factors[k] + part
        return _Place(self.compose, factors, self.free, self.weight, self.weighing)


class _Linearized:
    """The error around a place, with the composed weight linear in all factors together, in the precision of a weighing."""

    def __init__(self, place: _Place, weighing: Weighing, curvature: Curvature | None = None) -> None:
        self._compose, self._free, self._weighing = place.compose, place.free, weighing
        self._factors = [f.to(weighing.dtype, copy=True) if f.is_floating_point() else f for f in place.factors]
        with torch.enable_grad():
            every = [f.detach().requires_grad_(k in place.free) for k, f in enumerate(self._factors)]
            self._variables, self._value = [every[k] for k in place.free], place.compose(every)
        self._gradient = self._pulled(place.slope.to(weighing.dtype))
        if curvature is None:
            self._blocks: Sequence[Block | _Number] = [_Number(self._along(k, part)) for k, part in enumerate(self._gradient)]
        else:
            self._blocks = curvature.at(place.factors, place.free, weighing.dtype)

    def solve(self, damping: float, inner: int) -> list[Tensor]:
        """The step, by preconditioned conjugate gradients. What P makes of a direction follows from what it was made of."""
        step = [torch.zeros_like(part) for part in self._gradient]
        left = image = list(self._gradient)
        direction = ahead = self._solved(left)
        size = first = _dot(left, ahead)
        for _ in range(inner):
            if not size > SOLVED * first:
                break
            pushed = self._pulled(self._weighing(self._pushed(direction)))
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

    def _pulled(self, slope: Tensor) -> list[Tensor]:
        """J^T of a slope in the composed weight."""
        return list(torch.autograd.grad(self._value, self._variables, slope, retain_graph=True))

    @torch.no_grad()
    def _pushed(self, step: Sequence[Tensor]) -> Tensor:
        """J of a step."""
        found = torch.zeros_like(self._value)
        for k, part in enumerate(step):
            found += self._with(k, part)
        return found

    def _with(self, k: int, part: Tensor) -> Tensor:
        """Compose with the k-th free factor replaced."""
        factors = list(self._factors)
        factors[self._free[k]] = part
        return self._compose(factors)

    @torch.no_grad()
    def _along(self, k: int, along: Tensor) -> float:
        """The curvature of the error in one factor, along its gradient; 1 where that is zero."""
        change = self._with(k, along)
        found, square = float((change * self._weighing(change)).sum()), float(along.square().sum())
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
