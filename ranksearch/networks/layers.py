"""Modules of our own that built networks hold where torch has none. Each is written with torch alone, since its source goes into
files that are loaded without ranksearch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def last_bias(layer: nn.Module) -> nn.Parameter | None:
    """The bias of a chain, which only its last layer has."""
    return next((m._parameters["bias"] for m in layer.modules() if m._parameters.get("bias") is not None), None)


class ReadableChain(nn.Sequential):
    """What stands in for a layer whose ``weight`` the model reads besides calling it, as in ``x.to(layer.weight.dtype)``: it answers
    with the type, device and shape of the weight that it stands for. That weight is not put together, so that a question costs
    nothing, also where the layers inside compose one to work with: values are NaN, so that a computation with them cannot pass for
    a result. ``bias`` is that of the layers inside."""

    def __init__(self, layers: Iterable[nn.Module], shape: Iterable[int]) -> None:
        super().__init__(*layers)
        self._shape = tuple(shape)

    @property
    def weight(self) -> Tensor:
        first = next(tensor for tensor in self.state_dict().values() if tensor.is_floating_point())
        return torch.full((), float("nan"), dtype=first.dtype, device=first.device).expand(self._shape)

    @property
    def bias(self) -> Tensor | None:
        return last_bias(self)


class TransposedLinear(nn.Module):
    """x to x W, where ``nn.Linear`` computes x W^T: the way back through a linear layer, with that layer's own weight,
    which stays one parameter."""

    def __init__(self, weight: nn.Parameter) -> None:  # shape: (in_features, out_features)
        super().__init__()
        self.weight = weight
        self.in_features, self.out_features = weight.shape

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.T)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
