"""SVD in any metric is optimal: nothing that starts elsewhere gets below it."""

from __future__ import annotations

import pytest
import torch
from oracles import assert_no_neighbour_is_better, conv, descend, moments, squared_error

from ranksearch.decompositions import Moments
from ranksearch.decompositions import spectrum as module
from ranksearch.decompositions.spectrum import spectrum
from ranksearch.decompositions.svd import SVD


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("output", [False, True])
def test_optimal_in_the_metric(groups: int, output: bool) -> None:
    site, weight = conv(groups=groups)
    m = moments(site, output=output)
    state = SVD().prepare(site, weight, m)
    errors = SVD().errors(state)
    for rank in (1, 2, 3):
        best = squared_error(site, weight - SVD().reconstruct(site, state, (rank,)), m)
        assert best == pytest.approx((errors.frobenius[rank - 1] * errors.norm) ** 2, rel=1e-5)
        if rank == 2:
            start = tuple(torch.randn_like(f) for f in SVD().factors(state, (rank,)))
            assert descend(SVD(), site, weight, m, start) >= best * (1 - 1e-7)
    assert_no_neighbour_is_better(SVD(), site, weight, m, (2,))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("output", [False, True])
def test_the_gram_matrix_of_a_weight_tells_its_best_factors(groups: int, output: bool) -> None:
    site, weight = conv(groups=groups)
    m = moments(site, output=output).floored
    assert isinstance(m.input, torch.Tensor)
    flat = weight.double().reshape(groups, site.c_out // groups, -1)
    for rank in ((1,), (2,)):
        found = SVD().of_gram(site, weight, flat @ m.input @ flat.mT, m.output, rank)
        assert found is not None
        expected = SVD().factors(SVD().prepare(site, weight, m), rank)
        assert [f.shape for f in found] == [f.shape for f in expected]
        torch.testing.assert_close(SVD().compose(site, found), SVD().compose(site, expected), rtol=1e-8, atol=1e-8)


def test_spectrum_is_that_of_lapack() -> None:
    for shape in ((1, 8, 30), (1, 30, 8), (3, 7, 7)):
        matrix = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(spectrum(matrix).energies.sqrt(), torch.linalg.svdvals(matrix))


@pytest.mark.parametrize("groups", [1, 2])
def test_factors_take_no_eigenvalues_and_errors_no_vectors(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name in ("_gram_values", "eigh"):
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda matrix, name=name, inner=inner: taken.append(name) or inner(matrix))
    site, weight = conv(groups=groups)
    SVD().factors(SVD().prepare(site, weight, moments(site, output=True)), (2,))
    assert taken == ["eigh"]
    SVD().errors(SVD().prepare(site, weight, moments(site, output=True)))
    assert taken == ["eigh", "_gram_values"]


def test_directions_without_data_are_shrunk_not_free() -> None:
    """A moment of rank 2: the factors stay finite and what the data do see is fitted as well as it can be."""
    site, weight = conv()
    x = torch.randn(2, 54, dtype=torch.float64)
    m = Moments((x.T @ x)[None])
    state = SVD().prepare(site, weight, m)
    residual = weight - SVD().reconstruct(site, state, (2,))
    assert squared_error(site, residual, m) < 1e-6 * squared_error(site, weight, m)
    assert residual.norm() < 100 * weight.norm()
