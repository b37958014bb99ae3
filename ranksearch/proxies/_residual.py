"""Tables from the residual W - W_r of every option, for metrics other than the one the space was built in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from ranksearch.decompositions._spectrum import split_groups
from ranksearch.sites import Site, canonical_weight
from ranksearch.space import SearchSpace
from ranksearch.spectra import Spectra
from ranksearch.table import Table

Form = Callable[[Site, Tensor], float]  # residual, float64, shape: (groups, c_out / groups, d) -> value


def residual_table(space: SearchSpace, spectra: Spectra, form: Form) -> Table:
    """``form`` of the residual of every option, summed over sites. One reconstruction per option."""
    columns = []
    for ladder in space.ladders:
        site = ladder.site
        weight = canonical_weight(spectra.model.get_submodule(site.name), site).double()
        values = []
        for option in ladder.options:
            if option.decomposition == "dense":
                values.append(0.0)
                continue
            decomposition = spectra.decomposition(option.decomposition)
            stand_in = decomposition.compose(site, spectra.factors(site, option.decomposition, option.rank))
            values.append(form(site, split_groups(site, weight - stand_in).flatten(2)))
        columns.append(np.array(values, dtype=np.float64))
    return Table(tuple(columns), "sum")


def quadratic(residual: Tensor, a: Tensor | None, g: Tensor | None) -> float:
    """tr(G R A R^T) summed over groups; None stands for the identity."""
    right = residual if a is None else residual @ a.to(residual)
    left = residual if g is None else g.to(residual) @ residual
    return float((left * right).sum())
