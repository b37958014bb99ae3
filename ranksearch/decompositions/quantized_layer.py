"""Layers whose weight is kept as integers: one scale per output channel, the weight put together in every call. Written with torch
alone, since the source goes into files that are loaded without ranksearch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class QuantizedLayer(nn.Module):
    """A linear layer, an embedding or a convolution with a weight of integers, symmetric about zero: ``scale * qweight``.

    ``qweight`` holds one row per output channel (of an embedding: per row of the table); 8 bits as int8, 4 bits as uint8 of two
    integers each, the first in the lower half, 8 added to both. ``scale`` has one number per row, in the floating-point type of the
    network. ``layer`` is the layer without its weight: what it computes and its bias are its own. Nothing but that bias is trained."""

    qweight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Module, bits: int) -> None:
        super().__init__()
        weight = layer.get_parameter("weight")
        rows, width = weight.shape[0], math.prod(weight.shape[1:])
        self.bits, self.shape = bits, tuple(weight.shape)
        held, dtype = (width, torch.int8) if bits == 8 else ((width + 1) // 2, torch.uint8)
        self.register_buffer("qweight", torch.zeros(rows, held, dtype=dtype, device=weight.device))
        self.register_buffer("scale", torch.ones(rows, dtype=weight.dtype, device=weight.device))
        layer.register_parameter("weight", None)
        self.layer = layer

    def dequantized(self) -> Tensor:
        """The weight as the layer stores it, in the type of the scales."""
        return self._rows(self.qweight, self.scale).reshape(self.shape)

    def _rows(self, held: Tensor, scale: Tensor) -> Tensor:
        if self.bits == 4:
            pairs = torch.stack([held & 15, held >> 4], dim=-1).flatten(-2)
            held = pairs[..., : math.prod(self.shape[1:])].to(torch.int8) - 8
        return held.to(scale.dtype) * scale.unsqueeze(-1)

    def forward(self, input: Tensor) -> Tensor:
        layer: Any = self.layer
        if isinstance(layer, nn.Embedding):  # the rows that are looked up, and no others
            return self._rows(self.qweight[input], self.scale[input])
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(input, self.dequantized(), layer.bias)
        return layer._conv_forward(input, self.dequantized(), layer.bias)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


def quantized(layer: nn.Module, bits: int) -> QuantizedLayer:
    """A layer with the weight of ``layer`` rounded to integers, the largest of every row to the largest integer. ``layer`` loses its weight
    to it. A weight that is rounded so already (`ranksearch.decompositions.rounding.rounded`) stays as it is."""
    rows = layer.get_parameter("weight").detach().flatten(1)
    top = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(dim=1) / top
    scale = torch.where(scale > 0, scale, 1.0)
    integers = (rows / scale[:, None]).round().clamp(-top, top).to(torch.int8)
    made = QuantizedLayer(layer, bits)
    made.qweight.copy_(integers if bits == 8 else packed(integers))
    made.scale.copy_(scale)
    return made


def packed(integers: Tensor) -> Tensor:
    """Integers from -8 to 7, shape (rows, width), two in a byte: uint8, shape (rows, ceil(width / 2))."""
    shifted = (integers + 8).to(torch.uint8)
    if shifted.shape[1] % 2:
        shifted = nn.functional.pad(shifted, (0, 1))
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)
