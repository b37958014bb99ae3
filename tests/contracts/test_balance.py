"""Of every type: how large factors are does not hang on the moments that they were made in, so that training treats them alike; and of
types of components, that factors of a rank are the first of all."""

from __future__ import annotations

import pytest
import torch
from contract_cases import WEIGHTS, make, over, second_moments, some
from torch import Tensor

from ranksearch.decompositions import AnyDecomposition, Moments
from ranksearch.sites import canonical_weight

COMPONENTS = [case for case in WEIGHTS if case[1].components]
PAIRS = ("svd", "grouped_svd", "grouped_svd_learned", "tiled_svd", "spatial", "spatial_t", "svd_in", "decoupled")


def factors_of(kind: str, decomposition: AnyDecomposition, moments: Moments) -> list[Tensor]:
    """The weights among the factors of a rank in the middle."""
    layer, site, _ = make(kind)
    state = decomposition.prepare(site, canonical_weight(layer, site), moments)
    errors = decomposition.errors(state)
    rank = tuple(errors.ranks[some(errors, 3)[1 if len(errors.ranks) > 2 else 0]].tolist())
    return [f for f in decomposition.factors(state, rank) if f.is_floating_point()]


@over(WEIGHTS)
def test_the_size_of_factors_does_not_hang_on_the_size_of_the_moments(kind: str, decomposition: AnyDecomposition) -> None:
    moments = second_moments(make(kind)[1])
    assert moments.input is not None and moments.output is not None
    scaled = Moments(moments.input * 2**12, moments.output * 2**-7)  # without any rounding
    norms, others = ([float(f.norm()) for f in factors_of(kind, decomposition, given)] for given in (moments, scaled))
    assert others == pytest.approx(norms, rel=1e-6)


@over([case for case in WEIGHTS if case[1].name in PAIRS])
def test_the_two_sides_of_every_component_have_one_norm(kind: str, decomposition: AnyDecomposition) -> None:
    moments = second_moments(make(kind)[1])
    for given in (Moments(), Moments(moments.input), Moments(None, moments.output), moments):
        left, right = factors_of(kind, decomposition, given)
        torch.testing.assert_close(left.norm(dim=-2), right.norm(dim=-1), rtol=1e-6, atol=1e-9)


@over([case for case in WEIGHTS if case[1].name == "tucker2"])
def test_the_bases_of_tucker2_have_columns_of_norm_one(kind: str, decomposition: AnyDecomposition) -> None:
    first, _, last = factors_of(kind, decomposition, second_moments(make(kind)[1]))
    for basis in (first, last):
        torch.testing.assert_close(basis.norm(dim=1), torch.ones_like(basis[:, 0]), rtol=1e-9, atol=0)


@over(COMPONENTS)
def test_factors_of_a_rank_are_the_first_of_those_of_all_components(kind: str, decomposition: AnyDecomposition) -> None:
    layer, site, _ = make(kind)
    moments = second_moments(site)
    for given in (None, Moments(moments.input), moments):
        state = decomposition.prepare(site, canonical_weight(layer, site), given)
        ranks = [tuple(row) for row in decomposition.ranks(site).tolist()]
        left, right = decomposition.factors(state, ranks[-1])
        assert left.shape[-2] * left.shape[0] == site.c_out and right[0, 0].numel() == len(canonical_weight(layer, site)[0].flatten())
        for (rank,) in ranks[:: max(1, len(ranks) // 3)]:
            one, other = decomposition.factors(state, (rank,))
            torch.testing.assert_close(one, left[..., :rank], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(other, right[..., :rank, :], rtol=1e-9, atol=1e-9)
