"""The contract of a cost model: what every option of every layer costs, and what all that is no layer does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ranksearch import checks
from ranksearch.costs.narrower import Narrower
from ranksearch.decompositions import DECOMPOSITIONS, KNOWN, AnyDecomposition, Rank
from ranksearch.errors import InvalidArgument
from ranksearch.results.names import unusable
from ranksearch.sites import Amount, BatchDim, Cost, Site, Sites

Choice = tuple[str, AnyDecomposition, Rank]  # the type and the rank of a site, by its name


@dataclass(frozen=True)
class DenseNetwork:
    """The network whose options are costed."""

    model: nn.Module
    sites: Sites
    example: Any = None  # the input of one forward pass, for cost models that run the network; None: there is none
    batch_dim: BatchDim = 0  # along which dimension ``example`` stacks examples, see `find_sites`
    decompositions: Sequence[AnyDecomposition] = DECOMPOSITIONS  # the types that are to be chosen from
    narrower: Narrower | None = None  # of its architecture, for cost models that measure networks

    @property
    def beside_sites(self) -> Cost:
        """Params and MACs of everything that is no site."""
        rest = self.sites.total
        for site in self.sites:
            rest -= site.cost
        return rest


@dataclass(frozen=True)
class LayerOptions:
    """Options of one decomposition at one site; ``dense`` is a decomposition with the one rank ()."""

    network: DenseNetwork
    site: Site
    decomposition: AnyDecomposition
    ranks: np.ndarray  # int64, shape: (n_ranks, rank_length)
    params: np.ndarray  # of the built layer, int64, shape: (n_ranks,)
    macs: np.ndarray


class CostModel(ABC):
    """One cost: additive over sites, plus a constant. ``label`` heads its columns in tables.

    The cost of a network is ``rest`` plus the ``options`` of its sites. Amounts are integers where they are counted, and
    then every sum and budget is exact; else floats. Budgets and bounds up to 1 are shares of the dense network's, so the
    unit is to be one of which a network has more than 1.

    What is counted needs no more than these two. What is measured is asked `of` a network first, and has a `record` that is kept
    with a study, so that the study counts by the same measurement wherever and whenever it goes on.
    """

    name: str  # of its column, in conditions and in stores: an identifier
    label: str
    unit: str
    tells_bits: bool = False  # whether an option with weights of few bits may cost less than the same one without

    @abstractmethod
    def options(self, layer: LayerOptions) -> np.ndarray:
        """What every option costs, int64 or float64, finite and not negative, shape: (n_ranks,)."""

    @abstractmethod
    def rest(self, network: DenseNetwork) -> Amount:
        """What everything costs that is no site, an int if `options` gives integers."""

    def offered(self, layer: LayerOptions) -> np.ndarray:
        """Which options may stand on a ladder at all, as far as this cost is concerned; bool, shape: (n_ranks,)."""
        return np.ones(len(layer.ranks), dtype=bool)

    def round_to(self, network: DenseNetwork) -> int | None:
        """Of which multiple ranks may be at no price, as far as this cost is concerned; None: it does not say."""
        del network
        return None

    def of(self, network: DenseNetwork, known: Mapping[str, Any] | None = None, tell: Callable[[str], None] = lambda _: None) -> CostModel:
        """The cost model that `options`, `rest` and `offered` are asked of: this one, or, where something must be measured, one
        that has done so.

        Args:
            known: the `record` of an earlier one of the same study; the amounts are then those of that one.
            tell: called with what is done, in words, before it begins.

        Raises:
            InvalidArgument: ``known`` was made with other settings than these.
        """
        del network, known, tell
        return self

    @property
    def refines(self) -> bool:
        """Whether `refined` may ever give another one."""
        return False

    def refined(self, chosen: Sequence[Sequence[Choice]]) -> CostModel:
        """One that has measured what these networks and their options cost, where this one only infers it from the cost of others; this
        one where there is nothing to measure. Its amounts differ, so that ladders are to be built again.

        Args:
            chosen: of every network the choices; sites that are in none stay dense.
        """
        del chosen
        return self

    def record(self) -> dict[str, Any] | None:
        """JSON data that gives the amounts again (see `of`); None where they follow from the network alone. ``settings`` in it are the
        arguments that make this cost model, ``id`` is equal in records that agree on every amount both have."""
        return None


def layer_cost(models: Sequence[CostModel], layer: LayerOptions) -> dict[str, np.ndarray]:
    """Every cost of the options of a layer, each of shape: (n_ranks,)."""
    found = {model.name: np.asarray(model.options(layer)) for model in models}
    for name, amounts in found.items():
        whole = np.issubdtype(amounts.dtype, np.integer)
        if amounts.shape != (len(layer.ranks),) or not (whole or np.issubdtype(amounts.dtype, np.floating)):
            text = f"{amounts.dtype} of shape {amounts.shape}"
            raise InvalidArgument(f"cost {name!r} of {len(layer.ranks)} options of {layer.site.name!r} is {text}; give one number for each")
        if not np.isfinite(amounts).all() or (amounts < 0).any():
            raise InvalidArgument(f"cost {name!r} of an option of {layer.site.name!r} is negative or not finite; give finite amounts")
        found[name] = amounts.astype(np.int64 if whole else np.float64)
    return found


def dense_layer_cost(models: Sequence[CostModel], network: DenseNetwork, site: Site) -> Cost:
    """What a site costs that stays as it is."""
    ranks, dense = np.zeros((1, 0), dtype=np.int64), site.cost
    return _one(models, LayerOptions(network, site, DECOMPOSITIONS[0], ranks, np.array([dense.params]), np.array([dense.macs])))


def network_cost(
    models: Sequence[CostModel],
    network: DenseNetwork,
    choices: Iterable[tuple[str, str, Rank]] = (),
    decompositions: Sequence[AnyDecomposition] = KNOWN,
) -> Cost:
    """What a whole network costs; without ``choices`` the dense one.

    Args:
        choices: (site, decomposition, rank) of the sites that are factorized, as in a `Configuration`; a site by any path.

    Raises:
        InvalidArgument: a site or a decomposition that is not there.
    """
    table = {decomposition.name: decomposition for decomposition in decompositions}
    chosen: dict[str, LayerOptions] = {}
    for path, name, rank in choices:
        if name not in table:
            raise InvalidArgument(f"decomposition={name!r} is none of {', '.join(table)}")
        site, ranks = network.sites[path], np.asarray([rank], dtype=np.int64)
        chosen[site.name] = LayerOptions(network, site, table[name], ranks, *table[name].costs(site, ranks))
    total = Cost({model.name: model.rest(network) for model in models})
    for site in network.sites:
        total += _one(models, chosen[site.name]) if site.name in chosen else dense_layer_cost(models, network, site)
    return total


def _one(models: Sequence[CostModel], layer: LayerOptions) -> Cost:
    return Cost({name: amounts[0].item() for name, amounts in layer_cost(models, layer).items()})


def check_costs(models: Sequence[CostModel], taken: Iterable[str] = ()) -> tuple[CostModel, ...]:
    """The cost models of a study.

    Args:
        taken: names that columns of results have already, such as those of metrics.

    Raises:
        InvalidArgument: a name that conditions cannot use, comes twice or is taken, or ``params`` or ``macs`` is missing: options
            are those that save one of the two.
    """
    models = checks.several("costs", models, hint="of cost models, such as (*COSTS, Latency())")
    strange = [model for model in models if not isinstance(model, CostModel)]
    if strange:
        raise InvalidArgument(f"costs: {strange[0]!r:.80} is no CostModel; give (*COSTS, Latency()) and the like")
    names = [model.name for model in models]
    reserved = {*taken, *(f"{name}{end}" for name in names for end in ("_rel", "_share"))}
    wrong = {name: why for name in names if (why := unusable(name, reserved) or ("it comes twice" if names.count(name) > 1 else None))}
    if wrong:
        raise InvalidArgument(f"costs: {'; '.join(f'{name!r}: {why}' for name, why in wrong.items())}; rename the cost")
    missing = [name for name in ("params", "macs") if name not in names]
    if missing:
        raise InvalidArgument(f"costs={names}: {' and '.join(missing)} is missing; give (*COSTS, ...) of ranksearch.costs")
    return models
