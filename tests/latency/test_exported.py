"""An exported network is timed in turn with the dense network's export."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from ranksearch.latency import exported
from ranksearch.latency.timing import Precision
from ranksearch.networks import programs

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)


@needs_onnx
def test_each_run_is_one_of_its_own_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the programs move: the dense one takes four ticks, the other one takes one."""
    now = [0.0]
    work = programs.onnx_work

    def slow(path: Path, names: list[str], example: object):
        once = work(path, names, example)
        ticks = 1.0 if path.parent == tmp_path else 4.0

        def run():
            now[0] += ticks
            return once()

        return run

    small, dense = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 6)).eval(), nn.Sequential(nn.Linear(6, 6)).eval()
    x = torch.ones(3, 6)
    programs.write(small, x, tmp_path, torch_export=False, onnx=True)
    monkeypatch.setattr(programs, "onnx_work", slow)
    precision = Precision(least=3, most=3, sample=1.0)
    found = exported.onnx_latency(dense, x, tmp_path, precision=precision, clock=lambda: now[0])["onnx_latency"]
    assert (found["seconds"], found["dense_seconds"], found["ratio"]) == (1.0, 4.0, 0.25) and found["threads"] == torch.get_num_threads()


def test_nothing_is_said_without_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported.importlib.util, "find_spec", lambda name: None)
    assert exported.onnx_latency(nn.Linear(2, 2), torch.ones(1, 2), tmp_path) == {}
