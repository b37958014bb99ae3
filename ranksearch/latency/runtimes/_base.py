"""The contract of a runtime: what runs a network on a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ranksearch.errors import InvalidModel


class Runtime(ABC):
    """One way to run a module. Implementations are final, have no state, and are listed in ``RUNTIMES``.

    Attributes:
        runs: how often one call of what `prepare` returns runs the module; times are divided by it.
    """

    name: str
    runs: int = 1

    @abstractmethod
    def check(self) -> None:
        """Refuse, before anything is measured, what cannot run here.

        Raises:
            MissingDependency: a package that it needs is not installed."""

    @abstractmethod
    def version(self) -> str:
        """Of the software whose kernels run; times of two versions are never taken for one another."""

    @abstractmethod
    def prepare(self, module: nn.Module, inputs: Any) -> Callable[[], object]:
        """What runs ``module`` ``runs`` times, in evaluation mode and without gradients, on these inputs. An accelerator may still be
        at it when the call returns: whoever times it waits for the device. All that happens once (compiling, converting) happens here.

        Args:
            inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments, on the module's device.

        Raises:
            InvalidModel: the runtime cannot run the module.
        """


def refusal(what: str, module: nn.Module, error: Exception) -> InvalidModel:
    """The error for a module that a runtime cannot take, with the beginning of what it says."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    reason = reason if len(reason) <= 300 else reason[:300] + "..."
    return InvalidModel(f"model: {what} fails on {type(module).__name__}: {reason}; take the runtime eager")


def settled(device: torch.device) -> Callable[[], None]:
    """What waits until a device has done all that it was given."""
    kind = getattr(torch, device.type, None)
    wait = getattr(kind, "synchronize", None)
    return (lambda: None) if device.type == "cpu" or wait is None else (lambda: wait(device))
