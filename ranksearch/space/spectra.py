"""The prepared states of a model's sites: every site x decomposition is prepared once, its errors for all ranks
kept, its state cached within a bound, since states are several times larger than the weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Moments, Rank, cheaper
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site, Sites, canonical_weight

SMALL = 1 << 18  # parameters of a layer up to which it is factorized on one thread
SHIPPED = 256 << 20  # bytes of prepared states that go along when spectra are pickled


@dataclass(frozen=True)
class Profile:
    """All options of one decomposition at one site. It lists only ranks that are cheaper than dense in params or in MACs, cheapest
    first; the profile of ``dense`` itself has the one option. Every array has shape (n_options,), ``ranks`` (n_options, rank_length)."""

    site: str
    decomposition: str
    ranks: np.ndarray
    params: np.ndarray
    macs: np.ndarray
    frobenius: np.ndarray  # relative Frobenius error in the metric of the spectra
    operator: np.ndarray  # relative operator norm of the residual; NaN where there is none
    norm: float  # |W| in the metric
    frobenius_is: str
    operator_is: str


class Spectra:
    """Prepared decompositions of a model's sites in one metric.

    Args:
        model: the trained network; its weights are read, never changed, and must not change while this is used.
        sites: where to factorize.
        decompositions: which types to prepare; ``dense`` is always among them.
        moments: second moments per site name: the metric (see `Moments`); sites that are missing use the weight
            metric, and so do embeddings with a tied head: the error of two uses has no single pair of moments.
        cache_bytes: how much memory prepared states may hold; the least recently used are prepared again.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        decompositions: Sequence[AnyDecomposition] = DECOMPOSITIONS,
        *,
        moments: Mapping[str, Moments] | None = None,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.model = model
        self.sites = sites
        table = {d.name: d for d in (DECOMPOSITIONS[0], *decompositions)}
        self.decompositions: dict[str, AnyDecomposition] = table
        tied = {site.name for site in sites if site.head is not None}
        self.moments = {name: m for name, m in (moments or {}).items() if name not in tied}
        self._cache_bytes = cache_bytes
        self._states: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()
        self._profiles: dict[tuple[str, str], Profile] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Profiles do not travel to workers, which build and do not choose; the states do, the most recently used first, up
        to ``SHIPPED`` bytes: some types take a while to prepare."""
        states: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()
        left = SHIPPED
        for key, (state, size) in reversed(self._states.items()):
            if size <= left:
                states[key] = (state, size)
                states.move_to_end(key, last=False)
                left -= size
        return self.__dict__ | {"_states": states, "_profiles": {}}

    def decomposition(self, name: str) -> AnyDecomposition:
        """The decomposition of that name, if it is among those of this study."""
        if name not in self.decompositions:
            raise InvalidArgument(f"decomposition={name!r} is not in use; in use: {', '.join(self.decompositions)}")
        return self.decompositions[name]

    def state(self, site: Site, name: str) -> Any:
        """The prepared state of one decomposition at one site."""
        key = (site.name, name)
        if key in self._states:
            self._states.move_to_end(key)
            return self._states[key][0]
        weight = canonical_weight(self.model.get_submodule(site.name), site)
        with _threads(site):
            state = self.decomposition(name).prepare(site, weight, self.moments.get(site.name))
        self._states[key] = (state, _bytes(state))
        while sum(size for _, size in self._states.values()) > self._cache_bytes and len(self._states) > 1:
            self._states.popitem(last=False)
        return state

    def factors(self, site: Site, name: str, rank: Rank) -> tuple[Tensor, ...]:
        """Factors of one option, float64."""
        with _threads(site):
            return self.decomposition(name).factors(self.state(site, name), rank)

    def profile(self, site: Site, name: str) -> Profile | None:
        """The options of one decomposition at one site; None where it is undefined."""
        key = (site.name, name)
        decomposition = self.decomposition(name)
        if decomposition.undefined(site) is not None:
            return None
        if key not in self._profiles:
            with _threads(site):
                errors = decomposition.errors(self.state(site, name))
            params, macs = decomposition.costs(site, errors.ranks)
            keep = np.arange(len(params)) if name == "dense" else np.flatnonzero(cheaper(site, params, macs))
            keep = keep[np.lexsort((macs[keep], params[keep]))]
            self._profiles[key] = Profile(
                site.name, name, errors.ranks[keep], params[keep], macs[keep], errors.frobenius[keep],
                errors.operator[keep], errors.norm, errors.frobenius_is, errors.operator_is,
            )  # fmt: skip
        return self._profiles[key]


@contextmanager
def _threads(site: Site) -> Iterator[None]:
    """One thread for small layers: their thousands of small operations lose more to waking a second one than they gain, many
    times over on a busy machine; and their factors are the same whatever the thread count."""
    before = torch.get_num_threads()
    if before == 1 or site.cost.params >= SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(nbytes := getattr(state, "nbytes", None), int):  # states that grow when first used say so
        return nbytes
    if is_dataclass(state):
        return sum(_bytes(getattr(state, field.name)) for field in fields(state))
    if isinstance(state, (tuple, list)):
        return sum(_bytes(item) for item in state)
    return 0
