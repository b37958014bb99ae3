"""What an exported network takes in ONNX Runtime, paired with the export of the dense one."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.errors import InvalidModel
from ranksearch.latency.device import clock_of
from ranksearch.latency.timing import Precision, paired
from ranksearch.networks import programs
from ranksearch.sites import copied, fitted

PRECISION = Precision(seconds=10.0)


def onnx_latency(
    dense: nn.Module, example: Any, folder: Path, *, precision: Precision = PRECISION, clock: Callable[[], float] | None = None
) -> dict[str, Any]:
    """Seconds of a forward pass of ``model.onnx`` in ``folder``, in turn with the dense network's export, which is made for it; nothing
    where onnxruntime is not installed, or the dense network cannot be exported.

    Args:
        example: the input that both are timed on.
        clock: seconds; a test gives one of its own.

    Returns:
        JSON data: ``onnx_latency`` with ``runtime``, ``threads``, ``seconds``, ``dense_seconds``, and their ``ratio`` with a 95 % interval
        from ``low`` to ``high``.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return {}
    example = fitted(example, dense)
    with tempfile.TemporaryDirectory() as scratch:
        model = copied(dense).eval()
        try:
            names = list(programs.write(model, example, Path(scratch), torch_export=False, onnx=True)["inputs"])
        except InvalidModel:  # there is nothing to compare with
            return {}
        works = [programs.onnx_work(place / programs.ONNX, names, example) for place in (Path(scratch), folder)]
        found = paired(works[0], works[1:], precision=precision, clock=clock or clock_of(dense))
    (ratio,) = found.ratios
    version = f"onnxruntime {importlib.import_module('onnxruntime').__version__}"
    times = {"seconds": ratio.value * found.reference, "dense_seconds": found.reference}
    share = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
    return {"onnx_latency": {"runtime": version, "threads": torch.get_num_threads(), **times, **share}}
