"""The layer as it is: one option, rank (), no error. It is part of every ladder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ranksearch.decompositions.chain import Link, chain_costs, chain_module
from ranksearch.decompositions.decomposition import Decomposition, Errors, Rank, blank
from ranksearch.decompositions.folding import split_groups
from ranksearch.decompositions.metric import Moments, conditioned, residual_energy
from ranksearch.sites import Site


@dataclass(frozen=True)
class DenseState:
    weight: Tensor
    norm: float  # in the metric


class Dense(Decomposition[DenseState]):
    name = "dense"
    optimal = True

    def undefined(self, site: Site) -> str | None:
        return None

    def ranks(self, site: Site) -> np.ndarray:
        return np.zeros((1, 0), dtype=np.int64)

    def _links(self, site: Site) -> list[Link]:
        return [Link(site.c_in, site.c_out, (True, True), site.groups)]

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return self._links(site)

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chain_costs(site, self._links(site), len(ranks))

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> DenseState:
        weight = weight.double()
        return DenseState(weight, residual_energy(split_groups(site, weight), conditioned(moments, weight)) ** 0.5)

    def errors(self, state: DenseState) -> Errors:
        zero = np.zeros(1)
        return Errors(np.zeros((1, 0), dtype=np.int64), zero, zero, state.norm)

    def factors(self, state: DenseState, rank: Rank) -> tuple[Tensor, ...]:
        return (state.weight,)

    def of_gram(self, site: Site, weight: Tensor, gram: Tensor, output: Tensor | None, rank: Rank) -> tuple[Tensor, ...]:
        return (weight.double(),)

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        return blank(site.shape)

    def describe(self, site: Site, rank: Rank) -> str:
        return "full"

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        return factors[0]

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        return chain_module(site, self._links(site), factors, bias)
