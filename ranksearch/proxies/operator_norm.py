"""Largest relative operator norm of a site's residual: the quantity that ALDS minimises (arXiv 2107.11442, eq. 3)."""

from __future__ import annotations

from ranksearch.proxies.proxy import TableProxy
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table


class OperatorNorm(TableProxy):
    """The norm is taken in the folding that each decomposition truncates; options without an operator norm count as 1, a lost layer."""

    name = "operator_norm"
    in_metric = True

    def table(self, space: SearchSpace) -> Table:
        return space.table("operator", "max")
