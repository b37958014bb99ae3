"""Every cost, one file each. ``COSTS`` lists those of a study that names no others; ``Study(costs=(*COSTS, Mine()))`` adds one."""

from __future__ import annotations

from ranksearch.costs.bytes import Bytes
from ranksearch.costs.cost_model import (
    Choice,
    CostModel,
    DenseNetwork,
    LayerOptions,
    check_costs,
    dense_layer_cost,
    layer_cost,
    network_cost,
)
from ranksearch.costs.macs import MACs
from ranksearch.costs.narrower import Narrower
from ranksearch.costs.params import Params

COSTS: tuple[CostModel, ...] = (
    Params(),
    MACs(),
)

__all__ = [
    "COSTS", "Bytes", "Choice", "CostModel", "DenseNetwork", "LayerOptions", "MACs", "Narrower", "Params", "check_costs",
    "dense_layer_cost", "layer_cost", "network_cost",
]  # fmt: skip
