"""The values of this package: a site and its calls, and what was left out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument
from ranksearch.sites.cost import Cost
from ranksearch.sites.forward import BatchDim

Kind = Literal[
    "conv2d", "conv1d", "linear", "transformers_conv1d", "embedding", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"
]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """What a convolution with three dimensions, or a transposed one, moves over its input: one entry per dimension."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | Literal["same"]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    padding_mode: str = "zeros"


@dataclass(frozen=True)
class Call:
    """One use of a site within the forward pass of one example."""

    batch: int  # how many times the layer is applied per example: 1, or the tokens of a linear layer
    input_size: Pair  # (height, width) before padding; (1, length) for 1-D, (1, 1) for linear layers
    output_size: Pair


@dataclass(frozen=True)
class Site:
    """One factorizable layer. Its *canonical weight* has shape (c_out, c_in / groups, kernel[0], kernel[1]),
    whatever the layer stores: 1-D convolutions have kernel (1, k), linear layers (1, 1), embeddings
    c_in = number of rows and c_out = dimension. Layers with a ``window`` have kernel (1, K), all its places in a row, and nothing
    to say of strides and padding here: their canonical input are the windows themselves."""

    name: str  # module path; "" is the model itself
    kind: Kind
    c_out: int
    c_in: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair | Literal["same"] = (0, 0)
    padding_mode: str = "zeros"
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = True
    calls: tuple[Call, ...] = (Call(1, (1, 1), (1, 1)),)
    batched: bool = True  # False: a convolution called without a batch dimension
    aliases: tuple[str, ...] = ()  # other module paths that use the same weight; they are built with it
    head: Site | None = None  # an embedding's tied output head: the linear site that multiplies by the same weight
    scale: float = 1.0  # what the output of an embedding is multiplied by, as Gemma and BART do; a tied head's is not
    window: Window | None = None  # of 3-D and transposed convolutions
    reads: tuple[str, ...] = ()  # what the model reads of the layer besides calling it: "weight" (its dtype, device, shape), "bias"

    @property
    def paths(self) -> tuple[str, ...]:
        """Every module path that is built with this site: its own, its aliases, those of its tied head."""
        return (self.name, *self.aliases, *(self.head.paths if self.head else ()))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the canonical weight."""
        return (self.c_out, self.c_in // self.groups, *self.kernel)

    @property
    def positions(self) -> int:
        """How often the weight is applied per example, over all calls: once per output position, of a transposed convolution once per
        input position."""
        transposed = self.window is not None and self.window.transposed
        return sum(c.batch * math.prod(c.input_size if transposed else c.output_size) for c in self.calls)

    @property
    def cost(self) -> Cost:
        """Params and MACs of the dense layer; with a tied head the weight is stored once and both uses are counted."""
        c_out, c_in, kh, kw = self.shape
        weights = c_out * c_in * kh * kw
        macs = 0 if self.kind == "embedding" else weights * self.positions
        cost = Cost(params=weights + (self.c_out if self.bias else 0), macs=macs)
        return cost if self.head is None else cost + self.head.cost - Cost(params=weights, macs=0)


@dataclass(frozen=True)
class Skipped:
    """A module with a weight that is not a site, and why."""

    name: str
    type: str
    params: int
    reason: str


@dataclass(frozen=True)
class Sites:
    """The sites of a model, what was left out, and params and MACs of the whole dense model."""

    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    total: Cost
    uncounted: tuple[str, ...] = ()  # operators that ran, look like products and are not in ``total.macs``, by name
    batch_dim: BatchDim = field(default=0, compare=False)  # along which inputs stack examples, see `ranksearch.sites.batch_size`

    def __iter__(self):
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, name: str) -> Site:
        for site in self.sites:
            if name in site.paths:
                return site
        raise InvalidArgument(f"site={name!r} is not a site; sites are: {', '.join(s.name for s in self.sites)}")


def canonical_weight(module: nn.Module, site: Site) -> Tensor:
    """The weight of ``module`` as a detached view in the site's canonical shape; of a transposed convolution a copy."""
    return to_canonical(module.get_parameter("weight").detach(), site)


def to_canonical(weight: Tensor, site: Site) -> Tensor:
    """A weight as its layer stores it, in the site's canonical shape; differentiable."""
    if site.kind in ("embedding", "transformers_conv1d"):
        weight = weight.T
    if site.window is not None and site.window.transposed:  # stored (c_in, c_out / groups, ...)
        g = site.groups
        weight = weight.reshape(g, site.c_in // g, site.c_out // g, -1).transpose(1, 2)
    return weight.reshape(site.shape)


def to_stored(weight: Tensor, site: Site, shape: torch.Size) -> Tensor:
    """Inverse of `to_canonical`, in the shape that the layer has; differentiable."""
    if site.kind in ("embedding", "transformers_conv1d"):
        return weight.reshape(shape[::-1]).T
    if site.window is not None and site.window.transposed:
        g = site.groups
        weight = weight.reshape(g, site.c_out // g, site.c_in // g, -1).transpose(1, 2)
    return weight.reshape(shape)
