"""Proxies that are a form of the residual W - W_r of every option, for metrics other than the one the space was built in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from ranksearch.decompositions.folding import split_groups
from ranksearch.proxies.proxy import TableProxy
from ranksearch.sites import Site, canonical_weight
from ranksearch.space import SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table

Form = Callable[[Site, Tensor], float]  # residual, float64, shape: (groups, c_out / groups, d) -> value


class ResidualProxy(TableProxy):
    """A proxy that is a form of each option's residual, summed over sites."""

    spectra: Spectra

    @abstractmethod
    def form(self, space: SearchSpace) -> Form:
        """The value of a residual, for the sites of a space."""

    def table(self, space: SearchSpace) -> Table:
        return residual_tables(space, self.spectra, [self.form(space)])[0]


def residual_tables(space: SearchSpace, spectra: Spectra, forms: Sequence[Form]) -> list[Table]:
    """Each form of the residual of every option, summed over sites: several forms share the one reconstruction per option,
    which costs far more than they do."""
    columns: list[list[np.ndarray]] = [[] for _ in forms]
    for ladder in space.ladders:
        site = ladder.site
        weight = canonical_weight(spectra.model.get_submodule(site.name), site).double()
        values = np.zeros((len(forms), len(ladder)))
        for number, option in enumerate(ladder.options):
            if option.decomposition == "dense":
                continue
            decomposition = spectra.decomposition(option.decomposition)
            stand_in = decomposition.compose(site, spectra.factors(site, option.decomposition, option.rank))
            residual = split_groups(site, weight - stand_in).flatten(2)
            values[:, number] = [form(site, residual) for form in forms]
        for of_form, row in zip(columns, values, strict=True):
            of_form.append(row)
    return [Table(tuple(of_form), "sum") for of_form in columns]


def tables(proxies: Sequence[TableProxy], space: SearchSpace) -> list[Table]:
    """The table of each proxy, in order; proxies of residuals of the same factors share them."""
    found: dict[int, Table] = {}
    groups: dict[int, list[int]] = {}
    for number, proxy in enumerate(proxies):
        if isinstance(proxy, ResidualProxy):
            groups.setdefault(id(proxy.spectra), []).append(number)
        else:
            found[number] = proxy.table(space)
    for members in groups.values():
        alike = [proxy for number in members if isinstance(proxy := proxies[number], ResidualProxy)]
        found |= zip(members, residual_tables(space, alike[0].spectra, [proxy.form(space) for proxy in alike]), strict=True)
    return [found[number] for number in range(len(proxies))]
