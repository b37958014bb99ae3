"""A small network with a batch norm, its task, and how far two networks are apart."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch import Classification


def network() -> nn.Module:
    """Whatever is drawn, its answers depend on the images, and no class is rare: each logit has mean 0 and a deviation of 2."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*layers, nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    return evened(model, torch.randn(256, 1, 6, 6))


@torch.no_grad()
def evened(model: nn.Module, x: Tensor, deviation: float = 2.0) -> nn.Module:
    """The same network with a last layer that gives each logit mean 0 and ``deviation`` on these images."""
    weight, bias = (model.get_parameter(f"8.{name}") for name in ("weight", "bias"))
    scale = deviation / model(x).std(0)
    weight.mul_(scale[:, None])
    bias.mul_(scale)
    bias.sub_(model(x).mean(0))
    return model


def task(batches: int = 10, batch_size: int = 16, **options: Any) -> Classification:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batches * batch_size, 1, 6, 6, generator=generator)
    y = torch.randint(3, (len(x),), generator=generator)
    return Classification(train=(x, y), validation=(x[:8], y[:8]), batch_size=batch_size, learning_rate=0.01, **options)


def divergence(dense: nn.Module, small: nn.Module, batches: list[Tensor]) -> float:
    """From the dense network's predictions, in the mode that both are in: batch norms in training normalize by their batch."""
    with torch.no_grad():
        p, q = (torch.cat([copy.deepcopy(net)(x).log_softmax(1) for x in batches]) for net in (dense, small))
    return float((p.exp() * (p - q)).sum(1).mean())
