"""Latency as a cost model, from a table: it predicts every option, and says which options may stand on a ladder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from ranksearch.costs import Choice, CostModel, DenseNetwork, LayerOptions
from ranksearch.decompositions import AnyDecomposition, Rank
from ranksearch.errors import InvalidArgument
from ranksearch.latency.bench import Bench
from ranksearch.latency.correction import through_dense
from ranksearch.latency.curve import Curve, coordinates, curve, measured_curve, structures
from ranksearch.latency.rounding import suggested_round_to
from ranksearch.latency.table import LatencyTable
from ranksearch.latency.timing import Interval
from ranksearch.sites import Site

NEARBY = 3  # networks that are measured as a whole where allocations land, within
NEAR = 0.03  # of the dense latency
Network = frozenset[Choice]  # what it is: sites in none of its choices stay dense

NAME, LABEL, UNIT = "latency", "latency", "ns per forward pass"


class TableLatency(CostModel):
    """Nanoseconds of one forward pass, as a table predicts them; whole numbers, so that budgets are exact.

    Args:
        table: see `LatencyTable`.
        bench: measures types that the table lacks; None: they are not offered.
        refine: whether `refined` measures options and networks, as far as there is a bench.
        whole: what networks that allocations landed on were measured to take, as a whole, over the dense one.
    """

    name, label, unit = NAME, LABEL, UNIT

    def __init__(
        self, table: LatencyTable, bench: Callable[[], Bench] | None = None, *, refine: bool = True,
        whole: Mapping[Network, float] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.table, self._whole = table, whole
        self._refine = refine
        self._bench = bench
        self._made: Bench | None = None
        self._curves: dict[tuple[str, str], dict[Rank, Curve]] = {}

    @property
    def bench(self) -> Bench | None:
        """What measures more of the same; None where the table is of another device."""
        if self._made is None and self._bench is not None:
            self._made = self._bench()
        return self._made

    def options(self, layer: LayerOptions) -> np.ndarray:
        ratios = self.ratios(layer)
        if np.isnan(ratios).any():
            rank = tuple(int(entry) for entry in layer.ranks[np.flatnonzero(np.isnan(ratios))[0]])
            raise InvalidArgument(
                f"latency: the table of {self.table.device} has no {layer.decomposition.name} of rank {rank} at {layer.site.name!r}; "
                "add such rows to it, or use another store for configurations without it"
            )
        return np.rint(self.table.counted(layer.site.name, ratios)).astype(np.int64)

    def rest(self, network: DenseNetwork) -> int:
        return round(max(self.table.correction.rest, 0.0))

    def offered(self, layer: LayerOptions) -> np.ndarray:
        """Options that are known, and not slower than the dense layer."""
        return self.ratios(layer) <= 1.0  # NaN compares as False

    def round_to(self, network: DenseNetwork) -> int | None:
        """The multiple of ranks that costs no time on the device, measured once and kept with the table; None where the table is of another
        device and does not say."""
        if self.table.round_to is None:
            self.table = replace(self.table, round_to=suggested_round_to(self, network))
        return self.table.round_to

    def of(self, network: DenseNetwork, known: Mapping[str, Any] | None = None, tell: Callable[[str], None] = lambda _: None) -> CostModel:
        del network, known, tell
        return self

    @property
    def refines(self) -> bool:
        return self._refine and self._bench is not None

    def refined(self, chosen: Sequence[Sequence[Choice]]) -> TableLatency:
        """See `CostModel.refined`. Where whole networks are measured at all, so are those of ``chosen`` of whose predicted latency fewer
        than `NEARBY` have been, and from then on the correction is theirs (`ranksearch.latency.correction.through_dense`)."""
        bench = self.bench if self.refines else None
        if bench is None:
            return self
        table = self._with_options(bench, chosen)
        after = self if table is self.table else self._grown(bench, table, self._whole)
        new = after.unmeasured(chosen) if table.correction.networks else []
        ratios = [interval.value for interval in bench.networks(map(tuple, new))] if new else []
        whole = {**self._whole, **dict(zip(new, ratios, strict=True))}
        if not whole or (after is self and not new):
            return after
        sums = np.array([after.sum_of(network) for network in whole])
        correction = through_dense(table.correction, after.table.dense_sum, sums, np.array([*whole.values()]))
        return self._grown(bench, replace(after.table, correction=correction), whole)

    def _with_options(self, bench: Bench, chosen: Sequence[Sequence[Choice]]) -> LatencyTable:
        """The table with the options of networks that it lacks."""
        missing: dict[tuple[str, str], tuple[Site, AnyDecomposition, set[Rank]]] = {}  # by layer and type: identical layers once
        for name, decomposition, rank in itertools.chain(*chosen):
            if decomposition.name != "dense" and rank not in self.table.layer(name).types.get(decomposition.name, {}):
                key = self.table.sites[name], decomposition.name
                missing.setdefault(key, (bench.network.sites[name], decomposition, set()))[2].add(rank)
        table = self.table
        for site, decomposition, ranks in missing.values():
            table = table.with_points(site.name, decomposition.name, bench.points(site, decomposition, sorted(ranks)))
        return table

    def _grown(self, bench: Bench, table: LatencyTable, whole: Mapping[Network, float]) -> TableLatency:
        return TableLatency(table.named(), lambda: bench, refine=self._refine, whole=whole)

    def unmeasured(self, chosen: Sequence[Sequence[Choice]]) -> list[Network]:
        """Of networks those to measure as a whole."""
        near = [self._share(network) for network in self._whole]
        found: list[Network] = []
        for network in map(frozenset, chosen):
            share = self._share(network)
            if network and network not in self._whole and network not in found and sum(abs(share - s) <= NEAR for s in near) < NEARBY:
                found.append(network)
                near.append(share)
        return found

    def _share(self, network: Iterable[Choice]) -> float:
        """What a network is predicted to take over the dense one."""
        known = self.table.correction
        return (known.rest + known.scale * self.sum_of(network)) / (known.rest + known.scale * self.table.dense_sum)

    def sum_of(self, network: Iterable[Choice]) -> float:
        """Nanoseconds of all sites, by themselves."""
        bench = self.bench
        assert bench is not None  # only what measures adds layers up
        sites = bench.network.sites
        times = {site: self.table.layer(site).dense for site in self.table.sites}
        for name, decomposition, rank in network:
            ranks = np.array([rank], dtype=np.int64)
            layer = LayerOptions(bench.network, sites[name], decomposition, ranks, *decomposition.costs(sites[name], ranks))
            times[name] *= float(self.ratios(layer)[0])
        return sum(times.values())

    def record(self) -> dict[str, Any]:
        table = self.table
        settings = {"runtime": table.runtime, "batch": table.batch, "device": table.device}
        return {"settings": settings, "id": table.id, "table": table.as_json()}

    def ratios(self, layer: LayerOptions, which: str = "value") -> np.ndarray:
        """Predicted ratios to the dense layer, shape: (n_ranks,); NaN where the table does not tell.

        Args:
            which: ``value``, or the ``low`` or ``high`` end of its interval."""
        if layer.decomposition.name == "dense":
            self.table.layer(layer.site.name)
            return np.ones(len(layer.ranks))
        found = np.full(len(layer.ranks), np.nan)
        if len(layer.ranks):
            curves = self.curves(layer.site, layer.decomposition, layer.ranks)
            for structure, rows in structures(layer.decomposition, layer.ranks).items():
                if structure in curves:
                    found[rows] = self._at(curves[structure], layer, rows, which)
        return found

    def _at(self, known: Curve, layer: LayerOptions, rows: np.ndarray, which: str) -> np.ndarray:
        spots = coordinates(layer.decomposition, layer.site, layer.ranks[rows], by_macs=known.by_macs)
        found = known.at(spots, which)
        if self.table.imported:  # how much slower larger ranks are, nobody has measured
            found[(spots > [axis[-1] for axis in known.axes]).any(axis=1)] = np.nan
        return found

    def curves(self, site: Site, decomposition: AnyDecomposition, ranks: np.ndarray) -> dict[Rank, Curve]:
        """The curves of a type at a site, by structure; measured where they are missing and can be."""
        key = (self.table.sites.get(site.name, ""), decomposition.name)
        if key not in self._curves:
            points = self.table.layer(site.name).types.get(decomposition.name, {})
            if not points and self._bench is not None:
                self.measure(site, decomposition, ranks)
                points = self.table.layer(site.name).types.get(decomposition.name, {})
            self._curves[key] = _curves(site, decomposition, points)
        return self._curves[key]

    def measure(self, site: Site, decomposition: AnyDecomposition, ranks: np.ndarray) -> None:
        """Add a type at a site to the table, by measuring what interpolation between these ranks needs."""
        bench = self.bench
        if bench is None:
            raise InvalidArgument(f"latency: the table of {self.table.device} was measured elsewhere; nothing can be added to it here")

        def measured(wanted: Sequence[Rank]) -> Mapping[Rank, Interval]:
            return bench.points(site, decomposition, wanted)

        points: dict[Rank, Interval] = {}
        for rows in structures(decomposition, ranks).values():
            points |= measured_curve(decomposition, site, ranks[rows], measured)
        self.table = self.table.with_points(site.name, decomposition.name, points)


def _curves(site: Site, decomposition: AnyDecomposition, points: Mapping[Rank, Interval]) -> dict[Rank, Curve]:
    if not points:
        return {}
    ranks = list(points)
    groups = structures(decomposition, np.array(ranks, dtype=np.int64))
    return {name: curve(decomposition, site, {ranks[k]: points[ranks[k]] for k in rows}) for name, rows in groups.items()}
