"""Builds a new network of plain layers from a configuration. The user's model is never edited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.decompositions import Rank
from ranksearch.errors import InvalidArgument
from ranksearch.networks import pretrained
from ranksearch.networks.layers import ReadableChain, TransposedLinear, last_bias
from ranksearch.sites import Scale, Site, copied, take_over
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra


def build(spectra: Spectra, configuration: Configuration) -> nn.Module:
    """A new network in which every site that ``configuration`` names is factorized.

    The factors are those of the metric of ``spectra``; dtype, device, memory format, training mode and
    ``requires_grad`` follow the original. Nothing is shared with it.

    Raises:
        InvalidArgument: the configuration names a site or a decomposition that is not there.
    """
    replacements: dict[str, nn.Module] = {}
    for name, decomposition_name, rank in configuration.choices:
        site = spectra.sites[name]
        reason = spectra.decomposition(decomposition_name).undefined(site)
        if reason is not None:
            raise InvalidArgument(f"configuration {configuration.id}: {decomposition_name} is not defined for {name!r}: {reason}")
        replacements[site.name] = factorized(spectra, site, decomposition_name, rank)
    return replace_sites(spectra.model, [spectra.sites[name] for name in replacements], replacements)


def factorized(spectra: Spectra, site: Site, decomposition: str, rank: Rank) -> nn.Module:
    """The layer that stands in for ``site`` at an option of a decomposition that is defined for it: a module of its own,
    with dtype, device, memory format, training mode and ``requires_grad`` of the original."""
    original = spectra.model.get_submodule(site.name)
    weight, bias = original.get_parameter("weight"), original._parameters.get("bias")
    factors = tuple(factor.to(weight.device) for factor in spectra.factors(site, decomposition, rank))
    bias = None if bias is None else bias.detach().to(factors[-1].dtype, copy=True)
    layer = spectra.decomposition(decomposition).module(site, factors, bias)
    return conformed(layer.to(weight.dtype), original)


def conformed(layer: nn.Module, original: nn.Module) -> nn.Module:
    """``layer``, which stands in for ``original``, with what follows from that one, in place: padding index, memory format, training
    mode, and whether weight and bias are trained."""
    weight, bias = original.get_parameter("weight"), original._parameters.get("bias")
    if isinstance(original, nn.Embedding):
        table = next(module for module in layer.modules() if isinstance(module, nn.Embedding))
        table.padding_idx, table.scale_grad_by_freq = original.padding_idx, original.scale_grad_by_freq
    if weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
        layer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    layer.train(original.training).requires_grad_(weight.requires_grad)
    own_bias = last_bias(layer)
    if bias is not None and own_bias is not None:
        own_bias.requires_grad_(bias.requires_grad)
    return layer


def replace_sites(model: nn.Module, sites: Iterable[Site], replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A deep copy of ``model`` with the modules of ``sites`` (and all their aliases) exchanged for ``replacements``,
    by site name; tied heads are derived from them. What is replaced is not copied first; its hooks, and what the model reads
    of it besides calling it, are those of the new layer too."""
    memo: dict[int, Any] = {}
    replaced: list[tuple[nn.Module, nn.Module]] = []
    for site in sites:
        original = model.get_submodule(site.name)
        plain = replacements[site.name]
        layer = _readable(_scaled(plain, site), original, site)
        _keep_bias(layer, original, memo)
        replaced += [(layer, model.get_submodule(path)) for path in (site.name, *site.aliases)]
        if site.head is not None:
            original = model.get_submodule(site.head.name)
            head = _readable(tied_head(plain, original._parameters.get("bias")), original, site)
            head.train(original.training)
            _keep_bias(head, original, memo)
            replaced += [(head, model.get_submodule(path)) for path in site.head.paths]
    memo |= {id(original): layer for layer, original in replaced}
    for layer, original in replaced:
        take_over(layer, original, memo)
    network = copied(model, memo)
    pretrained.mark(network, [layer for layer, _ in replaced])
    return network


def _scaled(layer: nn.Module, site: Site) -> nn.Module:
    """``layer``, with the number behind it that the site's outputs are multiplied by."""
    if site.scale == 1.0:
        return layer
    parts = layer if isinstance(layer, nn.Sequential) else [layer]
    return nn.Sequential(*parts, Scale(site.scale)).train(layer.training)


def _readable(layer: nn.Module, original: nn.Module, site: Site) -> nn.Module:
    """``layer``, able to answer what the model reads of ``original``. One that keeps a dense weight is as it is."""
    if not site.reads or layer._parameters.get("weight") is not None:
        return layer
    parts = layer if isinstance(layer, nn.Sequential) else [layer]
    return ReadableChain(parts, original.get_parameter("weight").shape).train(layer.training)


def _keep_bias(layer: nn.Module, original: nn.Module, memo: dict[int, Any]) -> None:
    """A bias that other modules hold too stays one parameter: their copies take that of ``layer``, by way of ``memo``."""
    bias = original._parameters.get("bias")
    for module in layer.modules() if bias is not None else ():
        if module._parameters.get("bias") is not None:
            module._parameters["bias"] = memo.setdefault(id(bias), module._parameters["bias"])


def tied_head(layer: nn.Module, bias: Tensor | None) -> nn.Module:
    """The output head of an embedding: h to h E^T + bias for the table E that ``layer`` looks up in, with the same
    parameters. For E = A B^T, an ``nn.Embedding`` of A and an ``nn.Linear`` of B: h to (h B) A^T + bias.

    Args:
        layer: an ``nn.Embedding``, or an ``nn.Sequential`` of one and linear layers without bias.
        bias: of the head, shape (rows,); it is copied.

    Raises:
        InvalidArgument: another kind of layer.
    """
    parts = list(layer) if isinstance(layer, nn.Sequential) else [layer]
    plain = isinstance(parts[0], nn.Embedding) and all(isinstance(p, nn.Linear) and p.bias is None for p in parts[1:])
    if not plain:
        raise InvalidArgument(f"layer={type(layer).__name__} is no embedding followed by linear layers: it has no tied head")
    table = parts[0].get_parameter("weight")
    last = nn.Linear(table.shape[1], table.shape[0], bias=bias is not None, device="meta", dtype=table.dtype)  # nothing is stored
    last.weight = table
    if bias is not None:
        last.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    back: list[nn.Module] = [TransposedLinear(p.get_parameter("weight")) for p in reversed(parts[1:])]
    return nn.Sequential(*back, last) if back else last
