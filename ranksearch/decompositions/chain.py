"""A factorized layer as a chain of plain layers. One description gives both the cost and the module, so that the
closed-form cost cannot drift from what is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.sites import WINDOWED, Pair, Site, to_stored


@dataclass(frozen=True)
class Link:
    """One layer of the chain. ``owns`` says in which of the two spatial dimensions this layer carries the kernel,
    stride, padding and dilation of the site (it is 1 wide in the others). Channel counts may be int64 arrays:
    then costs come out for all ranks at once."""

    c_in: Any  # int or int64 array of shape (n_ranks,)
    c_out: Any
    owns: tuple[bool, bool] = (False, False)
    groups: Any = 1
    shuffle: Any = 1  # nn.ChannelShuffle with so many groups after the layer; 1: none

    def kernel(self, site: Site) -> Pair:
        return (site.kernel[0] if self.owns[0] else 1, site.kernel[1] if self.owns[1] else 1)


def chain_costs(site: Site, links: Sequence[Link], n_ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Params and MACs of the chain (bias on its last layer), int64 arrays of shape (n_ranks,)."""
    params = np.full(n_ranks, site.c_out if site.bias else 0, dtype=np.int64)
    macs = np.zeros(n_ranks, dtype=np.int64)
    head_positions = 0 if site.head is None else site.head.positions  # the head runs the chain backwards on the same weights
    params += site.c_in if site.head is not None and site.head.bias else 0
    owned = [False, False]
    for index, link in enumerate(links):
        kh, kw = link.kernel(site)
        weights = link.c_out * (link.c_in // link.groups) * kh * kw
        before, owned = owned, [a or b for a, b in zip(owned, link.owns, strict=True)]
        params += weights
        macs += weights * head_positions
        if site.kind == "embedding" and index == 0:
            continue  # a look-up
        transposed = site.window is not None and site.window.transposed  # its kernel is applied once per input position
        macs += weights * sum(call.batch * _size(call, before if transposed else owned) for call in site.calls)
    return params, macs


def _size(call: Any, owned: Sequence[bool]) -> int:
    height, width = (call.output_size[d] if owned[d] else call.input_size[d] for d in (0, 1))
    return height * width


def chain_module(site: Site, links: Sequence[Link], weights: Sequence[Tensor], bias: Tensor | None) -> nn.Module:
    """The chain as an ``nn.Sequential`` of convolutions, linear layers or an embedding, whichever the site is.

    ``weights[i]`` is canonical for link i: shape (c_out, c_in / groups, kh, kw)."""
    layers: list[nn.Module] = []
    for index, (link, weight) in enumerate(zip(links, weights, strict=True)):
        last = index == len(links) - 1
        layers.append(_layer(site, link, weight, bias if last else None, first=index == 0))
        if int(link.shuffle) > 1:
            layers.append(nn.ChannelShuffle(int(link.shuffle)))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _layer(site: Site, link: Link, weight: Tensor, bias: Tensor | None, *, first: bool) -> nn.Module:
    c_in, c_out, groups = int(link.c_in), int(link.c_out), int(link.groups)
    device, dtype = weight.device, weight.dtype
    has_bias = bias is not None
    if site.window is not None:
        layer, weight = _windowed(site, link, weight, bias=has_bias, groups=groups)
    elif site.kind in ("conv2d", "conv1d"):
        own = link.owns
        stride, dilation = (tuple(v if o else 1 for v, o in zip(p, own, strict=True)) for p in (site.stride, site.dilation))
        padding: Any = (0, 0)
        if site.padding == "same":
            padding = "same" if any(own) else (0, 0)
        else:
            padding = tuple(p if o else 0 for p, o in zip(site.padding, own, strict=True))
        # a layer that pads nothing needs no padding mode; 1 x 1 layers stay plain
        mode = site.padding_mode if padding != (0, 0) else "zeros"
        args: dict[str, Any] = {"groups": groups, "bias": has_bias, "padding_mode": mode, "device": device, "dtype": dtype}
        kernel = link.kernel(site)
        if site.kind == "conv2d":
            layer = _empty(nn.Conv2d, c_in, c_out, kernel, stride=stride, padding=padding, dilation=dilation, **args)
        else:
            pad = padding if padding == "same" else padding[1]
            layer = _empty(nn.Conv1d, c_in, c_out, kernel[1], stride=stride[1], padding=pad, dilation=dilation[1], **args)
            weight = weight.squeeze(2)
    elif site.kind == "embedding" and first:
        layer = _empty(nn.Embedding, c_in, c_out, device=device, dtype=dtype)
        weight = weight.reshape(c_out, c_in).T
    elif groups > 1:  # a grouped linear layer: a 1-wide convolution would need reshapes, so none is offered
        raise ValueError(f"groups={groups}: linear sites have no grouped layer")
    else:
        layer = _empty(nn.Linear, c_in, c_out, bias=has_bias, device=device, dtype=dtype)
        weight = weight.reshape(c_out, c_in)
    with torch.no_grad():
        layer.get_parameter("weight").copy_(weight)
        if bias is not None:
            layer.get_parameter("bias").copy_(bias)
    return layer


def _windowed(site: Site, link: Link, weight: Tensor, *, bias: bool, groups: int) -> tuple[nn.Module, Tensor]:
    """A link of a 3-D or transposed convolution, and its weight as that stores it: the convolution itself where it owns the kernel, else
    one that is 1 wide."""
    window = site.window
    assert window is not None
    args: dict[str, Any] = {"groups": groups, "bias": bias, "device": weight.device, "dtype": weight.dtype}
    c_in, c_out, dims = int(link.c_in), int(link.c_out), len(window.kernel)
    if not any(link.owns):
        plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        return _empty(plain, c_in, c_out, 1, **args), weight.reshape(c_out, c_in // groups, *[1] * dims)
    if window.transposed:
        args["output_padding"] = window.output_padding
    elif window.padding == "same" or any(window.padding):
        args["padding_mode"] = window.padding_mode
    layer = _empty(
        WINDOWED[site.kind], c_in, c_out, window.kernel, stride=window.stride, padding=window.padding, dilation=window.dilation, **args
    )
    own = replace(site, c_in=c_in, c_out=c_out, groups=groups)
    return layer, to_stored(weight, own, layer.get_parameter("weight").shape)


def _empty(layer: Any, *args: Any, **kwargs: Any) -> nn.Module:
    """The layer with uninitialised parameters: they are about to be set, and the random state is left alone."""
    return nn.utils.skip_init(layer, *args, **kwargs)
