"""A machine whose clock goes on by what modules are said to take: what is measured on it is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ranksearch.costs import DenseNetwork
from ranksearch.latency import Latency, Precision, Runtime
from ranksearch.sites import find_sites
from ranksearch.space import SpaceSpec, named

PER_LAYER, PER_PARAMETER = 1e-5, 1e-7  # seconds


class Machine(Runtime):
    """Every layer takes a constant time and one per parameter; everything takes ``inside`` times as long in a whole network."""

    name = "machine"

    def __init__(self, *, inside: float = 1.0, per_layer: float = PER_LAYER, label: str = "1") -> None:
        self.now, self.inside, self.per_layer, self.label = 0.0, inside, per_layer, label
        self.prepared = 0
        self.shapes: list[Any] = []

    def check(self) -> None:
        return None

    def version(self) -> str:
        return f"machine {self.label}"

    def clock(self) -> float:
        return self.now

    def seconds(self, module: nn.Module) -> float:
        """What the module takes once, by itself."""
        layers = [m for m in module.modules() if not list(m.children())]
        return self.per_layer * len(layers) + PER_PARAMETER * sum(p.numel() for m in layers for p in m.parameters(recurse=False))

    def prepare(self, module: nn.Module, inputs: Any) -> Callable[[], object]:
        self.prepared += 1
        self.shapes.append(tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else [tuple(x.shape) for x in inputs])
        whole = any(isinstance(m, nn.ReLU) for m in module.modules())
        seconds = self.seconds(module) * (self.inside if whole else 1.0)

        def work() -> None:
            self.now += seconds

        return work


def network() -> nn.Sequential:
    """Three convolutions, the last two alike, and a linear layer."""
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1))
    return nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 10)).eval()


def dense_network(model: nn.Module | None = None, **changes: Any) -> DenseNetwork:
    model = model or network()
    example = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    arguments = {"sites": find_sites(model, example), "example": example, "decompositions": space().decompositions}
    return DenseNetwork(model, **{**arguments, **changes})


def space(**changes: Any) -> SpaceSpec:
    return SpaceSpec(named("svd", "svd_in", "tucker2", "cp"), **changes)


def latency(machine: Machine, **changes: Any) -> Latency:
    arguments: dict[str, Any] = {"precision": Precision(least=3, most=5), "networks": 8}
    return Latency(runtime=machine, clock=machine.clock, **{**arguments, **changes})
