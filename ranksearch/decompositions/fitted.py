"""Types whose ranks are networks of cores fitted to one weight beforehand: the ranks that there are, and their errors, are those found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ranksearch.decompositions.decomposition import Decomposition, Errors, Rank
from ranksearch.decompositions.metric import Moments, residual_energy
from ranksearch.decompositions.network import Reduced, contract, even, storage_undefined
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site


@dataclass(frozen=True)
class FittedNetworks:
    """Cores per rank, in the coordinates of the reduced weight, and their measured errors."""

    ranks: np.ndarray  # int64, shape: (n_ranks, bonds)
    cores: tuple[tuple[Tensor, ...], ...]
    reduced: Reduced
    frobenius: np.ndarray  # relative to the norm of the weight, shape: (n_ranks,)
    norm: float


def measured_networks(
    weight: Tensor, metric: Moments, reduced: Reduced, networks: Mapping[Rank, Sequence[Tensor]], modes: int
) -> FittedNetworks:
    """Networks by rank with the errors that they leave of a float64 weight in a metric.

    Args:
        reduced: of the weight, in whose coordinates the cores are.
        modes: of the weight; cores beyond them have none.
    """
    norm = residual_energy(weight[None], metric) ** 0.5
    energies = [
        residual_energy((weight - contract(reduced.lift(list(cores)), modes).reshape(weight.shape))[None], metric)
        for cores in networks.values()
    ]
    frobenius = np.sqrt(np.array(energies)) / norm if norm > 0 else np.zeros(len(networks))
    ranks = np.array(list(networks), dtype=np.int64)
    return FittedNetworks(ranks, tuple(map(tuple, networks.values())), reduced, frobenius, norm)


class FittedDecomposition(Decomposition[FittedNetworks]):
    """A type of fitted networks. There is no chain of plain layers for it: its cores are stored, and the dense weight is put together
    from them, so that params are saved and MACs added."""

    nested = False
    exact = False
    storage_only = True
    found_on: str  # what a rank must be on to have cores, for an error

    def undefined(self, site: Site) -> str | None:
        return storage_undefined(site)

    def errors(self, state: FittedNetworks) -> Errors:
        nothing = np.full(len(state.ranks), np.nan)
        return Errors(state.ranks, state.frobenius, nothing, state.norm, frobenius_is="measured", operator_is="measured")

    def factors(self, state: FittedNetworks, rank: Rank) -> tuple[Tensor, ...]:
        position = np.flatnonzero((state.ranks == np.array(rank)).all(axis=1))
        if not len(position):
            raise InvalidArgument(f"rank={rank} of {self.name} is not on {self.found_on}; ranks are {state.ranks.tolist()}")
        return even(state.reduced.lift(list(state.cores[int(position[0])])))
