"""PyTorch's kernels, recorded once in a CUDA graph: what a network takes on a GPU when neither Python nor the launch of every kernel holds
it up, as engines for inference run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.latency.runtimes._base import Runtime, refusal
from ranksearch.sites import arguments, device_of

WARM_UP = 3  # runs before the recording: libraries choose their kernels and take their memory in them


class CudaGraph(Runtime):
    """A graph holds several runs of the module, one after the other, so that what a replay costs does not count for small layers."""

    name = "cuda_graph"
    runs = 8

    def check(self) -> None:
        """Raises:
        InvalidArgument: torch sees no NVIDIA GPU."""
        if not torch.cuda.is_available():
            raise InvalidArgument("runtime='cuda_graph' needs an NVIDIA GPU that torch sees, and there is none; take the runtime eager")

    def version(self) -> str:
        return f"CUDA graphs of torch {torch.__version__}"

    def prepare(self, module: nn.Module, inputs: Any) -> Callable[[], object]:
        device = device_of(module)
        if device.type != "cuda":
            raise InvalidModel(f"model: it is on {device}; the runtime cuda_graph runs on an NVIDIA GPU: move it to one")
        module.eval()
        args, kwargs = arguments(inputs)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        try:
            with torch.inference_mode(), torch.cuda.device(device):
                stream.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UP):
                        module(*args, **kwargs)
                torch.cuda.current_stream(device).wait_stream(stream)
                with torch.cuda.graph(graph):
                    for _ in range(self.runs):
                        module(*args, **kwargs)
        except Exception as error:  # whatever a module does that cannot be recorded, such as waiting for the device
            raise refusal("a CUDA graph", module, error) from error

        return _Recording(graph, (module, inputs))


@dataclass(frozen=True)
class _Recording:
    """A graph with what it reads: it knows where tensors lie, not that they must stay there."""

    graph: torch.cuda.CUDAGraph
    held: tuple[nn.Module, Any]

    def __call__(self) -> None:
        self.graph.replay()
