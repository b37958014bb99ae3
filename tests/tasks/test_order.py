"""Training data that come sorted by class."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ranksearch.errors import RanksearchWarning
from ranksearch.tasks import FromLoss
from ranksearch.tasks._order import FEWEST, sorted_by_class


def labels(count: int, classes: int, share: float | None = None, seed: int = 0) -> Tensor:
    """In random order, equally often, or of two classes the second with a share."""
    generator = torch.Generator().manual_seed(seed)
    if share is None:
        return torch.randint(classes, (count,), generator=generator)
    return (torch.rand(count, generator=generator) < share).long()


@pytest.mark.parametrize(("classes", "share"), [(2, None), (10, None), (1000, None), (2, 0.03)])
def test_a_random_order_is_no_finding_and_a_sorted_one_is(classes: int, share: float | None) -> None:
    for seed in range(20):
        y = labels(2048, classes, share, seed)
        assert sorted_by_class(y.split(128)) is None
        found = sorted_by_class(y.sort().values.split(128))
        assert found is not None and "the first 2048 training targets are sorted" in found


def test_one_class_is_a_finding_of_so_many_examples() -> None:
    ones = torch.ones(FEWEST, dtype=torch.int64)
    assert "are all 1" in str(sorted_by_class(ones.split(16)))
    assert sorted_by_class(ones[1:].split(16)) is None and sorted_by_class([]) is None


OTHERS = (
    torch.arange(128.0) / 3, torch.arange(128).reshape(64, 2), torch.zeros(128, 1, 1), torch.zeros(128, dtype=torch.complex64),
    torch.tensor(1), "text", {"y": 1},
)  # fmt: skip


@pytest.mark.parametrize("targets", OTHERS)
def test_other_targets_say_nothing(targets: Any) -> None:
    assert sorted_by_class([targets]) is None


def test_targets_of_other_types_count_by_their_values() -> None:
    y = torch.arange(128) // 64
    for one in (y.bool(), y.float(), y[:, None].float(), y.to(torch.uint8)):
        assert sorted_by_class([one]) is not None


def test_a_loader_in_the_order_of_classes_is_warned_of() -> None:
    x, y = torch.randn(600, 4), torch.arange(600) // 200
    pairs = TensorDataset(x, y)
    for shuffle in (False, True):
        train = DataLoader(pairs, batch_size=50, shuffle=shuffle)
        task = FromLoss(train, DataLoader(pairs, batch_size=50), F.cross_entropy)
        if shuffle:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                list(task.labelled(8))
            continue
        with pytest.warns(RanksearchWarning, match=r"the first 400 training targets are sorted, and of 2 classes.*shuffle=True"):
            list(task.labelled(8))
        assert task.measure(nn.Linear(4, 3)), "measuring looks at no order"


def test_a_loader_that_fills_the_same_tensors_again_is_looked_at_as_it_was() -> None:
    """Of the last batch alone, 32 times, nothing could be said of all of them."""
    targets = torch.arange(4).repeat_interleave(64).split(32)

    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        held = torch.zeros(32, dtype=torch.int64)
        for one in targets:
            yield torch.zeros(32, 2), held.copy_(one)

    task = FromLoss(loader, loader, F.cross_entropy)
    with pytest.warns(RanksearchWarning, match="sorted, and of 4 classes"):
        assert [int(y[0]) for _, y in list(task.labelled(8))] == [0, 0, 1, 1, 2, 2, 3, 3]
