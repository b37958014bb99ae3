"""A small network with batch norm and dropout, its task and supernet, for tests of training."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.space import SearchSpace
from ranksearch.space.specs import SpaceSpec, named
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import RankSupernet
from ranksearch.supernet.methods import METHODS
from ranksearch.supernet.sampling import FrontGuided
from ranksearch.tasks import Classification


def noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def model() -> nn.Module:
    """Small, with batch norm and dropout: both have state of their own."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def task(**options: Any) -> Classification:
    random = torch.Generator().manual_seed(2)
    x, y = torch.randn(80, 2, 6, 6, generator=random), torch.randint(3, (80,), generator=random)
    given: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 16, "augment": noise, "weight_decay": 1e-3} | options
    return Classification(train=(x, y), validation=(x[:20], y[:20]), classes=3, **given)


@cache
def prepared() -> tuple[nn.Module, SearchSpace, Spectra]:
    """What supernets of it are made from, and leave as it is."""
    network = model()
    spec = SpaceSpec(named("svd", "svd_in", "spatial", "tucker2"), max_options=6)
    spectra = Spectra(network, spec.sites(network, task().example()), spec.decompositions)
    return network, spec.build(spectra), spectra


@cache
def near_fronts() -> FrontGuided:
    """The default sampling of ``sandwich``, with few points and made once."""
    return FrontGuided(prepared()[1], points=4)


def supernet(**options: Any) -> RankSupernet:
    network, space, spectra = prepared()
    torch.manual_seed(1)
    return RankSupernet(network, space, spectra=spectra, **options)


def made(name: str, *, refresh: int = 2, seed: int = 5, **options: Any) -> tuple[RankSupernet, Any]:
    """A supernet and a method for it."""
    net = supernet(refresh=refresh)
    if name == "sandwich":
        options = {"sampling": near_fronts()} | options
    return net, METHODS[name](net, task().loss, seed=seed, **options)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
