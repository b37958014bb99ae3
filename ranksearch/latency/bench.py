"""Measuring the layers of one network, and whole networks, in this process: identical layers once, everything through the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from torch import nn

from ranksearch.costs import Choice, DenseNetwork
from ranksearch.decompositions import AnyDecomposition, Rank
from ranksearch.latency.cache import Known, MeasurementCache
from ranksearch.latency.device import Environment, clock_of
from ranksearch.latency.inputs import LayerCalls, batched, layer_calls, layer_key, network_input, shapes
from ranksearch.latency.layers import dense_layer, stand_in, timed_module
from ranksearch.latency.runtimes import Runtime, settled
from ranksearch.latency.timing import GROUP, Interval, Precision, Timing, Work, paired
from ranksearch.networks.surgery import replace_sites
from ranksearch.sites import Site, copied, device_of


@dataclass(frozen=True)
class Dense:
    """Seconds of the dense network and of its layers, taken in turn."""

    network: float
    layers: Mapping[str, float]  # by layer key


class Bench:
    """What measures one network in one environment.

    Args:
        network: the dense network; it is not changed.
        batch: examples in a forward pass; None: those of the example.
        clock: seconds; a test gives one of its own. None: see `ranksearch.latency.device.clock_of`.
    """

    def __init__(
        self,
        network: DenseNetwork,
        runtime: Runtime,
        *,
        batch: int | None,
        precision: Precision,
        cache: MeasurementCache,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.network, self.runtime, self.precision = network, runtime, precision
        self.clock = clock or clock_of(network.model)
        self.environment = Environment.here(network.model, runtime)
        self.example = network_input(network.model, batched(network.example, batch, network.batch_dim))
        self._cache = cache
        self._known: dict[str, Known] = {}  # by layer key
        self._references: dict[str, Work] = {}

    @cached_property
    def calls(self) -> Mapping[str, LayerCalls]:
        """The inputs of every site."""
        return layer_calls(self.network.model, self.network.sites, self.example)

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """What identical layers have in common, by site."""
        return {site.name: layer_key(self.network.model, site, self.calls[site.name]) for site in self.network.sites}

    def note(self, site: Site) -> str:
        """What a layer and its inputs look like, in words."""
        calls = self.calls[site.name]
        return f"{site.kind} {'x'.join(map(str, site.shape))} on {shapes((*calls.own, *calls.head))}"

    def points(self, site: Site, decomposition: AnyDecomposition, ranks: Sequence[Rank]) -> dict[Rank, Interval]:
        """Ratios of options to the dense layer; what the cache has is not measured again."""
        key, name = self.keys[site.name], _type_name(decomposition)
        if key not in self._known:
            self._known[key] = self._cache.load(self.environment.as_json(), key)
        known = self._known[key].setdefault(name, {})
        missing = [rank for rank in ranks if rank not in known]
        for start in range(0, len(missing), GROUP):
            group = missing[start : start + GROUP]
            works = [self._work(site, stand_in(self.network.model, site, decomposition, rank)) for rank in group]
            found = self._paired(self._reference(site), works)
            known.update(zip(group, found.ratios, strict=True))
        if missing:
            self._cache.save(self.environment.as_json(), key, self._known[key])
        return {rank: known[rank] for rank in ranks}

    def dense(self) -> Dense:
        """The dense network and all different layers of it, in turn, so that a drift of the machine is the same for all."""
        first: dict[str, str] = {}
        for name, key in self.keys.items():
            first.setdefault(key, name)
        works = [self._reference(self.network.sites[name]) for name in first.values()]
        found = self._paired(self._network_work(copied(self.network.model)), works)
        return Dense(found.reference, {key: ratio.value * found.reference for key, ratio in zip(first, found.ratios, strict=True)})

    def networks(self, configurations: Iterable[Sequence[Choice]]) -> list[Interval]:
        """Ratios of whole networks, with stand-ins for layers, to the dense one."""
        return self.whole(self.built(choices) for choices in configurations)

    def whole(self, models: Iterable[nn.Module]) -> list[Interval]:
        """Ratios of networks that take the same inputs to the dense one."""
        reference = self._network_work(copied(self.network.model))
        found: list[Interval] = []
        waiting = iter(models)
        while some := list(islice(waiting, GROUP)):  # so many networks at a time in memory
            found += self._paired(reference, [self._network_work(model) for model in some]).ratios
        return found

    def built(self, choices: Sequence[Choice]) -> nn.Module:
        """A network with stand-ins in the places of its sites."""
        model, sites = self.network.model, self.network.sites
        layers = {name: stand_in(model, sites[name], decomposition, rank) for name, decomposition, rank in choices}
        return replace_sites(model, [sites[name] for name in layers], layers)

    def _paired(self, reference: Work, works: Sequence[Work]) -> Timing:
        settle = settled(device_of(self.network.model))
        return paired(reference, works, precision=self.precision, clock=self.clock, settle=settle, runs=self.runtime.runs)

    def _reference(self, site: Site) -> Work:
        key = self.keys[site.name]
        if key not in self._references:
            self._references[key] = self._work(site, dense_layer(self.network.model, site))
        return self._references[key]

    def _work(self, site: Site, layer: nn.Module) -> Work:
        module, inputs = timed_module(self.network.model, site, layer, self.calls[site.name])
        return self.runtime.prepare(module.eval(), inputs)

    def _network_work(self, model: nn.Module) -> Work:
        return self.runtime.prepare(model.eval(), self.example)


def _type_name(decomposition: AnyDecomposition) -> str:
    """Of the package's types their name; of others also where they come from."""
    kind, name = type(decomposition), decomposition.name
    return name if kind.__module__.startswith("ranksearch.") else f"{name} {kind.__module__}.{kind.__qualname__}"


def spread(options: Mapping[str, Sequence[tuple[AnyDecomposition, np.ndarray, np.ndarray]]], count: int) -> list[list[Choice]]:
    """Configurations to measure as whole networks: from nearly dense to the fastest, types mixed at random.

    Args:
        options: by site, for every type its ranks, shape: (n, rank_length), and their predicted ratios to dense, shape: (n,).
    """
    generator = np.random.default_rng(0)
    found = []
    for level in np.linspace(0.95, 0.1, count):
        choices: list[Choice] = []
        for site, types in options.items():
            faster = [(d, ranks, ratios) for d, ranks, ratios in types if len(ratios) and ratios.min() < 1]
            if not faster or generator.random() > 1.25 - level * 0.5:  # the slower the network, the more layers stay dense
                continue
            decomposition, ranks, ratios = faster[int(generator.integers(len(faster)))]
            row = ranks[int(np.argmin(np.abs(ratios - level * generator.uniform(0.7, 1.3))))]
            choices.append((site, decomposition, tuple(int(entry) for entry in row)))
        found.append(choices)
    return found
