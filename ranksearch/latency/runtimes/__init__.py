"""Every runtime, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from ranksearch.latency.runtimes._base import Runtime
from ranksearch.latency.runtimes.compiled import Compiled
from ranksearch.latency.runtimes.eager import Eager
from ranksearch.latency.runtimes.onnx import OnnxRuntime

RUNTIMES: Mapping[str, Runtime] = {runtime.name: runtime for runtime in (Eager(), Compiled(), OnnxRuntime())}

__all__ = ["RUNTIMES", "Compiled", "Eager", "OnnxRuntime", "Runtime"]
