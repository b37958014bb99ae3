"""Back to dense weights: every layer that stands for one of the dense network's becomes that layer again, with the weight that its factors
amount to. That weight is found by running the layer, not from what it is made of, so that trained layers and all types are merged alike."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidModel
from ranksearch.networks.layers import last_bias
from ranksearch.sites import Site, Sites, copied, evaluating, run, tensors_of, to_stored

CHUNK = 256  # unit inputs at a time
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # of outputs, relative to their root mean square; of shorter types 5e-2


def merged(network: nn.Module, dense: nn.Module, sites: Sites, factorized: Iterable[str], example: Any) -> nn.Module:
    """A network of the modules of ``dense`` that computes what ``network`` does, in evaluation mode. Neither is changed.

    Args:
        network: built from ``dense``, trained or not.
        sites: of ``dense``.
        factorized: the sites that ``network`` has other layers for.
        example: the input on which both are run and compared.

    Raises:
        InvalidModel: they differ.
    """
    model = copied(dense)
    state = network.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in state and state[name].shape == value.shape:
                value.copy_(state[name])
        for path in factorized:
            site = sites[path]
            layer, plain = network.get_submodule(site.name), model.get_submodule(site.name)
            weight = plain.get_parameter("weight")
            weight.copy_(to_stored(weight_of(layer, plain, site), site, weight.shape))
            for place in (site.name, *(site.head.paths if site.head else ())):
                bias, own = last_bias(network.get_submodule(place)), model.get_submodule(place)._parameters.get("bias")
                if bias is not None and own is not None:
                    own.copy_(bias)
        _compare(network, model.eval(), example)
    return model


def weight_of(layer: nn.Module, plain: nn.Module, site: Site) -> Tensor:
    """The canonical weight of the layer that ``layer`` computes, float64: its answers to unit inputs.

    Args:
        plain: the layer of the dense network that it stands for, for its geometry.
    """
    layer = copy.deepcopy(layer).double().eval()
    if site.kind == "embedding":
        rows = torch.arange(site.c_in, device=_device(layer))
        table = torch.cat([layer(part) for part in rows.split(CHUNK)]) / site.scale
        return table.T.reshape(site.shape)
    if site.window is not None and site.window.transposed:
        return _transposed(layer, plain, site)
    window = _Window(plain, site) if site.kind in ("conv1d", "conv2d", "conv3d") else None
    inputs = site.c_in if window is None else site.c_in * window.size
    zero = torch.zeros(1, site.c_in, dtype=torch.float64, device=_device(layer)) if window is None else window.blank(_device(layer))
    answers = []
    for units in torch.arange(inputs).split(CHUNK):
        given = zero.repeat(len(units), *[1] * (zero.ndim - 1))
        if window is None:
            given[torch.arange(len(units)), units] = 1.0
        else:
            window.mark(given, units)
        answers.append(_answers(layer, given, window) - _answers(layer, zero, window))
    found = torch.cat(answers).T  # shape: (c_out, inputs)
    return found.reshape(site.shape) if window is None else window.weight(found)


def _answers(layer: nn.Module, given: Tensor, window: _Window | None) -> Tensor:
    output = layer(given)
    return output if window is None else output[(slice(None), slice(None), *window.output)]


class _Window:
    """Where the inputs of one output position lie that no padding reaches."""

    def __init__(self, plain: Any, site: Site) -> None:
        self.site, self.kernel = site, tuple(plain.kernel_size)
        named = isinstance(plain.padding, str)
        self.output, self.start, lengths = [], [], []
        for axis, kernel in enumerate(self.kernel):
            stride, dilation = plain.stride[axis], plain.dilation[axis]
            before = {"same": dilation * (kernel - 1) // 2, "valid": 0}.get(plain.padding, 0) if named else plain.padding[axis]
            place = -(-before // stride)
            self.output.append(place)
            self.start.append(place * stride - before)
            lengths.append(self.start[-1] + dilation * (kernel - 1) + 1 + 2 * before)
        self.dilation, self.lengths = tuple(plain.dilation), lengths
        self.positions = torch.cartesian_prod(*map(torch.arange, self.kernel)).reshape(-1, len(self.kernel))
        self.size = len(self.positions)

    def blank(self, device: torch.device) -> Tensor:
        return torch.zeros(1, self.site.c_in, *self.lengths, dtype=torch.float64, device=device)

    def mark(self, given: Tensor, units: Tensor) -> None:
        """Set one input of every row to 1: of unit u that of channel u // size at position u % size of the window."""
        where = self.positions[units % self.size]
        axes = [self.start[axis] + self.dilation[axis] * where[:, axis] for axis in range(len(self.kernel))]
        given[(torch.arange(len(units)), units // self.size, *axes)] = 1.0

    def weight(self, found: Tensor) -> Tensor:
        """From all responses, shape (c_out, c_in * size), the canonical weight: of the channels of each output's own group."""
        site = self.site
        whole = found.reshape(site.groups, site.c_out // site.groups, site.groups, site.c_in // site.groups, self.size)
        own = torch.stack([whole[g, :, g] for g in range(site.groups)])
        return own.reshape(site.shape)


def _transposed(layer: nn.Module, plain: Any, site: Site) -> Tensor:
    """The canonical weight of a transposed convolution: where one input is 1, the outputs are the kernel of its channel."""
    at = [-(-p // s) for p, s in zip(plain.padding, plain.stride, strict=True)]  # far enough in for the kernel to be whole
    given = torch.zeros(1, site.c_in, *(2 * n + 1 for n in at), dtype=torch.float64, device=_device(layer))
    first = [n * s - p for n, s, p in zip(at, plain.stride, plain.padding, strict=True)]
    where = [torch.arange(k) * d + f for k, d, f in zip(plain.kernel_size, plain.dilation, first, strict=True)]
    nothing, kernels = layer(given), []
    for channel in range(site.c_in):
        unit = given.clone()
        unit[(0, channel, *at)] = 1.0
        output = layer(unit) - nothing
        for axis, places in enumerate(where, start=2):
            output = output.index_select(axis, places.to(output.device))
        kernels.append(output[0].flatten(1))  # shape: (c_out, K)
    whole = torch.stack(kernels, dim=1).reshape(site.groups, site.c_out // site.groups, site.groups, site.c_in // site.groups, -1)
    return torch.stack([whole[g, :, g] for g in range(site.groups)]).reshape(site.shape)


def _device(layer: nn.Module) -> torch.device:
    return next(iter(layer.state_dict().values())).device


def _compare(network: nn.Module, model: nn.Module, example: Any) -> None:
    with evaluating(network):
        expected, got = ([t for _, t in tensors_of(run(each, example)) if t.is_floating_point()] for each in (network, model))
    for one, two in zip(got, expected, strict=True):
        scale = float(two.double().square().mean().sqrt()) or 1.0
        off = float((one.double() - two.double()).abs().max()) / scale
        if not off <= TOLERANCE.get(two.dtype, 5e-2):
            raise InvalidModel(f"model: with its factors merged its outputs differ by {off:.1e} of their size; write it as it is")
