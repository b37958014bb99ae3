"""What a sampler may know of a search beside the number of options: the space, what is minimised, and what was measured cheaply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ranksearch.sites import Amount
from ranksearch.space import SearchSpace


@dataclass(frozen=True)
class Problem:
    """A search as its sampler sees it.

    Attributes:
        space: that is searched.
        objectives: names in the order of the values that are observed. Those of costs are shares of the dense network's (amounts, where
            that has none), those of metrics are negated where more is better.
        limits: upper bounds on costs of the whole network.
        evidence: configurations that were measured without training, int64, shape: (n, n_sites).
        rises: how much more each of them lost than the dense network, float64, shape: (n,).
    """

    space: SearchSpace
    objectives: tuple[str, ...]
    limits: Mapping[str, Amount] = field(default_factory=dict)
    evidence: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    rises: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def measured(self) -> list[int]:
        """Which objectives are no costs, so that they are known only where something was evaluated."""
        return [number for number, name in enumerate(self.objectives) if name not in self.space.costs]

    def costs(self, indices: np.ndarray) -> np.ndarray:
        """The objectives that are costs, of configurations of shape (n, n_sites); other columns are NaN; shape: (n, n_objectives)."""
        found = np.full((len(indices), len(self.objectives)), np.nan)
        for number, name in enumerate(self.objectives):
            if name in self.space.costs:
                found[:, number] = self.space.cost_tables[name].score(indices) / (self.space.baseline[name] or 1)
        return found
