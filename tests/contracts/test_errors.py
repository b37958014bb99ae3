"""The errors that every decomposition tells are those of its reconstructions, in every metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract_cases import WEIGHTS, every_weight, folding, make, metric_norm, operator, over, prepared, second_moments, some

from ranksearch.decompositions import AnyDecomposition, Moments
from ranksearch.sites import canonical_weight


@over([case for case in WEIGHTS if case[1].exact])
def test_full_rank_reconstructs(kind: str, decomposition: AnyDecomposition) -> None:
    _, site, _ = make(kind)
    weight, state, errors = prepared(kind, decomposition)
    rank = tuple(errors.ranks[-1].tolist())
    assert (decomposition.reconstruct(site, state, rank) - weight).norm() <= 1e-10 * weight.norm()
    assert errors.frobenius[-1] <= 1e-7  # the square root of a sum of eigenvalues of rounding size


@every_weight
def test_errors_are_those_of_the_reconstruction(kind: str, decomposition: AnyDecomposition) -> None:
    _, site, _ = make(kind)
    weight, state, errors = prepared(kind, decomposition)
    n = len(errors.ranks)
    assert errors.ranks.dtype == np.int64 and errors.ranks.ndim == 2
    assert errors.frobenius.shape == errors.operator.shape == (n,)
    if decomposition.exact:  # types that fit, not truncate, may refuse ranks (cp) or learn which there are (adaptive)
        assert np.array_equal(errors.ranks, decomposition.ranks(site))
    assert errors.norm == pytest.approx(float(weight.norm()))
    scale = operator(folding(decomposition.name, site, weight))
    for k in some(errors, n if n < 12 else 8):
        dense = decomposition.reconstruct(site, state, tuple(errors.ranks[k].tolist()))
        assert dense.shape == site.shape and dense.dtype == torch.float64
        residual = weight - dense
        frobenius = float(residual.norm() / weight.norm())
        if errors.frobenius_is == "bound":
            assert frobenius <= errors.frobenius[k] + 1e-7
        else:
            assert frobenius == pytest.approx(errors.frobenius[k], abs=1e-7)
        if np.isnan(errors.operator[k]):
            continue
        norm = operator(folding(decomposition.name, site, residual)) / scale
        if errors.operator_is == "bound":
            assert norm <= errors.operator[k] + 1e-7
        else:
            assert norm == pytest.approx(errors.operator[k], abs=1e-7)


@over([case for case in WEIGHTS if case[1].nested])
def test_errors_fall_with_rank(kind: str, decomposition: AnyDecomposition) -> None:
    *_, errors = prepared(kind, decomposition)
    ranks = errors.ranks
    same = (ranks[:, None, : decomposition.labels] == ranks[None, :, : decomposition.labels]).all(axis=2)
    below = same & (ranks[:, None] <= ranks[None]).all(axis=2)  # [a, b]: a is nowhere larger than b
    a, b = np.nonzero(below)
    assert (errors.frobenius[b] <= errors.frobenius[a] + 1e-9).all()
    assert (errors.frobenius >= 0).all() and (errors.frobenius <= 1 + 1e-9).all()
    if errors.operator_is == "exact" and decomposition.labels == 0:
        assert (errors.operator[b] <= errors.operator[a] + 1e-9).all()


METRICS = ("activation", "fisher", "singular")
IN_METRICS = [  # every type in every metric, and every shape in one of them
    (kind, decomposition, metric)
    for number, (kind, decomposition) in enumerate(WEIGHTS)
    for turn, metric in enumerate(METRICS)
    if kind in ("conv3x3", "groups2", "linear") or number % len(METRICS) == turn
]


@pytest.mark.parametrize(("kind", "decomposition", "metric"), IN_METRICS, ids=[f"{k}-{d.name}-{m}" for k, d, m in IN_METRICS])
def test_errors_hold_in_the_metric(kind: str, decomposition: AnyDecomposition, metric: str) -> None:
    layer, site, _ = make(kind)
    weight = canonical_weight(layer, site)
    moments = second_moments(site, rank=2 if metric == "singular" else None)
    if metric == "activation":
        moments = Moments(moments.input)
    state = decomposition.prepare(site, weight, moments)
    errors = decomposition.errors(state)
    norm = metric_norm(site, weight, moments)
    assert errors.norm == pytest.approx(norm, rel=1e-3)  # what little a floor on the moments changes
    for k in some(errors, 4):
        rank = tuple(errors.ranks[k].tolist())
        factors = decomposition.factors(state, rank)
        assert all(bool(f.isfinite().all()) for f in factors)
        residual = weight - decomposition.compose(site, factors)
        relative = metric_norm(site, residual, moments) / norm
        if errors.frobenius_is == "bound" or metric == "singular":
            assert relative <= errors.frobenius[k] + 1e-3
        else:
            assert relative == pytest.approx(errors.frobenius[k], rel=1e-3, abs=1e-3)


@every_weight
def test_zero_weight_has_no_error_and_finite_factors(kind: str, decomposition: AnyDecomposition) -> None:
    _, site, _ = make(kind)
    for moments in (None, second_moments(site)):
        state = decomposition.prepare(site, torch.zeros(site.shape, dtype=torch.float64), moments)
        errors = decomposition.errors(state)
        assert (errors.frobenius == 0).all() and errors.norm == 0
        assert (np.nan_to_num(errors.operator) == 0).all()
        factors = decomposition.factors(state, tuple(errors.ranks[0].tolist()))
        assert all(bool(f.isfinite().all()) for f in factors)
        assert float(decomposition.compose(site, factors).abs().max()) == 0
