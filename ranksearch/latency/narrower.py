"""Latency of narrower dense networks, measured in the session in which the table of a network is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ranksearch.costs import DenseNetwork, Narrower
from ranksearch.errors import InvalidArgument
from ranksearch.latency.bench import Bench
from ranksearch.latency.table import NarrowerTimes
from ranksearch.latency.timing import Interval
from ranksearch.sites import evaluating, find_sites, run, tensors_of


def built(network: DenseNetwork) -> list[tuple[NarrowerTimes, nn.Module]]:
    """The narrower networks of a network, counted and not yet timed, each ready to run where the dense one does.

    Raises:
        InvalidArgument: one that does not answer the example as the dense network does, or metrics that are no numbers.
    """
    narrower = network.narrower
    if narrower is None:
        return []
    with evaluating(network.model):
        answer = _shapes(network.model, network.example)
    found = []
    for width in narrower.widths:
        model = _like(network.model, narrower.network(width))
        given = _shapes(model, network.example)
        if given != answer:
            raise InvalidArgument(
                f"narrower: the network of width {width:g} answers with shapes {given}, the dense one with {answer}; give one that "
                "can take its place"
            )
        total = find_sites(model, network.example, batch_dim=network.batch_dim).total
        empty = NarrowerTimes(width, total.params, total.macs, Interval(math.nan, math.nan, math.nan), _metrics(narrower, width))
        found.append((empty, model))
    return found


def timed(bench: Bench, networks: Sequence[tuple[NarrowerTimes, nn.Module]]) -> tuple[NarrowerTimes, ...]:
    """The same with their latency, the widest first."""
    ratios = bench.whole([model for _, model in networks])
    found = [replace(empty, ratio=ratio) for (empty, _), ratio in zip(networks, ratios, strict=True)]
    return tuple(sorted(found, key=lambda one: -one.width))


def _metrics(narrower: Narrower, width: float) -> dict[str, float]:
    given = narrower.metrics(width) or {}
    found = {str(name): float(value) for name, value in given.items()}
    if not all(map(math.isfinite, found.values())):
        raise InvalidArgument(f"narrower: metrics of width {width:g} are {found}; give finite numbers, or None where it was not trained")
    return found


def _shapes(model: nn.Module, example: Any) -> list[tuple[int, ...]]:
    with torch.no_grad():
        return [tuple(tensor.shape) for _, tensor in tensors_of(run(model, example))]


def _like(dense: nn.Module, model: nn.Module) -> nn.Module:
    """A network in evaluation mode, with device, dtype and memory format of the dense one."""
    first = next(dense.parameters())
    model = model.eval().to(device=first.device, dtype=first.dtype)
    images = [p for p in dense.parameters() if p.ndim == 4 and not p.is_contiguous()]
    if any(p.is_contiguous(memory_format=torch.channels_last) for p in images):
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model
