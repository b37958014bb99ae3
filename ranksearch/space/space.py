"""The search space: for every site a ladder of options, so that a configuration is a vector of integers, whatever
types and rank tuples lie behind them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ranksearch import checks
from ranksearch.costs import COSTS, CostModel, DenseNetwork, network_cost
from ranksearch.decompositions import AnyDecomposition, Quantized
from ranksearch.errors import EmptySpace, InvalidArgument
from ranksearch.sites import Amount, Cost
from ranksearch.space.configuration import Configuration
from ranksearch.space.ladder import ErrorName, Ladder, build_ladder
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table

if TYPE_CHECKING:
    from ranksearch.space.specs import SpaceSpec

NO_SITE = "the space has no site: loosen include/exclude, see `ranksearch profile` for what was skipped and why"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A configuration in every form that a search needs, made once per proposal."""

    indices: np.ndarray | None  # option per site, int64, shape: (n_sites,); None: the space does not hold it
    configuration: Configuration
    cost: Cost  # of the whole network


@dataclass(frozen=True)
class SearchSpace:
    """A ladder for every site, and the cost of the dense network. A configuration is a vector of option indices,
    one per ladder, in the order of ``ladders``. Ladders and baseline have the same costs, in one order."""

    ladders: tuple[Ladder, ...]
    baseline: Cost  # of the whole dense network
    metric: str = "weight"  # the metric that errors were taken in
    spec: SpaceSpec | None = field(default=None, compare=False)  # what it was declared by; None: made from spectra, or in part

    def __post_init__(self) -> None:
        if not self.ladders:
            raise EmptySpace(NO_SITE)
        if self.size == 1:
            raise EmptySpace(
                "the space has one configuration, the dense network: no option of any site is cheaper than the site itself, or, where "
                "latency counts, none is as fast; allow more decompositions, a smaller round_to, or other sites"
            )

    @property
    def costs(self) -> tuple[str, ...]:
        """The names of its costs."""
        return tuple(self.baseline)

    @property
    def size(self) -> int:
        """How many configurations there are, exactly."""
        return math.prod(len(ladder) for ladder in self.ladders)

    @property
    def shape(self) -> tuple[int, ...]:
        """Options per ladder."""
        return tuple(len(ladder) for ladder in self.ladders)

    @cached_property
    def fixed(self) -> Cost:
        """Cost of all that is not a site."""
        return self.baseline - self._sum(self.dense)

    @cached_property
    def dense(self) -> np.ndarray:
        """Indices of the dense network, int64, shape: (n_sites,)."""
        return np.array(self.shape, dtype=np.int64) - 1

    def configuration(self, indices: Sequence[int] | np.ndarray) -> Configuration:
        """The configuration of a vector of option indices, one per ladder.

        Raises:
            InvalidArgument: wrong length, or an index outside its ladder.
        """
        vector = self._checked(indices)
        return Configuration((ladder.site.name, *ladder.choice(i)) for ladder, i in zip(self.ladders, vector, strict=True))

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        vector = np.asarray(indices)
        if vector.shape != (len(self.ladders),) or (vector < 0).any() or (vector > self.dense).any():
            raise InvalidArgument(f"indices={vector.tolist()} do not fit the space: one index per site, below {self.shape}")
        return vector

    def candidate(self, indices: Sequence[int] | np.ndarray) -> Candidate:
        """Indices, configuration and cost of a vector of option indices, in one value.

        Raises:
            InvalidArgument: as `configuration`.
        """
        configuration = self.configuration(indices)
        return Candidate(np.array(indices, dtype=np.int64), configuration, self.cost(indices))

    @cached_property
    def _places(self) -> dict[str, int]:
        """Which ladder a site is on, by each of its paths."""
        return {path: i for i, ladder in enumerate(self.ladders) for path in ladder.site.paths}

    def indices(self, configuration: Configuration) -> np.ndarray:
        """Option indices of a configuration, int64, shape: (n_sites,).

        Raises:
            InvalidArgument: a site or an option that the space does not have.
        """
        vector = self.dense.copy()
        for site, decomposition, rank in configuration.choices:
            place = self._places.get(site)
            if place is None:
                raise InvalidArgument(f"configuration {configuration.id}: site {site!r} is not in the space")
            option = self.ladders[place].position(decomposition, rank)
            if option is None:
                raise InvalidArgument(f"configuration {configuration.id}: {decomposition}{rank} is not on the ladder of {site!r}")
            vector[place] = option
        return vector

    def table(self, name: str, reduction: Literal["sum", "max"] = "sum") -> Table:
        """A cost or error of every option as a table; costs include what is not a site.

        For ``reduction="max"`` NaN operator norms count as 1 (the whole layer lost)."""
        columns = tuple(np.nan_to_num(ladder.column(name).astype(np.float64), nan=1.0) for ladder in self.ladders)
        return Table(columns, reduction, offset=self.fixed.get(name, 0.0))

    @cached_property
    def cost_tables(self) -> dict[str, Table]:
        """Every cost of the whole network as a table."""
        return {name: self.table(name) for name in self.costs}

    def cost(self, indices: Sequence[int] | np.ndarray) -> Cost:
        """Cost of the whole network for one vector of option indices.

        Raises:
            InvalidArgument: as `configuration`.
        """
        return self._sum(self._checked(indices)) + self.fixed

    def _sum(self, indices: np.ndarray) -> Cost:
        """The cost of the sites alone; it is exact where costs are counted."""
        rows = self._starts + indices
        return Cost({name: column[rows].sum().item() for name, column in self._columns.items()})

    @cached_property
    def _starts(self) -> np.ndarray:
        """Where the options of each ladder begin in `_columns`."""
        return np.concatenate([[0], np.cumsum(self.shape)[:-1]])

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """Every cost of all options of all ladders, one ladder after another."""
        return {name: np.concatenate([ladder.costs[name] for ladder in self.ladders]) for name in self.costs}

    def limit(self, name: str, value: float) -> Amount:
        """A budget as an absolute amount: values up to 1 are relative to the dense network. Of a cost that the dense network has
        none of there are no shares: every value is an amount, and 0 is one.

        Raises:
            InvalidArgument: not a positive finite number, or not a cost.
        """
        if name not in self.baseline:
            raise InvalidArgument(f"budget {name!r} is not a cost; costs are: {', '.join(self.costs)}")
        dense = self.baseline[name]
        if not dense:
            value = checks.number(name, value, least=0, hint="a budget is an amount, for the dense network has none")
            return math.floor(value) if isinstance(dense, int) else value
        value = checks.number(name, value, above=0, hint="a budget is positive; up to 1 it is a share of the dense network's")
        # a hair of tolerance, so that limit(x / dense) gives x back and not x - 1
        amount = value * dense * (1 + 1e-12) if value <= 1 else value
        return math.floor(amount) if isinstance(dense, int) else amount

    def budget(self, name: str, amount: Amount) -> float:
        """The budget that `limit` takes for an absolute amount: itself, or a share where it is small enough to be taken for one."""
        return amount if amount > 1 or not self.baseline[name] else amount / self.baseline[name]

    @property
    def leading_cost(self) -> str:
        """What sizes are told by where no cost is named: MACs, or params where the dense network has no MACs."""
        return "macs" if self.baseline.macs else "params"

    def smallest(self, name: str) -> Amount:
        """The least any configuration costs."""
        return sum((ladder.costs[name].min().item() for ladder in self.ladders), self.fixed[name])

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Uniform random option indices, int64, shape: (count, n_sites)."""
        return np.random.default_rng(seed).integers(0, np.array(self.shape), size=(count, len(self.ladders)))

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of sites, options, params and MACs: two spaces with the same one hold the same configurations at the same
        indices. Other costs show in it where they change the options or their order."""
        data = [
            [ladder.site.name, [[*ladder.choice(i), *counts] for i, counts in enumerate(zip(*_counts(ladder), strict=True))]]
            for ladder in self.ladders
        ]
        return hashlib.sha256(json.dumps([data, self.metric], separators=(",", ":")).encode()).hexdigest()[:16]


def build_space(
    spectra: Spectra,
    *,
    error: ErrorName = "frobenius",
    round_to: int = 1,
    max_options: int | None = None,
    types: Collection[str] | None = None,
    costs: Sequence[CostModel] = COSTS,
    example: Any = None,
) -> SearchSpace:
    """The search space of prepared spectra.

    Args:
        spectra: sites and decompositions.
        types: only these of its decompositions; None: all.
        error: which error decides whether an option is beaten.
        round_to: widths are multiples of this (kernels on hardware like 8 or 16); 0: of what the costs say (`CostModel.round_to`), as a
            latency table does of its device. Types that are stored and built dense have no such widths: all their ranks stay.
        max_options: at most so many options per ladder besides dense, spread evenly over the logarithm of the error.
        costs: what options are compared by, besides the error; params and MACs among them.
        example: an input of the model, for costs that run it.

    Raises:
        EmptySpace: nothing to choose.
        InvalidArgument: ``round_to`` below 0, or 0 where no cost says one; ``max_options`` below 1, a type that the spectra do not have, a
            cost that is no number for some option, or types of few bits where no cost tells them from others.
    """
    checks.whole("round_to", round_to, least=0)
    if max_options is not None:
        checks.whole("max_options", max_options, least=1)
    names = [spectra.decomposition(name).name for name in (spectra.decompositions if types is None else types)]
    check_bits([spectra.decomposition(name) for name in names], costs)
    network = DenseNetwork(spectra.model, spectra.sites, example, decompositions=tuple(spectra.decompositions.values()))
    costs = [model.of(network) for model in costs]
    round_to = round_to or _said_by(costs, network)
    ladders = tuple(
        build_ladder(spectra, network, site, names, costs=costs, error=error, round_to=round_to, max_options=max_options)
        for site in spectra.sites
    )
    return SearchSpace(ladders, network_cost(costs, network), metric="+".join(sorted(spectra.metrics())))


def check_bits(types: Iterable[AnyDecomposition], costs: Sequence[CostModel]) -> None:
    """Refuse types of few bits where no cost tells them from others.

    Raises:
        InvalidArgument: naming them."""
    rounded = [kind.name for kind in types if isinstance(kind, Quantized)]
    if rounded and not any(cost.tells_bits for cost in costs):
        raise InvalidArgument(
            f"types={rounded[:3]} have weights of few bits, which none of the costs {', '.join(cost.name for cost in costs)} tells from "
            "others; count bytes, too: costs=(*COSTS, Bytes()), on the command line --cost bytes"
        )


def _said_by(costs: Sequence[CostModel], network: DenseNetwork) -> int:
    """The multiple of ranks that costs nothing of any cost that says one."""
    said = [multiple for model in costs if (multiple := model.round_to(network)) is not None]
    if not said:
        raise InvalidArgument(
            "round_to=0 takes the multiple of ranks that is free on the device, and none of the costs "
            f"{', '.join(cost.name for cost in costs)} says one; count latency that is measured here, or give a number such as 8"
        )
    return min(said)


def _counts(ladder: Ladder) -> list[list[int]]:
    return [ladder.costs[name].tolist() for name in ("params", "macs")]
