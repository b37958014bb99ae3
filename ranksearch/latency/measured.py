"""Latency as a cost model, from a table: it predicts every option, and says which options may stand on a ladder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ranksearch.costs import CostModel, DenseNetwork, LayerOptions
from ranksearch.decompositions import AnyDecomposition, Rank
from ranksearch.errors import InvalidArgument
from ranksearch.latency.bench import Bench
from ranksearch.latency.curve import Curve, coordinates, curve, measured_curve, structures
from ranksearch.latency.rounding import suggested_round_to
from ranksearch.latency.table import LatencyTable
from ranksearch.latency.timing import Interval
from ranksearch.sites import Site

NAME, LABEL, UNIT = "latency", "latency", "ns per forward pass"


class TableLatency(CostModel):
    """Nanoseconds of one forward pass, as a table predicts them; whole numbers, so that budgets are exact.

    Args:
        table: see `LatencyTable`.
        bench: measures types that the table lacks; None: they are not offered.
        refine: whether `refined` measures options, as far as there is a bench.
    """

    name, label, unit = NAME, LABEL, UNIT

    def __init__(self, table: LatencyTable, bench: Callable[[], Bench] | None = None, *, refine: bool = True) -> None:
        self.table = table
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
        scaled = self.table.layer(layer.site.name).dense * self.table.correction.scale
        return np.rint(ratios * scaled).astype(np.int64)

    def rest(self, network: DenseNetwork) -> int:
        return round(self.table.correction.rest)

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

    def refined(self, chosen: Iterable[tuple[Site, AnyDecomposition, Rank]]) -> TableLatency:
        bench = self.bench if self.refines else None
        missing: dict[tuple[str, str], tuple[Site, AnyDecomposition, set[Rank]]] = {}  # by layer and type: identical layers once
        for site, decomposition, rank in chosen:
            if decomposition.name != "dense" and rank not in self.table.layer(site.name).types.get(decomposition.name, {}):
                key = self.table.sites[site.name], decomposition.name
                missing.setdefault(key, (site, decomposition, set()))[2].add(rank)
        if bench is None or not missing:
            return self
        table = self.table
        for site, decomposition, ranks in missing.values():
            table = table.with_points(site.name, decomposition.name, bench.points(site, decomposition, sorted(ranks)))
        return TableLatency(table.named(), lambda: bench, refine=self._refine)

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
