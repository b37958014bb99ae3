"""The weight that a layer is to have on the inputs of the compressed network: ridge regression of the dense answers, anchored at the
dense weight, and the metric in which a factorized layer falls short of it (AA-SVD, 2026)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ranksearch.decompositions import Moments
from ranksearch.decompositions.metric import FLOOR, FlooredMoments, halved
from ranksearch.decompositions.symmetric import cholesky_ex
from ranksearch.networks.descent import Spanned, Weighing
from ranksearch.networks.reconstruction.moments import Example, LayerMoments

LEAST = 1e-3  # of the mean square of an input: an input counts as that large at least
MARGIN = 1.1  # over the floor of a moment, which rises with what is added to it


@dataclass(frozen=True)
class Goal:
    """The squared error of a layer with weight V, and the bias that is best for V, is a constant and
    tr(G (V - weight) A (V - weight)^T).

    Attributes:
        weight: canonical, float64.
        gram: weight A weight^T, shape (groups, c_out / groups, c_out / groups).
        output: G, floored.
        metric: makes A, with the ridge in it, and G, both floored. Types whose best factors `gram` tells need no A.
        weighing: by A and G, where a descent asks for products with them alone.
    """

    weight: Tensor
    gram: Tensor
    output: Tensor | None
    metric: Callable[[], Moments]
    weighing: Callable[[], Weighing]
    mean_input: Tensor | None  # shape (groups, d); None: the layer has no bias
    mean_answer: Tensor | None  # shape (groups, c_out / groups)

    @cached_property
    def moments(self) -> Moments:
        """What ``metric`` makes."""
        return self.metric()

    def bias(self, weight: Tensor) -> Tensor | None:
        """The best bias for a canonical weight, shape (c_out,)."""
        if self.mean_input is None or self.mean_answer is None:
            return None
        flat = weight.reshape(len(self.mean_input), -1, self.mean_input.shape[1])
        return (self.mean_answer - (flat @ self.mean_input[..., None])[..., 0]).flatten()


def goal(seen: LayerMoments, dense: Tensor, ridge: float) -> Goal:
    """The V that minimises mean |y - V x - b|^2 + ridge sum_i mean(x_i^2) |V_i - dense_i|^2 over V and, where the layer has one, b.

    Every input counts in its own unit: a few channels of a language model carry nearly all energy. With a bias, inputs and answers are
    taken about their means.

    Args:
        dense: the dense layer's canonical weight.
        ridge: at least 0. No input has less of it than the floor of a moment, which so takes no eigendecomposition.
    """
    site = seen.site
    anchor = dense.double().reshape(site.groups, site.c_out // site.groups, -1)
    found = None if seen.examples is None else _of_examples(seen, seen.examples, anchor, ridge)
    return _of_sums(seen, anchor, ridge) if found is None else found


def _pull(sizes: Tensor, ridge: float) -> Tensor:
    """The ridge of every input, of its mean square; both of shape (groups, d)."""
    pull = ridge * (sizes + LEAST * sizes.mean(dim=1, keepdim=True))
    return torch.maximum(pull, MARGIN * FLOOR * (sizes + pull).sum(dim=1, keepdim=True))


def _of_sums(seen: LayerMoments, anchor: Tensor, ridge: float) -> Goal:
    """From normal equations of as many unknowns as inputs: O(d^3)."""
    site = seen.site
    inputs, cross = seen.inputs[:, :-1, :-1] / seen.count, seen.cross[..., :-1] / seen.count
    mean_input = mean_answer = None
    if site.bias:
        mean_input, mean_answer = seen.inputs[:, :-1, -1] / seen.count, seen.cross[..., -1] / seen.count
        cross = cross - mean_answer[..., None] * mean_input[:, None, :]
        inputs = inputs - mean_input[..., None] * mean_input[:, None, :]
    pull = _pull(inputs.diagonal(dim1=1, dim2=2).clamp_min(0), ridge)
    raised, triangle = halved(lifted := inputs + torch.diag_embed(pull))
    anchored = cross + (anchor * pull[:, None, :] if raised is lifted else anchor @ (raised - inputs))
    found = torch.cholesky_solve(anchored.mT, triangle).mT
    moments = FlooredMoments(raised, seen.output, triangle)
    gram = anchored @ found.mT
    return Goal(found.reshape(site.shape), gram, seen.output, lambda: moments, lambda: Weighing(moments), mean_input, mean_answer)


def _of_examples(seen: LayerMoments, examples: Sequence[Example], anchor: Tensor, ridge: float) -> Goal | None:
    """The same from n positions, fewer than inputs, and as many unknowns as these: O(n^2 d) (the kernel form of ridge regression). None
    where a group's inputs do not vary."""
    site = seen.site
    x = torch.cat([one.inputs.double() for one in examples], dim=2)
    y = torch.cat([one.wanted(anchor.shape[1]).double() for one in examples], dim=2)
    mean_input = mean_answer = None
    if site.bias:
        mean_input, mean_answer = x.mean(dim=2), y.mean(dim=2)
        x = x - mean_input[..., None]  # the mean of y then counts for nothing
    x, y = x / seen.count**0.5, y / seen.count**0.5
    pull = _pull(x.square().sum(dim=2), ridge)
    scaled = x / pull[..., None]
    kernel = x.mT @ scaled
    kernel.diagonal(dim1=1, dim2=2).add_(1.0)
    triangle, failed = cholesky_ex(kernel)
    if bool(failed.any()) or not bool((pull > 0).all()):
        return None
    step = torch.cholesky_solve((y - anchor @ x).mT, triangle).mT  # shape: (groups, c_out / groups, n)
    found = anchor + step @ scaled.mT
    given = found @ x
    gram = given @ given.mT + (found * pull[:, None, :]) @ found.mT

    def metric() -> Moments:
        return FlooredMoments(x @ x.mT + torch.diag_embed(pull), seen.output)

    def weighing() -> Weighing:
        return Weighing(Moments(None, seen.output), Spanned(x, pull))

    return Goal(found.reshape(site.shape), gram, seen.output, metric, weighing, mean_input, mean_answer)
