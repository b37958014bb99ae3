"""What a layer is fitted to: second moments of its inputs in the compressed network, and of the dense layer's answers with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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
APART = 1e3  # squared mean of an input over its variance, above which rounding of products in float32 comes near its least ridge
LEAST = 1e-3  # of the mean variance of inputs: every input varies by that much at least, since its ridge is that of so much
LOOKED_AT = 16  # images of a batch, and rows and columns of these, in which means and variances are looked at


@dataclass(frozen=True)
class Example:
    """One use of a layer, position by position: its inputs x (im2col columns in patch order), shape (groups, d, n), and the wanted answers,
    shape (groups, c_out / groups, n), or None."""

    inputs: Tensor
    answers: Tensor | None

    def wanted(self, outputs: int) -> Tensor:
        """The answers of so many outputs per group; zeros where there are none."""
        groups, _, count = self.inputs.shape
        return self.inputs.new_zeros(groups, outputs, count) if self.answers is None else self.answers


@dataclass
class LayerMoments:
    """What was seen of a layer: its inputs x (im2col rows in patch order, a one behind them) and the wanted answers y. Squared errors are
    in the metric of ``output``, G: e^T G e, in which None is the identity.

    Inputs of which there are at most half as many as entries are kept as they are, which is less than their moment, and quicker to
    learn from; of more there are sums over positions.

    Attributes:
        output: G, shape (groups, c_out / groups, c_out / groups).
        count: positions.
        measured: whether `error` is asked for, which takes the energy.
        energy: sum of y^T G y.
        examples: the uses while they are few; None: there are sums alone.
    """

    site: Site
    output: Tensor | None
    device: torch.device
    measured: bool = True
    count: int = 0
    energy: float = 0.0
    examples: list[Example] | None = field(default_factory=list)
    _sums: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def none(site: Site, output: Tensor | None, device: torch.device, *, measured: bool = True) -> LayerMoments:
        """Those of a layer that nothing was seen of."""
        return LayerMoments(site, None if output is None else output.to(device), device, measured)

    @property
    def inputs(self) -> Tensor:
        """Sum of x x^T, float64, shape (groups, d + 1, d + 1)."""
        return self._summed()[0]

    @property
    def cross(self) -> Tensor:
        """Sum of y x^T, float64, shape (groups, c_out / groups, d + 1)."""
        return self._summed()[1]

    def _summed(self) -> tuple[Tensor, Tensor]:
        """The sums; made of the examples where these are kept."""
        if self._sums is None:
            outputs, width = self.site.c_out // self.site.groups, math.prod(self.site.shape[1:]) + 1
            inputs, cross = (torch.zeros(self.site.groups, n, width, dtype=torch.float64, device=self.device) for n in (width, outputs))
            self._sums = inputs, cross
            for one in self.examples or ():
                square = torch.zeros_like(inputs[:, 1:, 1:])
                gram(one.inputs, square)
                self._put(symmetrize(square), one.inputs.sum(dim=2), one.inputs.shape[2])
                if one.answers is not None:
                    cross[..., :-1] += one.answers @ one.inputs.to(one.answers.dtype).mT
                    cross[..., -1] += one.answers.sum(dim=2)
        return self._sums

    def _put(self, square: Tensor, total: Tensor, count: int) -> None:
        """Add to the sums of inputs."""
        inputs = self._summed()[0]
        inputs[:, :-1, :-1] += square
        inputs[:, :-1, -1] += total
        inputs[:, -1, :-1] += total
        inputs[:, -1, -1] += count

    def add(self, given: Tensor, wanted: Tensor | None) -> None:
        """Take in one use of the layer: its input, and the dense layer's output at the same positions; None: inputs alone.

        Products are in float32, whose rounding is small against any ridge, which is in units of each input; but for networks of float64,
        and for inputs that are taken about means which are large against what they vary by."""
        site, value = self.site, images(self.site, given)
        dtype = torch.float64 if given.dtype == torch.float64 or (site.bias and _far_from_zero(value)) else torch.float32
        value = _fast(value.to(dtype))
        padded = pad(site, value)
        maps = None if wanted is None else _maps(site, wanted, padded).to(dtype)
        count = len(value) * math.prod(_extents(site, padded))
        if self.examples is not None and 2 * (self.count + count) <= math.prod(site.shape[1:]):
            self._keep(padded, maps)
        else:
            self._sum(value, padded, count)
            if maps is not None:
                maps = _fast(maps)
                size = max(1, PIECE // max(maps.shape[2] * maps.shape[3], 1) if maps.device.type == "cpu" else len(maps))
                for x, y in zip(padded.split(size), maps.split(size), strict=True):
                    self._answered(x, y)
        self.count += count

    def _keep(self, padded: Tensor, maps: Tensor | None) -> None:
        """Take in a use as it is."""
        assert self.examples is not None
        rows = to_patch_order(self.site, lower(self.site, padded, padded=True).flatten(2), (1,))
        answers = None if maps is None else _flat(self.site, maps)
        self.examples.append(Example(rows, answers))
        self._sums = None
        if answers is not None:
            self.energy += self._energy(answers)

    def _sum(self, value: Tensor, padded: Tensor, count: int) -> None:
        """Take in the inputs of a use, so many positions, by their sums; from now on there is nothing else."""
        site, (inputs, _) = self.site, self._summed()
        self.examples = None
        square = torch.zeros_like(inputs[:, 1:, 1:])
        if displaced(site, value.shape[2], value.shape[3]):
            for part in value.split(max(1, CHUNK // (4 * value[0].numel()))):
                displaced_gram(site, part, square)
        else:
            for part in chunks(site, value, CHUNK):
                gram(lower(site, part).flatten(2), square)  # of (groups, taps * channels, positions)
        over_batch = padded.movedim(1, -1).flatten(1).sum(dim=0).reshape(1, *padded.shape[2:], -1).movedim(-1, 1)
        total = to_patch_order(site, lower(site, over_batch, padded=True).sum(dim=(2, 3)), (1,))
        self._put(to_patch_order(site, symmetrize(square), (1, 2)), total, count)

    def _answered(self, padded: Tensor, y: Tensor) -> None:
        """Take in the wanted answers, shape (batch, c_out, height, width), to inputs with their padding in place."""
        site, (_, cross) = self.site, self._summed()
        flat = _flat(site, y)
        if max(site.kernel) == 1:  # every position is read by itself
            cross[..., :-1] += flat @ _flat(site, padded[:, :, :: site.stride[0], :: site.stride[1]]).mT
        else:  # sum of y x^T is the gradient of the weight in sum of y (W x)
            geometry: dict[str, Any] = {"stride": site.stride, "dilation": site.dilation, "groups": site.groups}
            cross[..., :-1] += conv2d_weight(padded, site.shape, y, **geometry).reshape(site.groups, -1, cross.shape[2] - 1)
        cross[..., -1] += flat.sum(dim=2)
        self.energy += self._energy(flat)

    def _energy(self, flat: Tensor) -> float:
        """Sum of y^T G y, of shape (groups, c_out / groups, positions), where it is asked for: it takes as long as the sums."""
        if not self.measured:
            return 0.0
        if self.output is None:
            return float(flat.square().sum(dtype=torch.float64))
        return float(((flat @ flat.mT) * self.output).sum())

    def answered_by(self, weight: Tensor, bias: Tensor | None) -> LayerMoments:
        """The same inputs with the answers of a layer of this canonical weight and this bias."""
        layer = rows(self.site, weight, bias)
        found = LayerMoments(self.site, self.output, self.device, self.measured, self.count)
        if self.examples is not None:
            found.examples = [Example(one.inputs, given_by(layer, one.inputs)) for one in self.examples]
            found.energy = sum(self._energy(one.answers) for one in found.examples if one.answers is not None)
            return found
        cross = layer @ self.inputs
        found.examples, found._sums = None, (self.inputs, cross)
        if self.measured:
            found.energy = float((cross * (layer if self.output is None else self.output @ layer)).sum())
        return found

    @property
    def usable(self) -> bool:
        """Whether there is something to learn: finite, and not zero."""
        if self.examples is not None:
            parts = [part for one in self.examples for part in (one.inputs, one.answers) if part is not None]
            return all(bool(torch.isfinite(part).all()) for part in parts) and any(bool(one.inputs.any()) for one in self.examples)
        squares = self.inputs.diagonal(dim1=1, dim2=2)  # where an input is not finite, its square is not
        return bool(torch.isfinite(squares).all() & torch.isfinite(self.cross).all() & squares[:, :-1].any())

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """The squared error of a layer with this canonical weight and this bias, relative to the energy of the answers."""
        assert self.measured, "there is no energy to compare it with"
        layer = rows(self.site, weight, bias)
        if self.examples is not None:
            square = sum(self._energy(given_by(layer, one.inputs) - one.wanted(layer.shape[1])) for one in self.examples)
        else:
            half = layer if self.output is None else self.output @ layer
            square = float(((half @ self.inputs) * layer).sum() - 2 * (half * self.cross).sum()) + self.energy
        return max(square, 0.0) / max(self.energy, 1e-300)


def given_by(layer: Tensor, inputs: Tensor) -> Tensor:
    """What a layer, see `rows`, gives for inputs, shape (groups, d, n); float64, shape (groups, c_out / groups, n)."""
    return layer[..., :-1] @ inputs.double() + layer[..., -1:]


def _far_from_zero(value: Tensor) -> bool:
    """Whether a channel's mean is so much larger than what it varies by; of images of shape (batch, channels, height, width)."""
    images, rows, columns = (slice(None, None, -(-value.shape[k] // LOOKED_AT) or 1) for k in (0, 2, 3))
    variance, mean = torch.var_mean(value[images, :, rows, columns].float(), dim=(0, 2, 3), correction=0)
    return bool((mean.square() > APART * torch.maximum(variance, LEAST * variance.mean())).any())


def _fast(maps: Tensor) -> Tensor:
    """Maps in the memory format in which a processor is quickest to sum products of them."""
    return maps.contiguous(memory_format=torch.channels_last) if maps.device.type == "cpu" else maps


def _flat(site: Site, maps: Tensor) -> Tensor:
    """Maps, shape (batch, channels, height, width), position by position: (groups, channels / groups, positions)."""
    return maps.movedim(1, -1).flatten(0, -2).unflatten(1, (site.groups, -1)).movedim(0, -1)


def _extents(site: Site, padded: Tensor) -> list[int]:
    """Height and width of what a site gives for inputs with their padding in place."""
    extents = zip(padded.shape[2:], site.kernel, site.stride, site.dilation, strict=True)
    return [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in extents]


def _maps(site: Site, wanted: Tensor, padded: Tensor) -> Tensor:
    """The dense layer's answers as maps, (batch, c_out, height, width), for inputs with their padding in place."""
    if site.kind == "conv2d" and site.window is None:
        return wanted if wanted.ndim == 4 else wanted.unsqueeze(0)
    return gradients(site, wanted).unflatten(2, _extents(site, padded))


def rows(site: Site, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A canonical weight with the bias behind it, float64, shape (groups, c_out / groups, d + 1)."""
    flat = weight.double().reshape(site.groups, site.c_out // site.groups, -1)
    last = flat.new_zeros(site.c_out) if bias is None else bias.detach().double()
    return torch.cat([flat, last.reshape(site.groups, -1, 1)], dim=2)
