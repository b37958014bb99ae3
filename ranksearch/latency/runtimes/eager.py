"""PyTorch as it is: every operator is called from Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ranksearch.latency.runtimes._base import Runtime
from ranksearch.sites import arguments


class Eager(Runtime):
    name = "eager"

    def check(self) -> None:
        return None

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, module: nn.Module, inputs: Any) -> Callable[[], object]:
        module.eval()
        args, kwargs = arguments(inputs)

        def work() -> None:
            with torch.inference_mode():
                module(*args, **kwargs)

        return work
