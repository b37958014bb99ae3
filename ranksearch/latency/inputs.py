"""What a network and its layers are given in one forward pass: an example of the batch that latency is wanted for, and the inputs
of every call of every site."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument
from ranksearch.sites import BatchDim, Site, Sites, batch_size, copied, evaluating, fitted, map_tensors, run, tensors_of


@dataclass(frozen=True)
class LayerCalls:
    """The inputs of a site in one forward pass: those of its own layer, and of its tied head."""

    own: tuple[Tensor, ...]
    head: tuple[Tensor, ...] = ()


def batched(example: Any, batch: int | None, batch_dim: BatchDim) -> Any:
    """The example repeated along its batch, so that it holds ``batch`` examples; None: as it is.

    Args:
        batch_dim: see `find_sites`.

    Raises:
        InvalidArgument: the example has more examples than that, or a number that does not divide it, or no batch.
    """
    if batch is None:
        return example
    have = batch_size(example, batch_dim)
    if batch_dim is None and batch != 1:
        raise InvalidArgument(f"batch={batch}: the task says that its example has no batch (batch_dim=None); give batch=None")
    if batch % have:
        raise InvalidArgument(f"batch={batch}: the example holds {have}; give a multiple of that, or an example with a batch of 1")
    if batch == have:
        return example
    named = {str(name): dim for name, dim in batch_dim.items()} if isinstance(batch_dim, Mapping) else None
    dimensions: dict[int, int] = {}
    for name, tensor in tensors_of(example):
        dim = batch_dim if isinstance(batch_dim, int) else (named or {}).get(name)
        if dim is not None and -tensor.ndim <= dim < tensor.ndim and tensor.shape[dim] == have:
            dimensions[id(tensor)] = dim

    def repeated(tensor: Tensor) -> Tensor:
        dim = dimensions.get(id(tensor))
        return tensor if dim is None else torch.cat([tensor] * (batch // have), dim=dim)

    return map_tensors(repeated, example)


def layer_calls(model: nn.Module, sites: Sites, example: Any) -> dict[str, LayerCalls]:
    """The inputs of every site, by its name, as they come in one forward pass of a copy of ``model``: values, memory format and
    batch included."""
    copy = copied(model, share=True)
    own: dict[str, list[Tensor]] = {}
    head: dict[str, list[Tensor]] = {}
    handles = []
    for site in sites:
        tied = () if site.head is None else site.head.paths
        for paths, seen in (((site.name, *site.aliases), own), (tied, head)):
            calls = seen.setdefault(site.name, [])
            layers = {id(layer): layer for layer in map(copy.get_submodule, paths)}  # one layer may have several paths
            handles += [layer.register_forward_pre_hook(_recorder(calls), with_kwargs=True) for layer in layers.values()]
    try:
        with evaluating(copy):
            run(copy, example)
    finally:
        for handle in handles:
            handle.remove()
    return {site.name: LayerCalls(tuple(own[site.name]), tuple(head[site.name])) for site in sites}


def _recorder(calls: list[Tensor]) -> Any:
    def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
        value = args[0] if args else next(iter(kwargs.values()))
        calls.append(value.detach().clone(memory_format=torch.preserve_format))

    return hook


def network_input(model: nn.Module, example: Any) -> Any:
    """The example on the device and in the type of a model, as its forward pass takes it."""
    return fitted(example, model)


def layer_key(model: nn.Module, site: Site, calls: LayerCalls) -> str:
    """A text that is equal for layers that take the same time: kind, geometry, type and memory format of the weight, and shape, type
    and memory format of every input. Names, values and what a layer is for do not matter."""
    weight = model.get_submodule(site.name).get_parameter("weight")
    plain = {field.name: getattr(site, field.name) for field in fields(Site)}
    heads = None if site.head is None else [site.head.bias, len(site.head.paths)]
    for name in ("name", "aliases", "reads", "calls", "head"):
        plain.pop(name)
    data = [plain, heads, _described(weight), [_described(t) for t in calls.own], [_described(t) for t in calls.head]]
    return json.dumps(data, sort_keys=True, default=str)


def digest(*texts: str) -> str:
    """A short name for texts, the same in every process."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


def shapes(calls: Sequence[Tensor]) -> str:
    """Shapes of inputs in words."""
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in calls)


def bare(site: Site) -> Site:
    """A site without names: of one of several identical layers."""
    return replace(site, name="", aliases=(), reads=())


def _described(tensor: Tensor) -> list[Any]:
    return [list(tensor.shape), str(tensor.dtype), tensor.device.type, _order(tensor)]


def _order(tensor: Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest: the memory format, whatever the sizes. Dimensions of size 1 do not matter."""
    wide = [k for k in range(tensor.ndim) if tensor.shape[k] > 1]
    return sorted(wide, key=lambda k: (-tensor.stride(k), k))
