"""The factors of one type and rank that come nearest to a goal: in closed form where there is one, or else by descent over all factors
together from those at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ranksearch.decompositions import AnyDecomposition, Quantized, Rank
from ranksearch.decompositions.metric import conditioned
from ranksearch.decompositions.rounding import layout, round_factors
from ranksearch.networks.descent import descend
from ranksearch.networks.reconstruction.regression import Goal
from ranksearch.sites import Site


class Effort(NamedTuple):
    """What a fit without a closed form may take, see `descend`."""

    steps: int
    inner: int


QUICK, THOROUGH = Effort(5, 6), Effort(12, 10)  # of every fit; each goes on from the one before
BLIND = 2  # times as many conjugate gradients where nothing is known of the factors' axes


def refit(
    decomposition: AnyDecomposition, site: Site, rank: Rank, factors: Sequence[Tensor], goal: Goal, effort: Effort = QUICK
) -> tuple[Tensor, ...]:  # fmt: skip
    """Factors in the layout of the type, of the same shapes, whose weight is no further from the goal's in its metric than that of
    ``factors``: the best for types that are ``optimal``; for others, composed ones too, what Levenberg and Marquardt's descent over all
    factors comes to, which starts from ``factors``."""
    if isinstance(decomposition, Quantized):
        return rounded(decomposition, site, refit(decomposition.inner, site, rank, factors, goal, effort), goal, effort)
    if decomposition.optimal:
        found = decomposition.of_gram(site, goal.weight, goal.gram, goal.output, rank)
        if found is not None:
            return found
        return decomposition.factors(decomposition.prepare(site, goal.weight, goal.moments), rank)
    return _refined(decomposition, site, list(factors), range(len(factors)), goal, effort)


def rounded(
    decomposition: Quantized, site: Site, factors: Sequence[Tensor], goal: Goal, effort: Effort = QUICK
) -> tuple[Tensor, ...]:  # fmt: skip
    """Factors rounded one layer after the other, first to last; what rounding lost is made up for by the layers behind it."""
    layers = layout(decomposition.inner, site, factors)
    blocks = goal.weight.reshape(site.groups, site.c_out // site.groups, *site.shape[1:])
    found = list(decomposition.scaled(layers, site, tuple(factors), blocks, conditioned(goal.moments, goal.weight)))
    left = [k for k, factor in enumerate(found) if factor.is_floating_point()]
    starts = torch.tensor([0, *(found[k].numel() for k in left)]).cumsum(0)
    places = list(left)
    for layer in layers:
        found = list(round_factors([layer], found, decomposition.bits))
        left.remove(places[int(torch.searchsorted(starts, int(layer.places.flatten()[0]), right=True)) - 1])
        if left:
            found = list(_refined(decomposition.inner, site, found, left, goal, effort))
    return tuple(found)


def _refined(
    decomposition: AnyDecomposition, site: Site, factors: list[Tensor], free: Sequence[int], goal: Goal, effort: Effort
) -> tuple[Tensor, ...]:  # fmt: skip
    """Factors of which those at ``free`` have descended on the error, the others being as they are."""
    blocks = (site.groups, site.c_out // site.groups, *site.shape[1:])

    def compose(parts: Sequence[Tensor]) -> Tensor:
        return decomposition.compose(site, tuple(parts)).reshape(blocks)

    axes = decomposition.axes(site)
    inner = effort.inner if axes is not None else BLIND * effort.inner
    weight = goal.weight.reshape(blocks)
    return descend(compose, factors, weight, goal.weighing(), steps=effort.steps, inner=inner, axes=axes, free=free)
