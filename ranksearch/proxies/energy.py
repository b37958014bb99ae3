"""The absolute squared error in the metric that the space was built in, summed over sites. In the Fisher metric it is the estimated
rise of the loss. It costs nothing, since every option carries it."""

from __future__ import annotations

from ranksearch.proxies.proxy import TableProxy
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table


class Energy(TableProxy):
    """Half of tr(G (W - W_r) A (W - W_r)^T): where G and A are those of `Statistics`, T^2 times the divergence of the outputs softened by
    the temperature T that labels were sampled at, nats per example at T = 1. In the weight metric it is the squared change of all
    weights, in the activation metric that of all outputs: no estimate of the loss, since nothing says what a change of one site
    costs against one of another."""

    name = "energy"
    in_metric = True

    def table(self, space: SearchSpace) -> Table:
        return Table(tuple(ladder.column("energy") / 2 for ladder in space.ladders), "sum")

    def poor_budgets(self, space: SearchSpace) -> tuple[str, ...]:
        """MACs in the weight metric, whose optima take them from layers of few weights on large maps, which the loss needs most."""
        return ("macs",) if space.metric == "weight" else ()
