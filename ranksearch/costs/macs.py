"""Multiply-adds for one example, as `ranksearch.sites.macs` counts them in the dense network."""

from __future__ import annotations

import numpy as np

from ranksearch.costs.cost_model import CostModel, DenseNetwork, LayerOptions


class MACs(CostModel):
    name, label, unit = "macs", "MACs", "multiply-adds per example"

    def options(self, layer: LayerOptions) -> np.ndarray:
        return layer.macs

    def rest(self, network: DenseNetwork) -> int:
        return network.beside_sites.macs
