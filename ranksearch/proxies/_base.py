"""The contract of a proxy: a cheap score of configurations, computed without training. Lower is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from ranksearch.space import SearchSpace
from ranksearch.space.table import Table


class TableProxy(ABC):
    """A proxy that is one value per (site, option), summed or maximised over sites: it scores 10^6 configurations
    by indexing, and the best configuration at a budget can be solved for."""

    name: str

    @abstractmethod
    def table(self, space: SearchSpace) -> Table:
        """The value of every option of every site."""

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        """Sites (or "site:decomposition") whose value is missing, a bound or made up, and why."""
        return {}


class ScoreProxy(ABC):
    """A proxy that needs the whole configuration, such as one that runs the network."""

    name: str

    @abstractmethod
    def score(
        self,
        space: SearchSpace,
        indices: np.ndarray,  # int64, shape: (n, n_sites)
    ) -> np.ndarray:
        """One score per configuration, float64, shape: (n,)."""

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        """What the score does not see, and why."""
        return {}


def score(proxy: TableProxy | ScoreProxy, space: SearchSpace, indices: np.ndarray) -> np.ndarray:
    """Scores of either kind of proxy, float64, shape: (n,)."""
    return proxy.table(space).score(indices) if isinstance(proxy, TableProxy) else proxy.score(space, indices)
