"""What a layer is fitted to: second moments of its inputs in the compressed network, and of the dense layer's answers with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ranksearch.sites import Site
from ranksearch.statistics.moments import (
    PIECE,
    chunks,
    displaced,
    displaced_gram,
    gradients,
    gram,
    images,
    lower,
    pad,
    symmetrize,
    to_patch_order,
)

CHUNK = 64 << 20  # bytes of lowered inputs held at once


@dataclass
class LayerMoments:
    """Sums over positions, float64, of a layer's inputs x (im2col rows in patch order, a one behind them) and the wanted answers y.
    Squared errors are in the metric of ``output``, G: e^T G e, in which None is the identity.

    Attributes:
        output: G, shape (groups, c_out / groups, c_out / groups).
        count: positions.
        inputs: sum of x x^T, shape (groups, d + 1, d + 1).
        cross: sum of y x^T, shape (groups, c_out / groups, d + 1).
        energy: sum of y^T G y.
    """

    site: Site
    output: Tensor | None
    count: int
    inputs: Tensor
    cross: Tensor
    energy: float

    @staticmethod
    def none(site: Site, output: Tensor | None, device: torch.device) -> LayerMoments:
        """Those of a layer that nothing was seen of."""
        rows, width = site.c_out // site.groups, site.shape[1] * site.kernel[0] * site.kernel[1] + 1
        inputs, cross = (torch.zeros(site.groups, n, width, dtype=torch.float64, device=device) for n in (width, rows))
        return LayerMoments(site, None if output is None else output.to(device), 0, inputs, cross, 0.0)

    def add(self, given: Tensor, wanted: Tensor | None) -> None:
        """Take in one use of the layer: its input, and the dense layer's output at the same positions; None: inputs alone.

        Products are in float32 but for networks of float64: their rounding is small against any ridge, which is in units of each input."""
        site, dtype = self.site, torch.float64 if given.dtype == torch.float64 else torch.float32
        value = _fast(images(site, given).to(dtype))
        square = torch.zeros_like(self.inputs[:, 1:, 1:])
        padded = pad(site, value)
        if displaced(site, value.shape[2], value.shape[3]):
            for part in value.split(max(1, CHUNK // (4 * value[0].numel()))):
                self.count += displaced_gram(site, part, square)
        else:
            for part in chunks(site, value, CHUNK):
                rows = lower(site, part).flatten(2)  # (groups, taps * channels, positions)
                gram(rows, square)
                self.count += rows.shape[2]
        over_batch = padded.movedim(1, -1).flatten(1).sum(dim=0).reshape(1, *padded.shape[2:], -1).movedim(-1, 1)
        total = to_patch_order(site, lower(site, over_batch, padded=True).sum(dim=(2, 3)), (1,))
        self.inputs[:, :-1, :-1] += to_patch_order(site, symmetrize(square), (1, 2))
        self.inputs[:, :-1, -1] += total
        self.inputs[:, -1, :-1] += total
        self.inputs[:, -1, -1] = self.count
        if wanted is not None:
            answers = _fast(_maps(site, wanted, padded).to(dtype))
            size = max(1, PIECE // max(answers.shape[2] * answers.shape[3], 1) if answers.device.type == "cpu" else len(answers))
            for x, y in zip(padded.split(size), answers.split(size), strict=True):
                self._answered(x, y)

    def _answered(self, padded: Tensor, y: Tensor) -> None:
        """Take in the wanted answers, shape (batch, c_out, height, width), to inputs with their padding in place."""
        site = self.site
        # sum of y x^T is the gradient of the weight in sum of y (W x)
        geometry: dict[str, Any] = {"stride": site.stride, "dilation": site.dilation, "groups": site.groups}
        cross = conv2d_weight(padded, site.shape, y, **geometry)
        self.cross[..., :-1] += cross.reshape(site.groups, -1, self.cross.shape[2] - 1)
        flat = y.movedim(1, -1).flatten(0, -2).unflatten(1, (site.groups, -1)).movedim(0, -1)  # (groups, c_out / groups, positions)
        self.cross[..., -1] += flat.sum(dim=2)
        if self.output is None:
            self.energy += float(flat.square().sum(dtype=torch.float64))
        else:
            self.energy += float(((flat @ flat.mT) * self.output).sum())

    def answered_by(self, weight: Tensor, bias: Tensor | None) -> LayerMoments:
        """The same inputs with the answers of a layer of this canonical weight and this bias."""
        layer = rows(self.site, weight, bias)
        cross = layer @ self.inputs
        energy = float((cross * (layer if self.output is None else self.output @ layer)).sum())
        return LayerMoments(self.site, self.output, self.count, self.inputs, cross, energy)

    def to(self, device: torch.device) -> LayerMoments:
        """The same on a device."""
        output = None if self.output is None else self.output.to(device)
        return LayerMoments(self.site, output, self.count, self.inputs.to(device), self.cross.to(device), self.energy)

    def __add__(self, other: LayerMoments) -> LayerMoments:
        return LayerMoments(
            self.site, self.output, self.count + other.count, self.inputs + other.inputs, self.cross + other.cross,
            self.energy + other.energy,
        )  # fmt: skip

    @property
    def usable(self) -> bool:
        """Whether there is something to learn: finite, and not zero."""
        finite = bool(torch.isfinite(self.inputs).all() & torch.isfinite(self.cross).all())
        return finite and self.count > 0 and bool(self.inputs[:, :-1, :-1].any())

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """The squared error of a layer with this canonical weight and this bias, relative to the energy of the answers."""
        layer = rows(self.site, weight, bias)
        half = layer if self.output is None else self.output @ layer
        square = ((half @ self.inputs) * layer).sum() - 2 * (half * self.cross).sum() + self.energy
        return float(square.clamp_min(0)) / max(self.energy, 1e-300)


def _fast(maps: Tensor) -> Tensor:
    """Maps in the memory format in which a processor is quickest to sum products of them."""
    return maps.contiguous(memory_format=torch.channels_last) if maps.device.type == "cpu" else maps


def _maps(site: Site, wanted: Tensor, padded: Tensor) -> Tensor:
    """The dense layer's answers as maps, (batch, c_out, height, width), for inputs with their padding in place."""
    if site.kind == "conv2d" and site.window is None:
        return wanted if wanted.ndim == 4 else wanted.unsqueeze(0)
    extents = zip(padded.shape[2:], site.kernel, site.stride, site.dilation, strict=True)
    return gradients(site, wanted).unflatten(2, [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in extents])


def rows(site: Site, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A canonical weight with the bias behind it, float64, shape (groups, c_out / groups, d + 1)."""
    flat = weight.double().reshape(site.groups, site.c_out // site.groups, -1)
    last = flat.new_zeros(site.c_out) if bias is None else bias.detach().double()
    return torch.cat([flat, last.reshape(site.groups, -1, 1)], dim=2)
