"""The prepared states of a model's sites. Every site is prepared once for every decomposition: its errors at all ranks are kept; its state,
and the factors that those of every rank are cut from, are held within a bound, since they are several times larger than the weights. What
took long is kept on disk as well."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Errors, Moments, Quantized, Rank, Searched
from ranksearch.errors import InvalidArgument
from ranksearch.home import user_path
from ranksearch.sites import Site, Sites, canonical_weight, device_of, unwrapped
from ranksearch.space.cache import ContentCache, content_key, data_key
from ranksearch.statistics.lazy import SHARE, Chosen
from ranksearch.statistics.memory import device_memory
from ranksearch.threads import few, threads

V = TypeVar("V")

HELD = 1 << 30  # bytes of prepared states and factors that are held where nobody says how many, at least
SHIPPED = 256 << 20  # bytes of them that go along when spectra are pickled
STATE, FACTORS = "state", "factors"  # what is held of a site in a type
DEAR = 0.02  # seconds of processor time from which on what was made is kept on disk


@dataclass(frozen=True)
class Profile:
    """All options of one decomposition at one site. It lists only ranks that save something (`Decomposition.saves`: params or MACs),
    cheapest first; the profile of ``dense`` itself has the one option, and so has it with few bits. Every array has shape (n_options,),
    ``ranks`` (n_options, rank_length)."""

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


@dataclass(frozen=True)
class Profiled:
    """Progress: all types of one more site are profiled."""

    site: str
    done: int
    total: int
    share: float  # of the work, about: sites count by their parameters; with the time it took, what the time left follows from


class Spectra:
    """Prepared decompositions of a model's sites in one metric.

    Args:
        model: the trained network; its weights are read, never changed, and must not change while this is used. What `torch.compile`
            or a parallel module wraps stands for it, as in `find_sites`.
        sites: where to factorize.
        decompositions: which types to prepare; ``dense`` is always among them.
        moments: second moments per site name: the metric (see `Moments`); sites that are missing use the weight
            metric, and so do embeddings with a tied head: the error of two uses has no single pair of moments.
        cache_bytes: how much memory prepared states, and the factors that those of every rank are cut from, may hold; the least recently
            used are read from ``cache``, or made again. None: 1 GiB, or a sixteenth of the memory of the machine, or of the GPU where they
            lie on one, whichever is more.
        cache: folder in which states, errors and factors that took long are kept for other processes, see `ContentCache`; None:
            nowhere. Results are the same, bit for bit, whatever it holds.
        device: where factorizations are computed, and states lie: a GPU does in seconds what takes processors minutes. Factors come back to
            where the weights are. None: where these are. The last bits of results hang on it.

    Raises:
        InvalidArgument: a device that this machine does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        decompositions: Sequence[AnyDecomposition] = DECOMPOSITIONS,
        *,
        moments: Mapping[str, Moments] | None = None,
        cache_bytes: int | None = None,
        cache: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.model = unwrapped(model)
        self.sites = sites
        table = {d.name: d for d in (DECOMPOSITIONS[0], *decompositions)}
        self.decompositions: dict[str, AnyDecomposition] = table
        tied = {site.name for site in sites if site.head is not None}
        known: Mapping[str, Moments] = {} if moments is None else moments
        self.moments = Chosen(known, [name for name in known if name not in tied])
        self.device = None if device is None else checked_device(device)
        self._metrics: dict[str, str] = {}
        self._moved: tuple[Moments, Moments] | None = None  # the moments that were last brought to the device, and what they are there
        self._cache_bytes = _room(self.device or device_of(self.model)) if cache_bytes is None else cache_bytes
        self._held: OrderedDict[tuple[str, str, str], tuple[Any, int]] = OrderedDict()  # and how many bytes it is
        self._profiles: dict[tuple[str, str], Profile] = {}
        self._disk = None if cache is None else ContentCache(user_path(cache))
        self._data: dict[str, str] = {}  # `data_key` of every site
        self._keys: dict[tuple[str, str], str | None] = {}
        self._found: set[tuple[str, str]] = set()  # of what was searched for, what is on disk

    def __getstate__(self) -> dict[str, Any]:
        """Profiles do not travel to workers, which build and do not choose; states and factors do, the most recently used first, up
        to ``SHIPPED`` bytes: some types take a while to prepare. From a device of their own they travel by way of the processor."""
        held: OrderedDict[tuple[str, str, str], tuple[Any, int]] = OrderedDict()
        left = SHIPPED
        for key, (value, size) in reversed(self._held.items()):
            if size <= left:
                held[key] = (value if self.device is None else _moved(value, torch.device("cpu")), size)
                held.move_to_end(key, last=False)
                left -= size
        return self.__dict__ | {"_held": held, "_profiles": {}, "_moved": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A worker that lacks the device factorizes where its weights are."""
        self.__dict__.update(state)
        if self.device is None:
            return
        try:
            checked_device(self.device)
        except InvalidArgument:
            self.device = None
            return
        for key, (value, size) in self._held.items():
            self._held[key] = _moved(value, self.device), size

    def decomposition(self, name: str) -> AnyDecomposition:
        """The decomposition of that name, if it is among those of this study."""
        if name not in self.decompositions:
            raise InvalidArgument(f"decomposition={name!r} is not in use; in use: {', '.join(self.decompositions)}")
        return self.decompositions[name]

    def state(self, site: Site, name: str) -> Any:
        """The prepared state of one decomposition at one site. That of a type with few bits is made of the type's own."""
        decomposition = self.decomposition(name)
        if isinstance(decomposition, Quantized) and _alike(self.decompositions.get(decomposition.inner.name), decomposition.inner):
            inner = self.state(site, decomposition.inner.name)
            return decomposition.on(site, self._weight(site), self._moments(site), inner)

        def prepare() -> Any:
            return decomposition.prepare(site, self._weight(site), self._moments(site))

        def known() -> Any:
            state = self._kept(site, name, "state", prepare)
            if isinstance(state, Searched) and (found := self._load(site, name, "found")) is not None:
                state.found.update(found)
                self._found.add((site.name, name))
            return state

        return self._hold((site.name, name, STATE), known)

    def _hold(self, key: tuple[str, str, str], make: Callable[[], V]) -> V:
        """What is held, or made now and held; what was used least recently gives way to it."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key][0]
        made = make()
        self._held[key] = made, _bytes(made)
        while sum(size for _, size in self._held.values()) > self._cache_bytes and len(self._held) > 1:
            self._held.popitem(last=False)
        return made

    def forget(self) -> None:
        """Give back the memory of states, factors and moments, which are made again, or read again, when they are asked for."""
        self._held.clear()
        self._moved = None
        self.moments.forget()

    def factors(self, site: Site, name: str, rank: Rank) -> tuple[Tensor, ...]:
        """Factors of one option, float64, on the device of the weight. Those of types of components are cut from those of the full rank,
        which are made, kept and held once for all ranks."""
        decomposition = self.decomposition(name)
        if decomposition.components:
            full = tuple(decomposition.ranks(site)[-1].tolist())
            made = decomposition.cut(self._hold((site.name, name, FACTORS), lambda: self._factors(site, name, full)), rank)
        else:
            made = self._factors(site, name, tuple(rank))
        return _moved(made, self._own_weight(site).device)  # held ones may be from before the model was moved

    def _factors(self, site: Site, name: str, rank: Rank) -> tuple[Tensor, ...]:
        """Factors of one option, read or made, where factorizations are computed."""

        def make() -> tuple[Tensor, ...]:
            return self.decomposition(name).factors(self.state(site, name), rank)

        return self._kept(site, name, f"factors-{'x'.join(str(int(r)) for r in rank)}", make)

    def metrics(self) -> set[str]:
        """The metrics that errors are taken in, by site: one, unless nothing is known of some sites."""
        for name in self.moments:
            if name not in self._metrics:
                self._metrics[name] = self.moments[name].metric
        return {self._metrics[name] for name in self.moments} or {"weight"}

    def _own_weight(self, site: Site) -> Tensor:
        return canonical_weight(self.model.get_submodule(site.name), site)

    def _weight(self, site: Site) -> Tensor:
        """The weight where factorizations are computed."""
        weight = self._own_weight(site)
        return weight if self.device is None else weight.to(self.device)

    def _moments(self, site: Site) -> Moments | None:
        """The moments of a site where factorizations are computed, so that they are floored there, once for all types."""
        moments = self.moments.get(site.name)
        if moments is None:
            return None
        self._metrics[site.name] = moments.metric
        device = self.device or self._own_weight(site).device
        if all(m is None or m.device == device for m in (moments.input, moments.output)):
            return moments
        if self._moved is None or self._moved[0] is not moments:
            self._moved = moments, moments.to(device)
        return self._moved[1]

    def _kept(self, site: Site, name: str, what: str, make: Callable[[], V]) -> V:
        """What was made before, by whatever process, or made now, and kept if that took long. Of a state that is `Searched` only what
        was found is kept, with the errors that come of it."""
        with threads(few(site.cost.params)):
            if (key := self._key(site, name)) is None or self._disk is None:
                return make()
            if (kept := self._load(site, name, what)) is not None:
                return kept
            begin = time.process_time()
            made = make()
            if time.process_time() - begin >= DEAR and not isinstance(made, Searched):
                self._disk.save(f"{key}-{what}", made)
                self._keep_found(site, name, key)
            return made

    def _keep_found(self, site: Site, name: str, key: str) -> None:
        place = (site.name, name)
        state, _ = self._held.get((*place, STATE), (None, 0))
        if self._disk is not None and place not in self._found and isinstance(state, Searched) and state.found:
            self._disk.save(f"{key}-found", tuple(state.found.items()))
            self._found.add(place)

    def _load(self, site: Site, name: str, what: str) -> Any | None:
        with threads(few(site.cost.params)):
            key = self._key(site, name)
        kept = None if key is None or self._disk is None else self._disk.load(f"{key}-{what}")
        return _moved(kept, self._weight(site).device)

    def _key(self, site: Site, name: str) -> str | None:
        """What is kept of a site in a type is found by this; None where nothing is."""
        if self._disk is not None and (site.name, name) not in self._keys:
            if site.name not in self._data:
                self._data[site.name] = data_key(self._weight(site), self._moments(site))
            data, threads = self._data[site.name], torch.get_num_threads()
            self._keys[site.name, name] = content_key(self.decomposition(name), site, data, threads=threads)
        return self._keys.get((site.name, name))

    def profile(self, site: Site, name: str) -> Profile | None:
        """The options of one decomposition at one site; None where it is undefined."""
        key = (site.name, name)
        decomposition = self.decomposition(name)
        if decomposition.undefined(site) is not None:
            return None
        if key not in self._profiles:
            errors: Errors = self._kept(site, name, "errors", lambda: decomposition.errors(self.state(site, name)))
            params, macs = decomposition.costs(site, errors.ranks)
            keep = np.arange(len(params)) if name == "dense" else np.flatnonzero(decomposition.saves(site, params, macs))
            keep = keep[np.lexsort((macs[keep], params[keep]))]
            if (held := (*key, STATE)) in self._held:  # it may have grown by what was searched for
                self._held[held] = (self._held[held][0], _bytes(self._held[held][0]))
            self._profiles[key] = Profile(
                site.name, name, errors.ranks[keep], params[keep], macs[keep], errors.frobenius[keep],
                errors.operator[keep], errors.norm, errors.frobenius_is, errors.operator_is,
            )  # fmt: skip
        return self._profiles[key]

    def profile_all(self, on_site: Callable[[Profiled], None] | None = None) -> None:
        """Profile every site in every type: what takes the time of a search space, done at once.

        Args:
            on_site: called after every site. What it raises ends the work; what is profiled by then stays so.
        """
        whole, done = sum(site.cost.params for site in self.sites), 0
        for number, site in enumerate(self.sites, 1):
            for name in self.decompositions:
                self.profile(site, name)
            done += site.cost.params
            if on_site is not None:
                on_site(Profiled(site.name, number, len(self.sites), done / max(whole, 1)))


def checked_device(device: str | torch.device) -> torch.device:
    """A device that there is, with its number.

    Raises:
        InvalidArgument: there is none such."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        remedy = f"not a device of this machine ({str(error).splitlines()[0]}); give 'cpu', or 'cuda' where there is a GPU"
        raise InvalidArgument(f"device={str(device)!r}: {remedy}") from error


def _room(device: torch.device) -> float:
    """Bytes of prepared states and factors that are held on a device where nobody says how many."""
    room = SHARE * device_memory(device)
    return max(HELD, room) if math.isfinite(room) else HELD


def _alike(one: AnyDecomposition | None, other: AnyDecomposition) -> bool:
    """Whether two types are one, options and all, so that the state of one is that of the other."""
    return type(one) is type(other) and vars(one) == vars(other)


def _moved(value: Any, device: torch.device) -> Any:
    """A value whose tensors are on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return tuple(_moved(item, device) for item in value) if isinstance(value, tuple) else value


def _bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(nbytes := getattr(state, "nbytes", None), int):  # states that grow when first used say so
        return nbytes
    if is_dataclass(state):
        return sum(_bytes(getattr(state, field.name)) for field in fields(state))
    if isinstance(state, (tuple, list)):
        return sum(_bytes(item) for item in state)
    if isinstance(state, dict):
        return sum(_bytes(item) for item in state.values())
    return 0
