"""The contract of a proxy: a cheap score of configurations, computed without training. Lower is better."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ranksearch.space import SearchSpace
from ranksearch.table import Table


class TableProxy(ABC):
    """A proxy that is one value per (site, option), summed or maximised over sites: it scores 10^6 configurations
    by indexing, and the best configuration at a budget can be solved for."""

    name: str

    @abstractmethod
    def table(self, space: SearchSpace) -> Table:
        """The value of every option of every site."""
