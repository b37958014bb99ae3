"""Two processes under DistributedDataParallel: the single process's weights on the joined batch, and the same ones in both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from ddp_worker import run

WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process ended with."""
    if not torch.distributed.is_available():
        pytest.skip("this build of torch has no torch.distributed")
    folder = tmp_path_factory.mktemp("ddp")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    script = str(Path(__file__).with_name("ddp_worker.py"))
    processes = [
        forked.Forked([script, str(rank), str(WORLD), str(folder / "meeting"), str(folder / f"{rank}.pt")], env=environment)
        for rank in range(WORLD)
    ]
    try:
        errors = [process.communicate(100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_averaged_gradients_are_those_of_the_joined_batch(found: list[dict[str, Any]]) -> None:
    whole = run("plain", norm=False).state_dict()
    start = run.__globals__["supernet"](False).state_dict()
    for one in found:
        assert one["plain"].keys() == whole.keys()
        for key, value in whole.items():
            assert torch.allclose(one["plain"][key], value, rtol=0, atol=1e-12)
    assert any(not torch.allclose(value, start[key], atol=1e-3) for key, value in whole.items())


@pytest.mark.parametrize("name", ["joint", "sandwich"])
def test_processes_agree_on_ranks_bases_and_weights(name: str, found: list[dict[str, Any]]) -> None:
    """Configurations come from a seed that they share, bases from the weights: else weights would drift apart."""
    one, other = found
    assert one[name].keys() == other[name].keys()
    assert all(torch.equal(value, other[name][key]) for key, value in one[name].items())
    assert one[f"{name}_bases"]
    assert all(torch.equal(a, b) for a, b in zip(one[f"{name}_bases"], other[f"{name}_bases"], strict=True))
