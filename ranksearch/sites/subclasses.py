"""Subclasses of torch's layers that have a forward pass of their own and still compute what torch's does, or a number times that. They are
found out by running them on weights and inputs made for it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.sites.forward import preserved_randomness

SIZES = (1.0, 1e-3, 1e3)  # of the inputs that a linear layer is asked with
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest value


class Scale(nn.Module):
    """x to x times a number."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale

    def extra_repr(self) -> str:
        return str(self.scale)


def scale_of(module: nn.Module, plain: type[nn.Module]) -> float | None:
    """By which number a layer's own forward pass multiplies what that of ``plain``, a class above it, computes; None where it does anything
    else, or something that this cannot be told of. 1 for linear layers (Falcon's), whose own scale nothing could take over; any
    number for embeddings (Gemma's, BART's). A layer is asked in both modes; its weights, its mode and random states stay as they are."""
    if not issubclass(plain, (nn.Linear, nn.Embedding)) or not _holds_only_numbers(module):
        return None
    try:
        with preserved_randomness(module), torch.no_grad():
            return _scale(module) if issubclass(plain, nn.Embedding) else _affine(module)
    except Exception:  # a forward pass that takes other arguments, other shapes: whatever it is, it is no layer of ``plain``
        return None


def _holds_only_numbers(module: nn.Module) -> bool:
    """Whether all that it has besides weight and bias are numbers that no file holds."""
    buffers = {name: value for name, value in module._buffers.items() if value is not None}
    return all(value.numel() == 1 and name in module._non_persistent_buffers_set for name, value in buffers.items())


def _clone(module: nn.Module, *, training: bool, **parameters: Tensor) -> Any:
    """A copy with the same parameters, or others. Its hooks do not run, since `forward` is called and not the module."""
    clone = copy.deepcopy(module, {id(parameter): parameter for parameter in module._parameters.values()})
    clone._parameters.update(parameters)  # pyright: ignore[reportArgumentType, reportCallIssue]
    clone.training = training
    return clone


def _scale(module: nn.Module) -> float | None:
    weight = module.get_parameter("weight")
    rows = _numbers((4, weight.shape[1]), weight)
    indices = torch.tensor([[3, 0, 1], [2, 2, 0]], device=weight.device)
    found: set[float] = set()
    for training in (False, True):
        ones = _clone(module, training=training, weight=torch.ones_like(rows)).forward(indices)
        scale = float(ones.flatten()[0])
        got, wanted = _clone(module, training=training, weight=rows).forward(indices), rows[indices] * scale
        if ones.shape != wanted.shape or not bool((ones == scale).all()) or not _equal(got, wanted):
            return None
        found.add(scale)
    return found.pop() if len(found) == 1 and 0 < abs(max(found)) < float("inf") else None


def _affine(module: nn.Module) -> float | None:
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    for training in (False, True):
        clone = _clone(module, training=training)
        for size in SIZES:
            for leading in ((3,), (2, 2)):
                x = _numbers((*leading, weight.shape[1]), weight) * size
                if not _equal(clone.forward(x), F.linear(x, weight, bias)):
                    return None
    return 1.0


def _numbers(shape: Sequence[int], like: Tensor) -> Tensor:
    """Numbers of both signs without a pattern, the same in every run; no random state is touched."""
    count = torch.Size(shape).numel()
    values = torch.sin(torch.arange(1, count + 1, dtype=torch.float64) ** 2)
    return values.reshape(*shape).to(like)


def _equal(got: Any, wanted: Tensor) -> bool:
    if not isinstance(got, Tensor) or got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    tolerance = TOLERANCE.get(wanted.dtype, 1e-2) * float(wanted.abs().max())
    return bool(((got - wanted).abs() <= tolerance).all())
