"""Stored parameters: what a network needs on disk and in memory."""

from __future__ import annotations

import numpy as np

from ranksearch.costs.cost_model import CostModel, DenseNetwork, LayerOptions


class Params(CostModel):
    name, label, unit = "params", "params", "parameters"

    def options(self, layer: LayerOptions) -> np.ndarray:
        return layer.params

    def rest(self, network: DenseNetwork) -> int:
        return network.beside_sites.params
