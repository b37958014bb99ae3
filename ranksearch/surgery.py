"""From a configuration to a new network of plain layers, and batch-norm statistics to go with it. The user's model
is never edited."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site, run
from ranksearch.space import Configuration
from ranksearch.spectra import Spectra


def build(spectra: Spectra, configuration: Configuration) -> nn.Module:
    """A new network in which every site that ``configuration`` names is factorized.

    The factors are those that are best in the metric of ``spectra``; dtype, device, training mode and
    ``requires_grad`` follow the original. Nothing is shared with it.

    Raises:
        InvalidArgument: the configuration names a site or a decomposition that is not there.
    """
    replacements: dict[str, nn.Module] = {}
    for name, decomposition_name, rank in configuration.choices:
        site = spectra.sites[name]
        decomposition = spectra.decomposition(decomposition_name)
        reason = decomposition.undefined(site)
        if reason is not None:
            raise InvalidArgument(f"configuration {configuration.id}: {decomposition_name} is not defined for {name!r}: {reason}")
        original = spectra.model.get_submodule(site.name)
        weight = original.get_parameter("weight")
        factors = tuple(f.to(weight.dtype) for f in spectra.factors(site, decomposition_name, rank))
        bias = original._parameters.get("bias")
        layer = decomposition.module(site, factors, None if bias is None else bias.detach())
        layer.train(original.training).requires_grad_(weight.requires_grad)
        replacements[site.name] = layer
    return replace_sites(spectra.model, [spectra.sites[name] for name in replacements], replacements)


def replace_sites(model: nn.Module, sites: Iterable[Site], replacements: Mapping[str, nn.Module]) -> nn.Module:
    """A deep copy of ``model`` with the modules of ``sites`` (and all their aliases) exchanged for ``replacements``,
    by site name. What is replaced is not copied first."""
    memo: dict[int, Any] = {}
    for site in sites:
        for path in (site.name, *site.aliases):
            memo[id(model.get_submodule(path))] = replacements[site.name]
    return _without_fused_encoders(copy.deepcopy(model, memo))


def _without_fused_encoders(model: nn.Module) -> nn.Module:
    """torch's encoder layers have a fused inference path that reads ``linear1.weight`` past the module; where that layer
    was replaced, the flags that torch itself consults choose the plain path."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and not (type(module.linear1) is type(module.linear2) is nn.Linear):
            module.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(not getattr(layer, "activation_relu_or_gelu", 0) for layer in module.layers):
            module.use_nested_tensor = False
    return model


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Re-estimate the running statistics of every batch norm from ``batches`` of inputs, in place, as the average
    over batches; nothing else changes. Returns how many batch norms were re-estimated; none: no batch is drawn.

    A network whose layers were replaced sees other activations than the statistics were made for
    (Decomposable-Net, arXiv 1910.13141, recomputes them; better than a closed form)."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        seen = 0
        with torch.no_grad():
            for batch in batches:
                run(model, batch)
                seen += 1
        if not seen:
            raise InvalidArgument("batches is empty: batch-norm statistics need at least one batch")
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
