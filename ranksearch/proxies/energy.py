"""The absolute squared error in the metric that the space was built in, summed over sites: for a space in the Fisher
metric the estimated rise of the loss, and free, since every option carries it."""

from __future__ import annotations

from ranksearch.proxies._base import TableProxy
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table


class Energy(TableProxy):
    """Half of tr(G (W - W_r) A (W - W_r)^T), in nats per example where G and A are those of `Statistics`. In the weight
    metric the change of all weights, squared; in the activation metric that of all outputs: no estimate of the loss, since
    nothing says what a change of one site costs against one of another."""

    name = "energy"

    def table(self, space: SearchSpace) -> Table:
        return Table(tuple(ladder.column("energy") / 2 for ladder in space.ladders), "sum")
