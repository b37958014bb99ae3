"""The weight that a layer is to have on the inputs of the compressed network: ridge regression of the dense answers, anchored at the
dense weight, and the metric in which a factorized layer falls short of it (AA-SVD, 2026)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.decompositions import Moments
from ranksearch.decompositions.metric import FLOOR, FlooredMoments, halved
from ranksearch.networks.reconstruction.moments import LayerMoments

LEAST = 1e-3  # of the mean square of an input: an input counts as that large at least
MARGIN = 1.1  # over the floor of a moment, which rises with what is added to it


@dataclass(frozen=True)
class Goal:
    """The squared error of a layer with weight V, and the bias that is best for V, is a constant and
    tr(G (V - weight) A (V - weight)^T).

    Attributes:
        weight: canonical, float64.
        moments: A, with the ridge in it, and G, both floored.
    """

    weight: Tensor
    moments: Moments
    mean_input: Tensor | None  # shape (groups, d); None: the layer has no bias
    mean_answer: Tensor | None  # shape (groups, c_out / groups)

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
    inputs, cross = seen.inputs[:, :-1, :-1] / seen.count, seen.cross[..., :-1] / seen.count
    mean_input = mean_answer = None
    if site.bias:
        mean_input, mean_answer = seen.inputs[:, :-1, -1] / seen.count, seen.cross[..., -1] / seen.count
        cross = cross - mean_answer[..., None] * mean_input[:, None, :]
        inputs = inputs - mean_input[..., None] * mean_input[:, None, :]
    anchor = dense.double().reshape(site.groups, site.c_out // site.groups, -1)
    sizes = inputs.diagonal(dim1=1, dim2=2).clamp_min(0)
    pull = ridge * (sizes + LEAST * sizes.mean(dim=1, keepdim=True))
    pull = torch.maximum(pull, MARGIN * FLOOR * (sizes + pull).sum(dim=1, keepdim=True))
    raised, triangle = halved(lifted := inputs + torch.diag_embed(pull))
    anchored = anchor * pull[:, None, :] if raised is lifted else anchor @ (raised - inputs)
    found = torch.cholesky_solve((cross + anchored).mT, triangle).mT
    return Goal(found.reshape(site.shape), FlooredMoments(raised, seen.output, triangle), mean_input, mean_answer)
