"""The absolute squared error in the metric that the space was built in, summed over sites: for a space in the Fisher
metric twice the estimated rise of the loss, and free, since every option carries it."""

from __future__ import annotations

from ranksearch.proxies._base import TableProxy
from ranksearch.space import SearchSpace
from ranksearch.table import Table


class Energy(TableProxy):
    """Half of tr(G (W - W_r) A (W - W_r)^T), in nats where G and A are those of `Statistics`. In other metrics the
    sites' values have different units and their sum means little."""

    name = "energy"

    def table(self, space: SearchSpace) -> Table:
        return Table(tuple(ladder.column("energy") / 2 for ladder in space.ladders), "sum")
