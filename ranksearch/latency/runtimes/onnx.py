"""ONNX Runtime on this machine's processor, with as many threads as torch uses."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.errors import InvalidModel, MissingDependency
from ranksearch.latency.runtimes._base import Runtime, refusal
from ranksearch.networks import programs
from ranksearch.sites import arguments, device_of, tensors_of

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class OnnxRuntime(Runtime):
    name = "onnxruntime"

    def check(self) -> None:
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingDependency(f"runtime 'onnxruntime' needs {' and '.join(missing)}: pip install {' '.join(missing)}")

    def version(self) -> str:
        self.check()
        return f"onnxruntime {importlib.import_module('onnxruntime').__version__}"

    def prepare(self, module: nn.Module, inputs: Any) -> Callable[[], object]:
        self.check()
        if device_of(module).type != "cpu":
            raise InvalidModel(f"model: it is on {device_of(module)}; the runtime onnxruntime runs on the processor: move it to the cpu")
        module.eval()
        session = self._session(module, inputs)
        names = [given.name for given in session.get_inputs()]
        found = [tensor for _, tensor in tensors_of(inputs)]
        if len(names) != len(found):
            raise InvalidModel(f"model: its ONNX program takes {len(names)} inputs, the example has {len(found)} tensors")
        feed: Mapping[str, Any] = {name: tensor.detach().numpy() for name, tensor in zip(names, found, strict=True)}
        return lambda: session.run(None, feed)

    def _session(self, module: nn.Module, inputs: Any) -> Any:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        args, kwargs = arguments(inputs)
        try:
            with tempfile.TemporaryDirectory() as folder, torch.no_grad(), programs.quiet():
                path = Path(folder) / "module.onnx"
                torch.onnx.export(module, args, path, kwargs=kwargs or None, dynamo=True, verbose=False)
                return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except OSError:
            raise
        except Exception as error:  # whatever the exporter or the runtime says
            raise refusal("ONNX", module, error) from error
