"""Sum over sites of the squared relative Frobenius error (ALDS's per-layer Frobenius cost, arXiv 2107.11442)."""

from __future__ import annotations

import numpy as np

from ranksearch.proxies.proxy import TableProxy
from ranksearch.space import SearchSpace
from ranksearch.space.table import Table


class Frobenius(TableProxy):
    """Squares, because errors of different layers are near to uncorrelated and then add in squares."""

    name = "frobenius"
    in_metric = True

    def table(self, space: SearchSpace) -> Table:
        return Table(tuple(np.square(ladder.column("frobenius")) for ladder in space.ladders), "sum")
