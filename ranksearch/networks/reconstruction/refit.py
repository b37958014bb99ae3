"""The factors of one type and rank that come nearest to a goal: in closed form where there is one, or else alternating over all
factors from those at hand."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ranksearch.decompositions import AnyDecomposition, Rank
from ranksearch.decompositions.metric import conditioned
from ranksearch.decompositions.refinement import refine
from ranksearch.networks.reconstruction.regression import Goal
from ranksearch.sites import Site

SWEEPS = 4  # over all factors
STEPS = 8  # of conjugate gradients per factor and sweep


def refit(decomposition: AnyDecomposition, site: Site, rank: Rank, factors: Sequence[Tensor], goal: Goal) -> tuple[Tensor, ...]:
    """Factors in the layout of the type, of the same shapes, whose weight is no further from the goal's in its metric than that of
    ``factors``: the best for types that are ``optimal``; for others, composed ones too, a local optimum of alternating least squares
    over every factor, which starts from ``factors``."""
    if decomposition.optimal:
        return decomposition.factors(decomposition.prepare(site, goal.weight, goal.moments), rank)
    blocks = (site.groups, site.c_out // site.groups, *site.shape[1:])

    def compose(parts: Sequence[Tensor]) -> Tensor:
        return decomposition.compose(site, tuple(parts)).reshape(blocks)

    moments = conditioned(goal.moments, goal.weight)
    return refine(compose, factors, goal.weight.reshape(blocks), moments, sweeps=SWEEPS, steps=STEPS)
