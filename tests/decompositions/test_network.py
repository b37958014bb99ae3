"""Networks: contraction against einsum, least squares against numpy, systems without a unique solution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import OtherProcessor, composed
from torch import Tensor

from ranksearch.decompositions.network import (
    CAP,
    Bonds,
    balanced,
    contract,
    core_shapes,
    directions,
    even,
    fit,
    node_count,
    pairs,
    reduce,
    solve_damped,
    start,
    stored,
    sweep,
    widen,
)

BONDS = (2, 3, 1, 2, 2, 3)


def random_cores(sizes: tuple[int, ...], bonds: Bonds, seed: int = 0, *, batch: tuple[int, ...] = ()) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(*batch, *shape, generator=random, dtype=torch.float64) for shape in core_shapes(sizes, bonds)]


def random_tensor(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_contraction_against_einsum(batch: tuple[int, ...]) -> None:
    cores = random_cores((4, 3, 5, 2), BONDS, batch=batch)
    torch.testing.assert_close(contract(cores, 4), torch.einsum("...abcw,...adex,...bdfy,...cefz->...wxyz", *cores))
    without = torch.einsum("...adex,...bdfy,...cefz->...xyzabc", *cores[1:])
    torch.testing.assert_close(contract(cores, 4, skip=0), without.squeeze(-1))  # bond c has width 1
    assert stored((4, 3, 5, 2), BONDS) == sum(c[0].numel() if batch else c.numel() for c in cores)


def test_contraction_with_a_hub() -> None:
    bonds = (1, 1, 2, 2, 3, 2)  # three modes and a hub
    cores = random_cores((4, 3, 5), bonds)
    assert node_count(bonds) == 4 and cores[3].shape == (2, 3, 2)
    np.testing.assert_allclose(contract(cores, 3).numpy(), composed(cores, 3), atol=1e-12)
    torch.testing.assert_close(contract(cores, 3, skip=3), torch.einsum("abcw,adex,bdfy->wxycef", *cores[:3]))


def test_a_sweep_is_the_least_squares_solution_of_each_node() -> None:
    tensor = random_tensor(4, 5, 3, 3)
    for seed in range(5):
        cores = random_cores((4, 5, 3, 3), BONDS, seed)
        for node in range(4):
            solved, error = sweep(tensor, cores, [node])
            # columns of the linear map from the core to the tensor, one unit core at a time
            units = torch.eye(cores[node].numel(), dtype=torch.float64).reshape(-1, *cores[node].shape)
            columns = np.stack([composed([*cores[:node], unit, *cores[node + 1 :]], 4).ravel() for unit in units], axis=1)
            best = np.linalg.lstsq(columns, tensor.numpy().ravel(), rcond=None)[0]
            expected = float(((columns @ best - tensor.numpy().ravel()) ** 2).sum())
            assert float(error) == pytest.approx(expected, rel=1e-9)
            assert float(np.linalg.norm(composed(solved, 4) - tensor.numpy()) ** 2) == pytest.approx(expected, rel=1e-9)


def test_a_batch_is_swept_as_its_networks_are() -> None:
    tensor = random_tensor(4, 5, 3, 3)
    cores = random_cores((4, 5, 3, 3), BONDS, batch=(3,))
    together, errors = sweep(tensor, cores, (3, 2, 1, 0))
    for k in range(3):
        alone, error = sweep(tensor, [c[k] for c in cores], (3, 2, 1, 0))
        assert float(errors[k]) == pytest.approx(float(error), rel=1e-9)
        torch.testing.assert_close(contract([c[k] for c in together], 4), contract(alone, 4))


def test_the_error_falls_to_rounding_however_badly_scaled_the_bonds_are() -> None:
    """The damping moves no minimum: at the tensor itself the error stays rounding."""
    tensor = contract(random_cores((4, 5, 3, 3), BONDS), 4)
    cores = random_cores((4, 5, 3, 3), BONDS)
    scale = torch.tensor([1.0, 1e-7], dtype=torch.float64)  # of the slices of the bond between nodes 0 and 1
    cores[0], cores[1] = cores[0] * scale[:, None, None, None], cores[1] / scale[:, None, None, None]
    _, error = fit(tensor, cores, sweeps=3)
    assert error < (1e-10) ** 2 * float(tensor.square().sum())


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_singular_systems_have_a_finite_solution(rank: int) -> None:
    for seed in range(10):
        random = torch.Generator().manual_seed(seed)
        frame = torch.randn(12, rank, generator=random, dtype=torch.float64) @ torch.randn(rank, 6, generator=random, dtype=torch.float64)
        frame = frame * torch.tensor([1e8, 1e-8, 1.0, 0.0, 1e3, 1.0], dtype=torch.float64)
        target = torch.randn(12, 2, generator=random, dtype=torch.float64)
        solution = solve_damped(frame.mT @ frame, frame.mT @ target)
        assert bool(solution.isfinite().all())
        best = target.numpy() - frame.numpy() @ (np.linalg.pinv(frame.numpy(), rcond=1e-13) @ target.numpy())
        assert float((target - frame @ solution).norm()) <= np.linalg.norm(best) * (1 + 1e-6) + 1e-9
        assert float(solution[3].abs().max()) == 0.0  # what no equation sees stays zero


def test_a_failed_cholesky_factorization_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(0)
    frame = torch.randn(2, 12, 4, generator=random, dtype=torch.float64)
    target = torch.randn(2, 12, 3, generator=random, dtype=torch.float64)
    gram, right = frame.mT @ frame, frame.mT @ target
    expected = solve_damped(gram, right)
    failing = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a: (failing(a)[0] * math.nan, torch.tensor([0, 3])))
    torch.testing.assert_close(solve_damped(gram, right), expected)


def test_networks_of_rank_deficient_and_zero_tensors_are_fitted() -> None:
    lacking = random_tensor(4, 5, 3, 3)
    lacking[1:] = lacking[0]
    lacking[..., 2] = 0.0
    for tensor in (lacking, torch.zeros(4, 5, 3, 3, dtype=torch.float64)):
        cores, error = fit(tensor, random_cores((4, 5, 3, 3), (4, 4, 3, 4, 3, 3)), sweeps=30)
        assert math.isfinite(error) and all(bool(c.isfinite().all()) for c in cores)
        assert error <= 1e-12 * float(lacking.square().sum())


def test_widening_changes_nothing_and_least_squares_only_lowers_the_error() -> None:
    for seed in range(10):
        tensor = random_tensor(4, 5, 3, 3, seed=seed)
        cores, error = fit(tensor, start(tensor), sweeps=5)
        wider = widen(cores, (2, 1, 2, 3, 1, 2), torch.Generator().manual_seed(seed))
        torch.testing.assert_close(contract(wider, 4), contract(cores, 4))
        last = error
        for _ in range(5):
            wider, lower = fit(tensor, wider, sweeps=1)
            assert lower <= last * (1 + 1e-12)
            last = lower
        assert last < error
        assert last == pytest.approx(float(np.linalg.norm(composed(wider, 4) - tensor.numpy()) ** 2))


def test_cores_of_equal_norm_are_the_same_network() -> None:
    cores = random_cores((4, 5, 3, 3), BONDS, batch=(2,))
    cores[0] = cores[0] * 1e6
    evened = even(cores)
    torch.testing.assert_close(contract(evened, 4), contract(cores, 4))
    norms = torch.stack([c.flatten(1).norm(dim=1) for c in evened])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    dead = [torch.zeros_like(cores[0]), *cores[1:]]
    assert all(torch.equal(a, b) for a, b in zip(even(dead), dead, strict=True))


def test_a_balanced_network_is_the_same_however_its_slices_shared_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one end of a bond gains and the other loses changes no tensor; balanced, neither end makes up for the other."""
    cores = random_cores((4, 5, 3, 3), BONDS)
    expected = balanced(cores)
    scale = torch.tensor([1e8, 1e-8], dtype=torch.float64)  # of the two slices of the bond between nodes 0 and 1
    shared = [cores[0] * scale[:, None, None, None], cores[1] / scale[:, None, None, None], *cores[2:]]
    with monkeypatch.context() as patch:
        OtherProcessor(patch, 0)
        found = balanced(shared)
    for core, same in zip(found, expected, strict=True):
        torch.testing.assert_close(core, same, rtol=1e-6, atol=1e-6)  # the sharing itself cost half of the digits
    torch.testing.assert_close(contract(expected, 4), contract(cores, 4))
    norms = torch.stack([c.norm() for c in expected])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


def test_across_a_balanced_bond_both_ends_have_the_singular_values_of_their_product() -> None:
    left, right = random_tensor(2, 7, seed=1), random_tensor(2, 5, seed=2)
    values = np.linalg.svd((left.mT @ right).numpy(), compute_uv=False)[:2]
    for end in balanced([left, right]):
        np.testing.assert_allclose((end @ end.mT).numpy(), np.diag(values), atol=1e-12)


def test_slices_of_a_bond_that_carry_nothing_become_zero() -> None:
    left, right = random_tensor(3, 2, seed=1), random_tensor(3, 5, seed=2)  # a bond of width 3 beside a mode of size 2
    one, other = balanced([left, right])
    torch.testing.assert_close(one.mT @ other, left.mT @ right)
    assert bool((one[2] == 0).all()) and bool((other[2] == 0).all())
    dead = balanced([left * 0, right])
    assert all(bool(core.isfinite().all()) for core in dead) and not bool(contract(dead, 2).any())


@pytest.mark.parametrize("shape", [(3, 40), (7, 7), (9, 4)])
def test_directions_are_singular_vectors_with_signs_of_their_own(shape: tuple[int, int]) -> None:
    for seed in range(5):
        matrix = random_tensor(*shape, seed=seed)
        vectors, values = directions(matrix)
        left, expected, _ = np.linalg.svd(matrix.numpy(), full_matrices=False)
        np.testing.assert_allclose(values, expected, rtol=1e-12)
        np.testing.assert_allclose(np.abs((left * vectors.numpy()).sum(0)), 1.0, rtol=1e-9)
        mirrored, _ = directions(-matrix)  # the same left vectors, which LAPACK is free to return with other signs
        torch.testing.assert_close(mirrored, vectors)


def test_reduction_keeps_every_direction_that_the_tensor_has() -> None:
    for seed in range(5):
        tensor = random_tensor(4, 7, 3, seed=seed)
        tensor[3] = tensor[0] + 1e-9 * tensor[3]  # far below the weights, far above rounding
        tensor[:, 5:] = tensor[:, :2]
        reduced = reduce(tensor)
        assert reduced.core.shape == (4, 5, 3)
        back = torch.einsum("abc,xa,yb,zc->xyz", reduced.core, *reduced.bases)
        torch.testing.assert_close(back, tensor, rtol=0, atol=1e-13)
    large = reduce(random_tensor(CAP + 10, 20, 5))
    assert large.core.shape == (CAP, 20, 5)
    values = np.linalg.svd(random_tensor(CAP + 10, 20, 5).reshape(CAP + 10, -1).numpy(), compute_uv=False)
    assert large.lost == pytest.approx(float((values[CAP:] ** 2).sum()), rel=1e-9)


def test_pairs_name_the_bonds() -> None:
    assert pairs(3) == [(0, 1), (0, 2), (1, 2)]
    assert [node_count((1,) * len(pairs(n))) for n in (2, 3, 4, 5)] == [2, 3, 4, 5]
