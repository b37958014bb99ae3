"""Operations take as many threads as they are told to, for a while."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ranksearch.tasks.images import digits
from ranksearch.tasks.training import trained
from ranksearch.threads import SMALL, few, threads


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_are_as_before_afterwards_whatever_happens():
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with pytest.raises(RuntimeError, match="within"), threads(1):
        raise RuntimeError("within")
    assert torch.get_num_threads() == 2


def test_none_leaves_threads_as_they_are():
    with threads(None):
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("params", "count"), [(0, 1), (SMALL - 1, 1), (SMALL, None)])
def test_only_what_is_small_is_worked_on_by_one_thread(params: int, count: int | None):
    assert few(params) == count


class Watched(nn.Module):
    """Remembers on how many threads it ran."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seen: set[int] = set()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(torch.get_num_threads())
        return self.layers(images)


@pytest.mark.parametrize(("width", "seen"), [(8, 1), (SMALL // 64, 2)])
def test_a_small_network_is_trained_on_one_thread(tmp_path: Path, width: int, seen: int):
    network = trained(lambda: Watched(width), digits(), epochs=0.05, seed=0, cache=tmp_path)
    assert isinstance(network, Watched)
    assert network.seen == {seen}
