from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from ranksearch.tasks.images import digits
from ranksearch.tasks.networks import digits_net
from ranksearch.tasks.training import trained


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_trains_once_and_then_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = digits(learning_rate=0.1)
    state = torch.get_rng_state()
    first = trained(small, task, epochs=5, seed=0, cache=tmp_path / "deep" / "cache")
    assert torch.equal(state, torch.get_rng_state())
    assert task.measure(first)["accuracy"] > 0.8 and not first.training
    files = list((tmp_path / "deep" / "cache").iterdir())
    assert [f.suffix for f in files] == [".safetensors"] and not files[0].name.startswith(".")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(type(task), "fine_tune", refuse)
    second = trained(small, task, epochs=5, seed=0, cache=tmp_path / "deep" / "cache")
    assert same(first, second) and not second.training
    for options in ({"epochs": 6, "seed": 0}, {"epochs": 5, "seed": 1}):
        with pytest.raises(AssertionError, match="trained again"):
            trained(small, task, cache=tmp_path / "deep" / "cache", **options)
    with pytest.raises(AssertionError, match="trained again"):
        trained(small, digits(learning_rate=0.2), epochs=5, seed=0, cache=tmp_path / "deep" / "cache")
    with pytest.raises(AssertionError, match="trained again"):
        trained(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), task, epochs=5, seed=0, cache=tmp_path / "deep" / "cache")


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None])
def test_a_broken_cache_is_reported_and_made_again(tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    task = digits(learning_rate=0.1)
    first = trained(small, task, epochs=1, seed=0, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with caplog.at_level(logging.WARNING):
        second = trained(small, task, epochs=1, seed=0, cache=tmp_path)
    assert "made again" in caplog.text and same(first, second) and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot cache"):
        model = trained(small, digits(learning_rate=0.1), epochs=1, seed=0, cache=tmp_path / "file")
    assert digits().measure(model)["accuracy"] > 0.3


def test_a_full_disk_is_a_warning(tmp_path: Path, full_disk) -> None:
    with full_disk(), pytest.warns(UserWarning, match="cannot cache"):
        trained(small, digits(learning_rate=0.1), epochs=1, seed=0, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_network_of_digits_learns_them(tmp_path: Path) -> None:
    task = digits(learning_rate=0.1, schedule="one_cycle")
    model = trained(digits_net, task, epochs=6, seed=0, cache=tmp_path)
    assert task.measure(model)["accuracy"] >= 0.97
    assert task.measure(model, "test")["accuracy"] >= 0.97
