"""Every runtime, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from ranksearch.latency.runtimes._base import Runtime, settled
from ranksearch.latency.runtimes.compiled import Compiled
from ranksearch.latency.runtimes.cuda_graph import CudaGraph
from ranksearch.latency.runtimes.eager import Eager
from ranksearch.latency.runtimes.onnx import OnnxRuntime

RUNTIMES: Mapping[str, Runtime] = {runtime.name: runtime for runtime in (Eager(), Compiled(), CudaGraph(), OnnxRuntime())}

__all__ = ["RUNTIMES", "Compiled", "CudaGraph", "Eager", "OnnxRuntime", "Runtime", "settled"]
