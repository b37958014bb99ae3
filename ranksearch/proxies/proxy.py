"""The contract of a proxy: a cheap score of configurations, computed without training. Lower is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from ranksearch.space import SearchSpace
from ranksearch.space.table import Table

if TYPE_CHECKING:
    from ranksearch.proxies.context import ProxyContext

Need = Literal["space", "statistics", "networks"]


class Proxy(ABC):
    """What table and score proxies have in common. A variant in the table ``PROXIES`` says what it needs and how it is made."""

    name: str
    needs: ClassVar[Need] = "space"
    """What it is made from: the space alone, which costs nothing; a pass over calibration data (`ranksearch.statistics`); or networks
    that are built and run. A search starts from the optima of those that need the space alone, a report leaves out what was not
    asked for."""
    in_metric: ClassVar[bool] = False  # whether its values are errors in the metric of the space

    @classmethod
    def make(cls, context: ProxyContext) -> Self:
        """The proxy of a study. Without arguments unless a variant says otherwise.

        Raises:
            InvalidArgument: this study cannot have it; the message says why."""
        return cls()

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        """Sites (or "site:decomposition") whose value is missing, a bound or made up, and why."""
        return {}


class TableProxy(Proxy):
    """A proxy that is one value per (site, option), summed or maximised over sites: it scores 10^6 configurations
    by indexing, and the best configuration at a budget can be solved for."""

    @abstractmethod
    def table(self, space: SearchSpace) -> Table:
        """The value of every option of every site."""

    def poor_budgets(self, space: SearchSpace) -> Collection[str]:
        """Costs at whose budgets its optima are known to be poor: a search starts from these last."""
        return ()


class ScoreProxy(Proxy):
    """A proxy that needs the whole configuration, such as one that runs the network."""

    @abstractmethod
    def score(
        self,
        space: SearchSpace,
        indices: np.ndarray,  # int64, shape: (n, n_sites)
    ) -> np.ndarray:
        """One score per configuration, float64, shape: (n,)."""


def score(proxy: TableProxy | ScoreProxy, space: SearchSpace, indices: np.ndarray) -> np.ndarray:
    """Scores of either kind of proxy, float64, shape: (n,)."""
    return proxy.table(space).score(indices) if isinstance(proxy, TableProxy) else proxy.score(space, indices)
