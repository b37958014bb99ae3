"""``torch.compile``: one program per module and input shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ranksearch.latency.runtimes._base import Runtime, refusal
from ranksearch.sites import arguments


class Compiled(Runtime):
    name = "compile"

    def check(self) -> None:
        return None

    def version(self) -> str:
        return f"torch.compile {torch.__version__}"

    def prepare(self, module: nn.Module, inputs: Any) -> Callable[[], object]:
        module.eval()
        args, kwargs = arguments(inputs)
        program = torch.compile(_call(module), dynamic=False)

        def work() -> None:
            with torch.no_grad():
                program(*args, **kwargs)

        try:
            work()  # compiles
        except Exception as error:  # whatever a compiler says
            raise refusal("torch.compile", module, error) from error
        return work


def _call(module: nn.Module) -> Callable[..., Any]:
    """A function with code of its own: programs are kept by code, a few per code, and looked up in turn, so that modules of one
    class would slow each other down and, from the ninth on, run eagerly."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name=f"call_{id(module)}")
    return call
