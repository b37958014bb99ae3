"""A network, its supernet, and dense oracles of losses and gradients, for tests of training methods."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ranksearch.sites import find_sites
from ranksearch.space import Configuration, SearchSpace, build_space, named
from ranksearch.space.spectra import Spectra
from ranksearch.supernet import RankSupernet
from ranksearch.supernet.methods import METHODS, Method
from ranksearch.supernet.sampling import FrontGuided, Sampling

KINDS = ("svd", "svd_in", "spatial", "spatial_t", "tucker2", "tiled_svd", "decoupled")
NORM = "1"  # the batch norm's path


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Tanh(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(12, 12, 3, padding=1), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).double()  # fmt: skip


@cache
def prepared(kinds: tuple[str, ...]) -> tuple[nn.Module, SearchSpace, Spectra]:
    """What supernets of it are made from, and leave as it is."""
    model = network()
    spectra = Spectra(model, find_sites(model, torch.zeros(1, 3, 8, 8).double()), named(*kinds))
    return model, build_space(spectra), spectra


def supernet(kinds: tuple[str, ...] = KINDS, **options: Any) -> RankSupernet:
    model, space, spectra = prepared(kinds)
    torch.manual_seed(0)
    return RankSupernet(model, space, spectra=spectra, **options)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, 8, 8, generator=generator).double(), torch.randint(5, (16,), generator=generator)


class Fixed(Sampling):
    """Draws one given configuration."""

    name = "fixed"

    def __init__(self, space: SearchSpace, configuration: Configuration) -> None:
        super().__init__(space)
        self.configuration = configuration

    def draw(self, generator: np.random.Generator) -> Configuration:
        return self.configuration

    def smallest(self) -> Configuration:
        return self.configuration


def gradients(net: RankSupernet, loss: Tensor) -> dict[str, Tensor]:
    net.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in net.model.named_parameters() if p.grad is not None}


def oracle(net: RankSupernet, data: tuple[Tensor, Tensor], weights: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the plain model in training mode with some weights replaced by leaves."""
    model = copy.deepcopy(net.model)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    leaves |= {name: w.detach().clone().requires_grad_() for name, w in (weights or {}).items()}
    loss = F.cross_entropy(functional_call(model, leaves, (data[0],)), data[1])
    found = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, found, strict=True))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-12))


SETTINGS: dict[str, dict[str, Any]] = {
    "trp": {"period": 3, "loss_of_energy": 0.1},
    "distortion": {"period": 3, "schedule": "linear", "steps": 8},
    "regularized": {"every": 3, "strength": 1e-2},
}


@cache
def near_fronts(space: SearchSpace) -> FrontGuided:
    """The default sampling of ``sandwich``, with few points and made once."""
    return FrontGuided(space, points=4)


def make(name: str, net: RankSupernet, *, seed: int = 0, **options: Any) -> Method:
    if name == "sandwich":
        options = {"sampling": near_fronts(net.space)} | options
    return METHODS[name](net, F.cross_entropy, seed=seed, **(SETTINGS.get(name, {}) | options))


def optimizer_of(net: RankSupernet) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def steps(method: Method, optimizer: torch.optim.Optimizer, first: int, last: int) -> list[float]:
    found = []
    for step in range(first, last + 1):
        optimizer.zero_grad()
        loss = method.loss(batch(step))
        loss.backward()
        optimizer.step()
        method.after_step(step)
        found.append(float(loss.detach()))
    return found


CHOICES = Configuration({"0": ("svd", (2,)), "3": ("spatial", (5,)), "5": ("svd_in", (4,)), "9": ("svd", (3,))})


def projector(kind: str, weight: Tensor, rank: int) -> tuple[Tensor, Any]:
    """The low-rank weight, and g -> the gradient with the singular vectors of the shorter side held fixed."""
    o, i, kh, kw = weight.shape if weight.ndim == 4 else (*weight.shape, 1, 1)
    blocks = weight.reshape(o, i, kh, kw)
    order = {"svd": (0, 1, 2, 3), "svd_in": (0, 2, 3, 1), "spatial": (0, 2, 1, 3), "spatial_t": (0, 3, 1, 2)}[kind]
    rows = {"svd": 1, "svd_in": 3, "spatial": 2, "spatial_t": 2}[kind]

    def fold(w: Tensor) -> Tensor:
        w = w.reshape(o, i, kh, kw).permute(order)
        return w.reshape(int(np.prod(w.shape[:rows])), -1)

    def unfold(m: Tensor) -> Tensor:
        shape = [(o, i, kh, kw)[a] for a in order]
        back = [order.index(a) for a in range(4)]
        return m.reshape(shape).permute(back).reshape(weight.shape)

    matrix = fold(blocks)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    low = unfold((u[:, :rank] * s[:rank]) @ vh[:rank])

    def project(g: Tensor) -> Tensor:
        g = fold(g)
        return unfold(u[:, :rank] @ (u[:, :rank].mT @ g) if matrix.shape[0] <= matrix.shape[1] else (g @ vh[:rank].mT) @ vh[:rank])

    return low, project
