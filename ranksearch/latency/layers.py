"""Layers to be timed: the dense one of a site, and stand-ins for its options, which have their shapes and weights of the size of the
dense ones, but none that mean anything: nothing is factorized to be timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.decompositions import AnyDecomposition, Rank
from ranksearch.latency.inputs import LayerCalls
from ranksearch.networks.surgery import conformed, tied_head
from ranksearch.sites import Site, canonical_weight, copied
from ranksearch.sites.copies import HOOKS


def dense_layer(model: nn.Module, site: Site) -> nn.Module:
    """A copy of the layer of a site, without its hooks."""
    layer = copied(model.get_submodule(site.name))
    plain = vars(nn.Module())
    vars(layer).update({name: plain[name] for name in HOOKS if name in vars(layer)})
    return layer


def stand_in(model: nn.Module, site: Site, decomposition: AnyDecomposition, rank: Rank) -> nn.Module:
    """A layer of the shape of an option: of its dtype, device and memory format; its weights are random, scaled so that what they
    compose to has the norm of the dense weight, which keeps activations of a whole network in range."""
    original = model.get_submodule(site.name)
    weight, bias = canonical_weight(original, site), original._parameters.get("bias")
    empty = decomposition.empty_factors(site, rank)
    if empty is None:
        factors = decomposition.factors(decomposition.prepare(site, weight), rank)
    else:
        factors = _random(empty, weight.device)
        norm = float(decomposition.compose(site, factors).norm())
        factors = (*factors[:-1], factors[-1] * (float(weight.float().norm()) / norm if norm > 0 else 1.0))
    factors = tuple(factor.to(weight) if factor.is_floating_point() else factor.to(weight.device) for factor in factors)
    layer = decomposition.module(site, factors, None if bias is None else bias.detach().clone())
    return conformed(layer, original)


def _random(like: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(factor.shape, generator=generator) if factor.is_floating_point() else factor for factor in like)
    return tuple(factor.to(device) for factor in made)


class Calls(nn.Module):
    """All that a site does in one forward pass: its layer on the input of every call, its tied head on those of its own."""

    def __init__(self, layer: nn.Module, head: nn.Module | None, calls: LayerCalls) -> None:
        super().__init__()
        self.layer, self.head, self._own = layer, head, len(calls.own)

    def forward(self, *inputs: Tensor) -> list[Any]:
        own = [self.layer(x) for x in inputs[: self._own]]
        return own if self.head is None else own + [self.head(x) for x in inputs[self._own :]]


def timed_module(model: nn.Module, site: Site, layer: nn.Module, calls: LayerCalls) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The module to be timed for a site that is built as ``layer``, and its inputs."""
    if site.head is None:
        return (layer, calls.own) if len(calls.own) == 1 else (Calls(layer, None, calls), calls.own)
    bias = model.get_submodule(site.head.name)._parameters.get("bias")
    return Calls(layer, tied_head(layer, bias), calls), (*calls.own, *calls.head)
