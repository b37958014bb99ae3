"""``Latency(...)``: how a study asks for latency. Measured once per study, kept with its store, and never mixed with another device's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ranksearch import checks
from ranksearch.costs import CostModel, DenseNetwork, LayerOptions
from ranksearch.decompositions import AnyDecomposition
from ranksearch.errors import InvalidArgument
from ranksearch.home import home, user_path
from ranksearch.latency import narrower
from ranksearch.latency.bench import Bench, spread
from ranksearch.latency.cache import MeasurementCache
from ranksearch.latency.correction import fitted, simple
from ranksearch.latency.device import Environment
from ranksearch.latency.files import read_table
from ranksearch.latency.inputs import digest
from ranksearch.latency.measured import LABEL, NAME, UNIT, TableLatency
from ranksearch.latency.runtimes import RUNTIMES, Runtime
from ranksearch.latency.table import Correction, LatencyTable, LayerTimes
from ranksearch.latency.timing import Precision
from ranksearch.sites import batch_size

IMPORTED = "imported"


@dataclass(frozen=True)
class Latency(CostModel):
    """The cost ``latency``: nanoseconds of one forward pass on a device, as a table of its layers predicts them. Options slower than
    the dense layer never enter a ladder.

    Without ``table`` it is measured in this process, on the device that the model is on, when a study first needs it. The
    measurement is kept with the study's store: a study that goes on counts by the same one.

    Attributes:
        runtime: ``eager``, ``compile``, ``onnxruntime``, ``cuda_graph``, or a `Runtime` of your own.
        batch: examples in a forward pass; None: as many as the task's example has.
        device: name of the device whose latency counts, as stored or imported; None: this machine's. Needed where a study goes on
            on another machine than it was measured on.
        table: a table that was measured elsewhere, or the CSV file of one (see `ranksearch.latency.files`).
        networks: whole networks that are measured to fit how layers add up; 0: layers are summed as they are.
        refine: measure also the options that the best configurations land on, where their latency was interpolated, and solve again
            (`ranksearch.search.landing`).
        precision: how long works are repeated.
        cache: keep measurements of layers in ``$RANKSEARCH_HOME/cache/latency`` and take them from there.
        clock: seconds; None: on one thread of a processor the time that this thread runs, else that of the wall.

    Raises:
        InvalidArgument: an unknown runtime, a batch below 1, networks that are neither 0 nor at least 3.
    """

    runtime: str | Runtime = "eager"
    batch: int | None = None
    device: str | None = None
    table: LatencyTable | str | Path | None = None
    networks: int = 20
    refine: bool = True
    precision: Precision = field(default_factory=Precision)
    cache: bool = True
    clock: Callable[[], float] | None = field(default=None, repr=False)

    name, label, unit = NAME, LABEL, UNIT

    def __post_init__(self) -> None:
        if not isinstance(self.runtime, Runtime) and self.runtime not in (*RUNTIMES, IMPORTED):
            raise InvalidArgument(f"runtime={self.runtime!r} is none of {', '.join(RUNTIMES)}")
        if self.batch is not None:
            checks.whole("batch", self.batch, least=1)
        if checks.whole("networks", self.networks, least=0) in (1, 2):
            raise InvalidArgument(f"networks={self.networks}: a fit needs 3 or more; 0 makes none")
        if not isinstance(self.refine, bool):
            raise InvalidArgument(f"refine={self.refine!r:.80}: must be True or False")

    def options(self, layer: LayerOptions) -> np.ndarray:
        raise InvalidArgument("latency is not measured yet: take Latency(...).of(network); a study and build_space do")

    def rest(self, network: DenseNetwork) -> int:
        return self.of(network).rest(network)

    def of(
        self, network: DenseNetwork, known: Mapping[str, Any] | None = None, tell: Callable[[str], None] = lambda _: None
    ) -> TableLatency:
        if known is not None:
            return self._stored(network, LatencyTable.from_json(known.get("table")))
        if self.table is not None:
            table = self.table if isinstance(self.table, LatencyTable) else read_table(user_path(self.table))
            return _covering(replace(table, imported=True).named() if not table.id else table, network)
        if self.runtime == IMPORTED:
            raise InvalidArgument(f"runtime={IMPORTED!r}: give table, the CSV file of the latency that was measured elsewhere")
        runtime = self._runtime()
        runtime.check()
        environment = Environment.here(network.model, runtime)
        if self.device is not None and self.device != environment.device:
            raise InvalidArgument(
                f"device={self.device!r}: this machine is {environment.device!r}, and the study has no latency stored yet; measure it "
                "there, write it with write_table, and give that file as table"
            )
        return self._measured(network, runtime, tell)

    def _runtime(self) -> Runtime:
        return self.runtime if isinstance(self.runtime, Runtime) else RUNTIMES[self.runtime]

    def _bench(self, network: DenseNetwork, runtime: Runtime) -> Bench:
        cache = MeasurementCache(home() / "cache" / "latency" if self.cache else None)
        return Bench(network, runtime, batch=self.batch, precision=self.precision, cache=cache, clock=self.clock)

    def _measured(self, network: DenseNetwork, runtime: Runtime, tell: Callable[[str], None]) -> TableLatency:
        if network.example is None:
            raise InvalidArgument("latency: the network is to be run, so it needs an example; give example=")
        rivals = narrower.built(network)
        bench = self._bench(network, runtime)
        environment, keys = bench.environment, bench.keys
        tell(f"measuring latency of {len(set(keys.values()))} different layers ({environment.words()})")
        names = {key: digest(key)[:8] for key in keys.values()}
        notes = {keys[site.name]: bench.note(site) for site in network.sites}
        dense = bench.dense()
        layers = {names[key]: LayerTimes(1e9 * seconds, {}, notes[key]) for key, seconds in dense.layers.items()}
        total = sum(1e9 * dense.layers[key] for key in keys.values())
        table = LatencyTable(
            environment.device, environment.threads, environment.runtime, environment.version, _examples(self.batch, network),
            sites={site: names[key] for site, key in keys.items()}, layers=layers, correction=simple(total, 1e9 * dense.network),
        )  # fmt: skip
        cost = TableLatency(table, lambda: bench, refine=self.refine)
        ladders = _everything(cost, network)
        if self.networks and ladders:
            tell(f"measuring {self.networks} networks as a whole")
            cost.table = replace(cost.table, correction=_corrected(cost, bench, ladders, 1e9 * dense.network, self.networks))
        if rivals:
            tell(f"measuring {len(rivals)} narrower dense networks")
            cost.table = replace(cost.table, narrower=narrower.timed(bench, rivals))
        cost.table = cost.table.named()
        return cost

    def _stored(self, network: DenseNetwork, table: LatencyTable) -> TableLatency:
        """The cost of a table that a study has, if it is what is asked for."""
        if self.table is not None:
            given = self.table if isinstance(self.table, LatencyTable) else _file(self.table)
            if given is not None and (given.id or replace(given, imported=True).named().id) != table.id:
                raise InvalidArgument(f"table: {given.words()} is not what the study counts by, {table.words()}; use another --store")
            return _covering(table, network)
        asked = self.runtime if isinstance(self.runtime, str) else self.runtime.name
        if asked != table.runtime or self.batch not in (None, table.batch):
            raise InvalidArgument(
                f"runtime={asked!r}, batch={self.batch}: this store has latency of {table.words()}; ask for that, or use another --store"
            )
        if table.imported:
            return _covering(table, network)
        runtime = self._runtime()
        here = None if self.device == table.device else Environment.here(network.model, runtime)
        if self.device not in (None, table.device) or (here is not None and (here.device, here.threads) != (table.device, table.threads)):
            mine = self.device or f"{here.words() if here else ''}"
            raise InvalidArgument(
                f"latency: this store has that of {table.words()}, not of {mine}; give device={table.device!r} to go on with it, "
                "or use another --store"
            )
        same = here is not None and here.version == table.version
        return TableLatency(table, (lambda: self._bench(network, runtime)) if same else None, refine=self.refine)


def _file(path: str | Path) -> LatencyTable | None:
    """The table of a file; None where the file is gone: the study has what was in it."""
    return read_table(user_path(path)) if user_path(path).exists() else None


def _examples(batch: int | None, network: DenseNetwork) -> int | None:
    if batch is not None or network.batch_dim is None:
        return batch
    return batch_size(network.example, network.batch_dim)


def _covering(table: LatencyTable, network: DenseNetwork) -> TableLatency:
    for site in network.sites:
        table.layer(site.name)  # raises
    return TableLatency(table)


Ladders = dict[str, list[tuple[AnyDecomposition, np.ndarray, np.ndarray]]]


def _everything(cost: TableLatency, network: DenseNetwork) -> Ladders:
    """Ranks and predicted ratios of every type at every site: all curves are measured by that."""
    found: Ladders = {}
    for site in network.sites:
        for decomposition in network.decompositions:
            if decomposition.name == "dense" or decomposition.undefined(site) is not None:
                continue
            ranks = decomposition.options(site)
            if len(ranks) > 1:  # one alone: which there are is learned from the weight, and measured when a ladder asks
                params, macs = decomposition.costs(site, ranks)
                ratios = cost.ratios(LayerOptions(network, site, decomposition, ranks, params, macs))
                found.setdefault(site.name, []).append((decomposition, ranks, ratios))
    return found


def _corrected(cost: TableLatency, bench: Bench, ladders: Ladders, dense: float, count: int) -> Correction:
    """The correction that fits networks measured as a whole; ``dense`` is what the dense one takes, in nanoseconds."""
    configurations = [choices for choices in spread(ladders, count) if choices]
    sites = {site: cost.table.layer(site).dense for site in cost.table.sites}
    ratio = {site: {d.name: (ranks, ratios) for d, ranks, ratios in types} for site, types in ladders.items()}
    sums = [sum(sites.values())]
    for choices in configurations:
        chosen = {}
        for site, decomposition, rank in choices:
            ranks, ratios = ratio[site][decomposition.name]
            chosen[site] = sites[site] * float(ratios[np.flatnonzero((ranks == np.array(rank)).all(axis=1))[0]])
        sums.append(sum({**sites, **chosen}.values()))
    if len(sums) < 4:
        return cost.table.correction
    measured = dense * np.array([1.0, *(interval.value for interval in bench.networks(configurations))])
    return fitted(np.array(sums), measured)
