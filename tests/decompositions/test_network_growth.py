"""Growth: monotone, within the storage, and the same whatever signs and last bits are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import OtherProcessor, composed, storage
from torch import Tensor

from ranksearch.decompositions.exact_structure import with_hub
from ranksearch.decompositions.network_growth import SHARE, STEPS, grow, wider_bonds

SIZES = (8, 7, 3, 3)


def weight(seed: int) -> Tensor:
    """Modes of decaying strength, as trained weights have them."""
    tensor = torch.randn(SIZES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for axis, size in enumerate(SIZES):
        tensor = tensor.movedim(axis, -1).mul(torch.arange(1, size + 1, dtype=torch.float64) ** -0.7).movedim(-1, axis)
    return tensor


@pytest.mark.parametrize("seed", range(5))
def test_growth_costs_more_and_errs_less_at_each_step(seed: int) -> None:
    tensor = weight(seed)
    path = grow(tensor, SIZES)
    params = [storage(SIZES, with_hub(step.bonds, 4)) for step in path]
    errors = [step.error for step in path]
    assert path[0].bonds == (1,) * 6 and 5 < len(path) <= STEPS + 1
    assert (np.diff(params) > 0).all() and (np.diff(errors) <= 1e-12 * errors[0]).all()
    assert params[-1] <= SHARE * math.prod(SIZES)
    for step in path:
        assert float(np.linalg.norm(composed(step.cores, 4) - tensor.numpy()) ** 2) == pytest.approx(step.error, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_path_does_not_depend_on_signs_and_last_bits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = weight(seed)
    expected = grow(tensor, SIZES)
    with monkeypatch.context() as patch:
        OtherProcessor(patch, seed)
        found = grow(tensor, SIZES)
    assert [step.bonds for step in found] == [step.bonds for step in expected]
    np.testing.assert_allclose([step.error for step in found], [step.error for step in expected], rtol=1e-6)


def test_of_bonds_that_buy_the_same_the_first_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is the same with modes 0 and 1 exchanged: their bonds with mode 2 tie."""
    half = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    tensor = torch.einsum("ac,bc->abc", half, half)
    for seed in range(10):
        with monkeypatch.context() as patch:
            OtherProcessor(patch, seed)
            path = grow(tensor, (20, 20, 20))  # so that storage ends no growth
        assert path[1].bonds == grow(tensor, (20, 20, 20))[1].bonds


def test_bonds_grow_by_half_up_to_what_their_ends_can_use() -> None:
    assert wider_bonds((1, 1, 1), 0, (4, 5, 6)) == (2, 1, 1)
    assert wider_bonds((4, 1, 1), 0, (8, 8, 6)) == (6, 1, 1)
    assert wider_bonds((3, 1, 1), 0, (4, 5, 6)) == (4, 1, 1)
    assert wider_bonds((4, 1, 1), 0, (4, 5, 6)) is None
    assert wider_bonds((4, 2, 1), 0, (4, 5, 6)) == (5, 2, 1)  # the other end has 5
