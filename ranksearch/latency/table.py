"""A latency table: what the layers of a network take on one device, in one runtime, at one batch; and how their sum becomes the
latency of the network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ranksearch.decompositions import Rank
from ranksearch.errors import InvalidArgument
from ranksearch.latency.cache import points_of, rows_of
from ranksearch.latency.timing import Interval

SCHEMA = 1
LEAST = 1e-3  # of its dense time, which a layer takes at least


@dataclass(frozen=True)
class LayerTimes:
    """One layer, or several identical ones."""

    dense: float  # nanoseconds of one forward pass, all calls of the layer together
    types: Mapping[str, Mapping[Rank, Interval]]  # measured ratios to that, by type and rank
    note: str = ""  # what its inputs look like


@dataclass(frozen=True)
class Correction:
    """From the sum over layers to the network: ``rest + scale * sum``, fitted to measured networks.

    ``rest`` is what happens outside and between layers, in nanoseconds. ``scale`` is what a layer takes inside the network as
    opposed to by itself, where its weights and inputs are still in the cache of the processor. A negative ``rest`` is what networks save
    beyond what their layers do; it counts for layers, in proportion to their dense times, and leaves each at least `LEAST` of its own."""

    rest: float
    scale: float
    networks: int = 0  # measured for the fit; 0: none was made, and ``rest`` is what the dense network takes beyond its layers
    deviation: float | None = None  # median of |predicted / measured - 1|, each network predicted from a fit to the others
    worst: float | None = None  # largest of these


@dataclass(frozen=True)
class NarrowerTimes:
    """A narrower dense network of the same architecture."""

    width: float  # share of the channels
    params: int
    macs: int
    ratio: Interval  # of its latency to that of the dense network
    metrics: Mapping[str, float]  # empty where it was not trained

    def as_json(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NarrowerTimes:
        """Inverse of `as_json`."""
        return cls(**{**data, "ratio": Interval(**data["ratio"])})


@dataclass(frozen=True)
class LatencyTable:
    """All that predicts the latency of every configuration of a network."""

    device: str
    threads: int  # 0: not known, or no processor
    runtime: str  # name of a runtime, or ``imported``
    version: str
    batch: int | None
    sites: Mapping[str, str]  # name of the layer in ``layers``, by site
    layers: Mapping[str, LayerTimes]
    correction: Correction
    imported: bool = False  # measured elsewhere: nothing can be added to it here
    id: str = ""  # equal in tables that grew from one measurement
    narrower: tuple[NarrowerTimes, ...] = ()  # the widest first
    round_to: int | None = None  # multiple of ranks that costs no time, see `ranksearch.latency.rounding`; None: nobody asked

    def layer(self, site: str) -> LayerTimes:
        """The times of a site.

        Raises:
            InvalidArgument: it is not in the table."""
        if site not in self.sites:
            raise InvalidArgument(f"latency: the table of {self.device} has no rows of site {site!r}; measure it there too, or exclude it")
        return self.layers[self.sites[site]]

    @property
    def dense_sum(self) -> float:
        """Nanoseconds of all sites, dense and by themselves."""
        return sum(self.layer(site).dense for site in self.sites)

    def counted(self, site: str, ratios: np.ndarray) -> np.ndarray:
        """Nanoseconds that options of a site count inside the network, from their ratios to the dense layer; same shape."""
        known, dense = self.correction, self.layer(site).dense
        amounts = ratios * dense * known.scale
        return amounts if known.rest >= 0 else np.maximum(amounts + known.rest * dense / self.dense_sum, LEAST * dense)

    def with_points(self, site: str, decomposition: str, points: Mapping[Rank, Interval]) -> LatencyTable:
        """The table with measurements of one type at one site, and thereby at those identical to it, added."""
        name, layer = self.sites[site], self.layer(site)
        types = {**layer.types, decomposition: {**layer.types.get(decomposition, {}), **points}}
        return replace(self, layers={**self.layers, name: replace(layer, types=types)})

    def words(self) -> str:
        """What it is of, in a few words."""
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        batch = "" if self.batch is None else f", batch {self.batch}"
        return f"{self.device}{threads}, {self.version or self.runtime}{batch}"

    def named(self) -> LatencyTable:
        """The table with an ``id`` that follows from its content."""
        text = json.dumps({**self.as_json(), "id": ""}, sort_keys=True)
        return replace(self, id=hashlib.sha256(text.encode()).hexdigest()[:16])

    def as_json(self) -> dict[str, Any]:
        """As JSON data."""
        layers = {
            name: {"dense": layer.dense, "note": layer.note, "types": {t: rows_of(points) for t, points in layer.types.items()}}
            for name, layer in self.layers.items()
        }
        plain = {k: getattr(self, k) for k in ("device", "threads", "runtime", "version", "batch", "imported", "id")}
        more: dict[str, Any] = {"narrower": [one.as_json() for one in self.narrower]} if self.narrower else {}
        more |= {"round_to": self.round_to} if self.round_to is not None else {}
        return {"schema": SCHEMA, **plain, "sites": dict(self.sites), "layers": layers, "correction": asdict(self.correction), **more}

    @classmethod
    def from_json(cls, data: Any) -> LatencyTable:
        """Inverse of `as_json`.

        Raises:
            InvalidArgument: it is not that."""
        try:
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}, this version reads {SCHEMA}")
            layers = {
                name: LayerTimes(float(layer["dense"]), {t: points_of(rows) for t, rows in layer["types"].items()}, str(layer["note"]))
                for name, layer in data["layers"].items()
            }
            plain = {k: data[k] for k in ("device", "threads", "runtime", "version", "batch", "imported", "id")}
            narrower = tuple(NarrowerTimes.from_json(one) for one in data.get("narrower", ()))
            return cls(
                **plain, sites=dict(data["sites"]), layers=layers, correction=Correction(**data["correction"]), narrower=narrower,
                round_to=data.get("round_to"),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"latency: the stored table cannot be read ({error}); measure again, with another store") from error
