"""Distances of outputs per example, and what is told by their paired differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ranksearch.networks.reconstruction.check import distances, divided, gain


class Two(nn.Module):
    """Several outputs, one of them of integers."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.layer, self.pooled = nn.Linear(3, 2), pooled

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layer(x)
        return {"value": y, "other": y.mean() if self.pooled else y[:, :1], "label": y.argmax(1)}


@pytest.mark.parametrize("pooled", [False, True])
def test_distances_are_per_example_or_per_batch_where_outputs_tell_none_apart(pooled: bool) -> None:
    one, two, batches = Two(pooled), Two(pooled), [torch.randn(4, 3), torch.randn(2, 3)]
    expected = []
    with torch.no_grad():
        found = distances(one, [(x, two(x)) for x in batches])
        for x in batches:
            apart = (one(x)["value"] - two(x)["value"]).square().sum(1), (one(x)["other"] - two(x)["other"]).square()
            expected += [apart[0].sum()[None] + apart[1]] if pooled else [apart[0] + apart[1][:, 0]]
    torch.testing.assert_close(found.float(), torch.cat(expected))
    assert len(found) == (2 if pooled else 6) and not distances(one, []).numel()


def test_gains_are_paired() -> None:
    """All examples gain the same, however far apart they lie themselves: there is no doubt."""
    before = 1000 * torch.rand(20, dtype=torch.float64)
    assert gain(before, before - 1) == pytest.approx((1.0, 0.0), abs=1e-9)
    mean, error = gain(before, before - torch.randn(20, dtype=torch.float64))
    assert error == pytest.approx(1 / 20**0.5, rel=0.8) and abs(mean) < 2
    assert gain(before[:1], before[:1] + 1) == (-1.0, 0.0)


@pytest.mark.parametrize(
    ("batches", "share", "fitted_to", "sizes"),
    [
        ([8, 8, 8, 8], 0.25, 3, [8, 8, 8, 8]), ([8, 8], 0.1, 1, [8, 8]), ([12], 0.25, 1, [9, 3]), ([7], 0.25, 1, [7]),
        ([8, 8], 0.0, 2, [8, 8]), ([], 0.25, 0, []),
    ],
)  # fmt: skip
def test_batches_are_divided(batches: list[int], share: float, fitted_to: int, sizes: list[int]) -> None:
    given: list[Any] = [torch.randn(n, 2) for n in batches]
    found, count = divided(given, share)
    assert count == fitted_to and [len(x) for x in found] == sizes


@pytest.mark.parametrize("batch_dim", [1, -2])
def test_a_single_batch_is_cut_along_its_batch(batch_dim: int) -> None:
    batch = {"x": torch.randn(3, 12, 4), "weight": torch.tensor(1.0)}
    (fitting, checking), count = divided([batch], 0.25, batch_dim)
    assert count == 1 and fitting["x"].shape == (3, 9, 4) and checking["x"].shape == (3, 3, 4)
    assert torch.equal(torch.cat([fitting["x"], checking["x"]], 1), batch["x"])


@pytest.mark.parametrize("batch_dim", [None, {"x": 0}, 2])
def test_what_has_no_batch_of_one_length_is_not_cut(batch_dim: Any) -> None:
    batch = {"x": torch.randn(16, 16, 4), "y": torch.randn(16, 16)}
    assert divided([batch], 0.25, batch_dim) == ([batch], 1)
