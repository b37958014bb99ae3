"""Proxies that are a form of the residual W - W_r of every option, for metrics other than the one the space was built in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ranksearch.decompositions import Moments
from ranksearch.decompositions.folding import split_groups
from ranksearch.decompositions.metric import apply_metric, residual_energy
from ranksearch.proxies.proxy import TableProxy
from ranksearch.sites import Site, canonical_weight
from ranksearch.space import Ladder, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table


class Form(ABC):
    """A value of every residual of a site."""

    @abstractmethod
    def __call__(self, site: Site, residual: Tensor) -> float:
        """Of a residual, float64, shape: (groups, c_out / groups, d)."""

    def of_components(self, site: Site, left: Tensor, right: Tensor, ranks: Sequence[int]) -> np.ndarray:
        """Of what is left of ``left @ right`` without its first r components, for each of the ranks r, shape: (n_ranks,).

        Args:
            left, right: float64, shapes (groups, c_out / groups, n), (groups, n, d).
        """
        return np.array([self(site, left[..., rank:] @ right[:, rank:]) for rank in ranks])


@dataclass(frozen=True)
class Energies(Form):
    """The form scale x tr(G R A R^T).

    Args:
        moments: G and A of a site, as they are used.
        scale: of a site.
    """

    moments: Callable[[Site], Moments]
    scale: Callable[[Site], float]

    def __call__(self, site: Site, residual: Tensor) -> float:
        return self.scale(site) * residual_energy(residual, self.moments(site))

    def of_components(self, site: Site, left: Tensor, right: Tensor, ranks: Sequence[int]) -> np.ndarray:
        """All ranks take one product with A: the energy of the others is the sum over their pairs j, k of (l_j^T G l_k)(r_j A r_k^T)."""
        moments = self.moments(site)
        within = apply_metric(left, Moments(None, moments.output))
        across = apply_metric(right, Moments(moments.input, None))
        pairs = ((left.mT @ within) * (right @ across.mT)).sum(dim=0)
        sums = pairs.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0).clamp_min(0.0)
        return self.scale(site) * np.append(sums.cpu().numpy(), 0.0)[list(ranks)]


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
    which costs far more than they do; types of components share one over all ranks."""
    columns: list[list[np.ndarray]] = [[] for _ in forms]
    for ladder in space.ladders:
        values = np.zeros((len(forms), len(ladder)))
        numbers: dict[str, list[int]] = {}
        for number, option in enumerate(ladder.options):
            if option.decomposition != "dense":
                numbers.setdefault(option.decomposition, []).append(number)
        for name, chosen in numbers.items():
            by = _by_components if spectra.decomposition(name).components else _one_by_one
            values[:, chosen] = by(ladder, name, chosen, spectra, forms)
        for of_form, row in zip(columns, values, strict=True):
            of_form.append(row)
    return [Table(tuple(of_form), "sum") for of_form in columns]


def _one_by_one(ladder: Ladder, name: str, chosen: Sequence[int], spectra: Spectra, forms: Sequence[Form]) -> np.ndarray:
    """Values of options of one type, shape: (n_forms, n_chosen)."""
    site, decomposition, found = ladder.site, spectra.decomposition(name), np.empty((len(forms), len(chosen)))
    weight = canonical_weight(spectra.model.get_submodule(site.name), site).double()
    for column, number in enumerate(chosen):
        stand_in = decomposition.compose(site, spectra.factors(site, name, ladder.options[number].rank))
        residual = split_groups(site, weight - stand_in).flatten(2)
        found[:, column] = [form(site, residual) for form in forms]
    return found


def _by_components(ladder: Ladder, name: str, chosen: Sequence[int], spectra: Spectra, forms: Sequence[Form]) -> np.ndarray:
    """The same of a type of components: what a rank leaves over are the components after it."""
    site, ranks = ladder.site, [ladder.options[number].rank[0] for number in chosen]
    left, right = spectra.factors(site, name, (int(spectra.decomposition(name).ranks(site)[-1, 0]),))
    return np.array([form.of_components(site, left, right, ranks) for form in forms])


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
