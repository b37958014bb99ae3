"""Every kind of site, every type, and dense oracles that know nothing of spectra."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Moments
from ranksearch.decompositions.decomposition import Errors
from ranksearch.sites import Site, canonical_weight, find_sites

IMAGE = (2, 4, 9, 10)
VOLUME = (2, 4, 4, 5, 6)


def _conv1d_of_transformers() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(7, 5)
    nn.init.normal_(module.bias)
    return module


# name -> (layer, example input)
SITES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "conv3x3": (lambda: nn.Conv2d(4, 6, 3), lambda: torch.randn(IMAGE)),
    "stride2_pad1": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), lambda: torch.randn(IMAGE)),
    "stride2x1_pad1x2": (lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2)), lambda: torch.randn(IMAGE)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), lambda: torch.randn(IMAGE)),
    "same_even": (lambda: nn.Conv2d(4, 6, (4, 2), padding="same"), lambda: torch.randn(IMAGE)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=(2, 1), padding=2), lambda: torch.randn(IMAGE)),
    "groups2": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), lambda: torch.randn(IMAGE)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), lambda: torch.randn(IMAGE)),
    "depthwise_x2_strided": (lambda: nn.Conv2d(4, 8, 3, groups=4, stride=(1, 2)), lambda: torch.randn(IMAGE)),
    "conv1x1": (lambda: nn.Conv2d(4, 6, 1), lambda: torch.randn(IMAGE)),
    "conv1x1_stride2": (lambda: nn.Conv2d(4, 6, 1, stride=2), lambda: torch.randn(IMAGE)),
    "conv1x5": (lambda: nn.Conv2d(4, 6, (1, 5), padding=(0, 2)), lambda: torch.randn(IMAGE)),
    "conv5x1": (lambda: nn.Conv2d(4, 6, (5, 1)), lambda: torch.randn(IMAGE)),
    "conv5x3_reflect": (lambda: nn.Conv2d(4, 6, (5, 3), padding=(2, 1), padding_mode="reflect"), lambda: torch.randn(IMAGE)),
    "circular_stride2": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2, padding_mode="circular"), lambda: torch.randn(IMAGE)),
    "one_channel": (lambda: nn.Conv2d(1, 6, 3, padding=1), lambda: torch.randn(2, 1, 7, 8)),
    "one_filter": (lambda: nn.Conv2d(4, 1, 3, padding=1), lambda: torch.randn(IMAGE)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), lambda: torch.randn(2, 4, 11)),
    "conv1d_same": (lambda: nn.Conv1d(4, 4, 4, padding="same", groups=2), lambda: torch.randn(2, 4, 11)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 2), dilation=(1, 1, 2)), lambda: torch.randn(VOLUME)),
    "conv3d_same_groups2": (lambda: nn.Conv3d(4, 6, (3, 1, 3), padding="same", groups=2, bias=False), lambda: torch.randn(VOLUME)),
    "conv3d_circular": (lambda: nn.Conv3d(4, 2, 2, padding=1, padding_mode="circular"), lambda: torch.randn(VOLUME)),
    "transposed2d": (lambda: nn.ConvTranspose2d(6, 4, (3, 4), stride=2, padding=1, output_padding=(1, 0)), lambda: torch.randn(2, 6, 5, 4)),
    "transposed2d_groups2": (lambda: nn.ConvTranspose2d(6, 4, 3, groups=2, dilation=(1, 2), bias=False), lambda: torch.randn(2, 6, 5, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(5, 6, 4, stride=3, padding=2), lambda: torch.randn(2, 5, 7)),
    "linear": (lambda: nn.Linear(12, 8), lambda: torch.randn(3, 12)),
    "linear_tokens": (lambda: nn.Linear(6, 9, bias=False), lambda: torch.randn(2, 5, 6)),
    "embedding": (lambda: nn.Embedding(11, 6), lambda: torch.randint(0, 11, (2, 5))),
    "transformers_conv1d": (_conv1d_of_transformers, lambda: torch.randn(2, 3, 5)),
}
if importlib.util.find_spec("transformers") is None:
    del SITES["transformers_conv1d"]


@cache
def make(kind: str) -> tuple[nn.Module, Site, Tensor]:
    """A layer of that kind in float64, its site and an input, the same for all tests, which leave them as they are."""
    torch.manual_seed(0)
    layer, example = SITES[kind][0]().double(), SITES[kind][1]()
    example = example.double() if example.is_floating_point() else example
    sites = find_sites(nn.Sequential(layer), example)
    assert len(sites) == 1, sites.skipped
    return layer, sites.sites[0], example


@cache
def prepared(kind: str, decomposition: AnyDecomposition) -> tuple[Tensor, Any, Errors]:
    """The weight of that layer, and its state and errors in the weight metric, the same for all tests."""
    layer, site, _ = make(kind)
    weight = canonical_weight(layer, site).clone()
    state = decomposition.prepare(site, weight)
    return weight, state, decomposition.errors(state)


PAIRS = [(kind, d) for kind in SITES for d in DECOMPOSITIONS]
CASES = [(kind, d) for kind, d in PAIRS if d.undefined(make(kind)[1]) is None]


def over(cases: list[tuple[str, AnyDecomposition]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("kind", "decomposition"), cases, ids=[f"{k}-{d.name}" for k, d in cases])


def shape(kind: str) -> tuple[object, ...]:
    """All that what is told of a weight depends on: strides, paddings and dilations do not matter to it."""
    _, site, _ = make(kind)
    return site.kind, site.shape, site.groups, site.kernel


SHAPES = list({shape(kind): kind for kind in reversed(SITES)}.values())
every = over(CASES)  # wherever a type is defined
WEIGHTS = [case for case in CASES if case[0] in SHAPES]
every_weight = over(WEIGHTS)


def some(errors: Errors, count: int = 5) -> list[int]:
    """Positions of a few ranks, the first and the last among them."""
    return sorted(set(np.linspace(0, len(errors.ranks) - 1, count).round().astype(int).tolist()))


def classes(decomposition: AnyDecomposition, errors: Errors) -> list[int]:
    """Positions of a few ranks, among them the first and the last of every structure: of every group or tile count, or of every set of
    bonds of a network that are wider than 1."""
    if decomposition.storage_only:
        keys = [tuple(r > 1 for r in row) for row in errors.ranks.tolist()]
    else:
        keys = [tuple(row[: decomposition.labels]) for row in errors.ranks.tolist()]
    ends = {key: k for k, key in reversed(list(enumerate(keys)))}.values(), {key: k for k, key in enumerate(keys)}.values()
    return sorted({*some(errors, 4), *(k for end in ends for k in end)})


def lowered(site: Site, weight: Tensor) -> list[Tensor]:
    return list(weight.reshape(site.groups, -1, weight[0].numel()))


def folding(name: str, site: Site, weight: Tensor) -> list[Tensor]:
    """The matrices, one per group, whose truncation a type is: what its operator norm is of."""
    if name in ("spatial", "spatial_t", "svd_in"):
        order = {"spatial": "goihw->gohiw", "spatial_t": "goihw->gowih", "svd_in": "goihw->gohwi"}[name]
        split = weight.reshape(site.groups, -1, *weight.shape[1:])
        split = torch.einsum(order, split)
        rows = 3 if name != "svd_in" else 4
        return [m.flatten(rows - 1).flatten(0, rows - 2) for m in split]
    if name == "decoupled":
        return [filter.flatten(1) for filter in weight]
    return lowered(site, weight)


def operator(matrices: list[Tensor]) -> float:
    return max(float(torch.linalg.matrix_norm(m, 2)) for m in matrices)


def dense_layer(layer: nn.Module, site: Site, weight: Tensor) -> nn.Module:
    dense = copy.deepcopy(layer)
    stored = dense.get_parameter("weight")
    plain = weight.reshape(site.shape).flatten(1) if site.kind in ("embedding", "transformers_conv1d", "linear") else weight
    plain = plain.T if site.kind in ("embedding", "transformers_conv1d") else plain
    if isinstance(dense, (nn.ConvTranspose1d, nn.ConvTranspose2d)):  # stored by group, input channels first
        parts = weight.reshape(site.groups, site.c_out // site.groups, site.c_in // site.groups, *dense.kernel_size)
        plain = torch.cat([part.transpose(0, 1) for part in parts])
    with torch.no_grad():
        stored.copy_(plain.reshape(stored.shape))
    return dense


def second_moments(site: Site, rank: int | None = None) -> Moments:
    """Random second moments; ``rank`` below the dimension makes them singular."""
    generator = torch.Generator().manual_seed(1)
    d, m = int(np.prod(site.shape[1:])), site.c_out // site.groups
    x = torch.randn(site.groups, rank or 3 * d, d, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(0.2, 3.0, d, dtype=torch.float64)  # far from the identity
    x = x + 0.7 * x.roll(1, dims=2)
    y = torch.randn(site.groups, rank or 3 * m, m, generator=generator, dtype=torch.float64)
    return Moments(x.mT @ x / x.shape[1], y.mT @ y / y.shape[1])


def metric_norm(site: Site, weight: Tensor, moments: Moments) -> float:
    w = weight.reshape(site.groups, -1, int(np.prod(site.shape[1:])))
    a = w if moments.input is None else w @ moments.input.to(w.dtype)
    g = a if moments.output is None else moments.output.to(w.dtype) @ a
    return float((g * w).sum().clamp_min(0)) ** 0.5
