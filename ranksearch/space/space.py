"""The search space: for every site a ladder of options, so that a configuration is a vector of integers, whatever
types and rank tuples lie behind them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import moocore
import numpy as np

from ranksearch.decompositions import Rank
from ranksearch.errors import EmptySpace, InvalidArgument
from ranksearch.sites import Cost, Site
from ranksearch.space.spectra import Profile, Spectra
from ranksearch.space.table import Table

CostName = Literal["params", "macs"]
ErrorName = Literal["frobenius", "operator", "energy"]
COSTS: tuple[CostName, ...] = ("params", "macs")


@dataclass(frozen=True)
class Option:
    """One way to build one site: a decomposition at a rank."""

    decomposition: str
    rank: Rank
    cost: Cost
    frobenius: float  # relative Frobenius error, in the metric of the space
    operator: float  # relative operator norm of the residual; NaN where there is none
    energy: float  # absolute squared error in the metric: comparable between sites


@dataclass(frozen=True)
class Ladder:
    """The options of one site that no other option beats in (params, macs, error), cheapest first, dense last."""

    site: Site
    options: tuple[Option, ...]

    def column(self, name: CostName | ErrorName) -> np.ndarray:
        """One cost or error of every option, float64, shape: (n_options,)."""
        if name in COSTS:
            return np.array([getattr(option.cost, name) for option in self.options], dtype=np.float64)
        return np.array([getattr(option, name) for option in self.options], dtype=np.float64)


@dataclass(frozen=True, init=False)
class Configuration:
    """One option for every site: immutable, hashable, JSON. Sites that stay dense are left out, so that the same
    network always has the same ``id``."""

    choices: tuple[tuple[str, str, Rank], ...]  # (site, decomposition, rank), sorted by site

    def __init__(self, choices: Mapping[str, tuple[str, Sequence[int]]] | Iterable[tuple[str, str, Sequence[int]]] = ()):
        items = [(s, *c) for s, c in choices.items()] if isinstance(choices, Mapping) else list(choices)
        if len({item[0] for item in items}) != len(items):
            raise InvalidArgument(f"choices name a site twice: {sorted(item[0] for item in items)}")
        kept = sorted((str(s), str(d), tuple(int(r) for r in rank)) for s, d, rank in items if d != "dense")
        object.__setattr__(self, "choices", tuple(kept))

    @cached_property
    def id(self) -> str:
        """Content hash: the first 12 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        data = {site: [decomposition, list(rank)] for site, decomposition, rank in self.choices}
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Configuration:
        """Inverse of `to_json`.

        Raises:
            InvalidArgument: the text is not a configuration.
        """
        try:
            data = json.loads(text)
            return cls({site: (choice[0], choice[1]) for site, choice in data.items()})
        except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            raise InvalidArgument(f"text={text[:60]!r} is not the JSON of a configuration: {error}") from error

    def __getitem__(self, site: str) -> tuple[str, Rank]:
        """(decomposition, rank) of a site; ("dense", ()) for those left out."""
        for name, decomposition, rank in self.choices:
            if name == site:
                return decomposition, rank
        return "dense", ()

    def __repr__(self) -> str:
        return f"Configuration({self.id}: {len(self.choices)} factorized)"


DENSE = Configuration()


@dataclass(frozen=True)
class SearchSpace:
    """A ladder for every site, and the cost of the dense network. A configuration is a vector of option indices,
    one per ladder, in the order of ``ladders``."""

    ladders: tuple[Ladder, ...]
    baseline: Cost  # of the whole dense network
    metric: str = "weight"  # the metric that errors were taken in
    _index: dict[str, dict[tuple[str, Rank], int]] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if not self.ladders:
            raise EmptySpace("the space has no site: loosen include/exclude, see `ranksearch profile` for what was skipped and why")
        if self.size == 1:
            raise EmptySpace(
                "the space has one configuration, the dense network: no option of any site is cheaper than the site itself; "
                "allow more decompositions, a smaller round_to, or other sites"
            )
        index = {ladder.site.name: {(o.decomposition, o.rank): i for i, o in enumerate(ladder.options)} for ladder in self.ladders}
        object.__setattr__(self, "_index", index)

    @property
    def size(self) -> int:
        """How many configurations there are, exactly."""
        return math.prod(len(ladder.options) for ladder in self.ladders)

    @property
    def shape(self) -> tuple[int, ...]:
        """Options per ladder."""
        return tuple(len(ladder.options) for ladder in self.ladders)

    @cached_property
    def fixed(self) -> Cost:
        """Cost of all that is not a site."""
        sites = [ladder.options[-1].cost for ladder in self.ladders]
        return self.baseline - Cost(sum(c.params for c in sites), sum(c.macs for c in sites))

    @cached_property
    def dense(self) -> np.ndarray:
        """Indices of the dense network, int64, shape: (n_sites,)."""
        return np.array(self.shape, dtype=np.int64) - 1

    def configuration(self, indices: Sequence[int] | np.ndarray) -> Configuration:
        """The configuration of a vector of option indices, one per ladder.

        Raises:
            InvalidArgument: wrong length, or an index outside its ladder.
        """
        vector = np.asarray(indices)
        if vector.shape != (len(self.ladders),) or (vector < 0).any() or (vector > self.dense).any():
            raise InvalidArgument(f"indices={vector.tolist()} do not fit the space: one index per site, below {self.shape}")
        picked = ((ladder.site.name, ladder.options[i]) for ladder, i in zip(self.ladders, vector, strict=True))
        return Configuration((site, option.decomposition, option.rank) for site, option in picked)

    def indices(self, configuration: Configuration) -> np.ndarray:
        """Option indices of a configuration, int64, shape: (n_sites,).

        Raises:
            InvalidArgument: a site or an option that the space does not have.
        """
        vector = self.dense.copy()
        position = {path: i for i, ladder in enumerate(self.ladders) for path in ladder.site.paths}
        for site, decomposition, rank in configuration.choices:
            if site not in position:
                raise InvalidArgument(f"configuration {configuration.id}: site {site!r} is not in the space")
            place = position[site]
            option = self._index[self.ladders[place].site.name].get((decomposition, rank))
            if option is None:
                raise InvalidArgument(f"configuration {configuration.id}: {decomposition}{rank} is not on the ladder of {site!r}")
            vector[place] = option
        return vector

    def table(self, name: CostName | ErrorName, reduction: Literal["sum", "max"] = "sum") -> Table:
        """A cost or error of every option as a table; costs include what is not a site.

        For ``reduction="max"`` NaN operator norms count as 1 (the whole layer lost)."""
        columns = tuple(np.nan_to_num(ladder.column(name), nan=1.0) for ladder in self.ladders)
        return Table(columns, reduction, offset=getattr(self.fixed, name) if name in COSTS else 0.0)

    @cached_property
    def cost_tables(self) -> dict[CostName, Table]:
        """Params and MACs of the whole network as tables."""
        return {name: self.table(name) for name in COSTS}

    def cost(self, indices: Sequence[int] | np.ndarray) -> Cost:
        """Cost of the whole network for one vector of option indices."""
        options = (ladder.options[i] for ladder, i in zip(self.ladders, indices, strict=True))
        return sum((option.cost for option in options), self.fixed)

    def limit(self, name: CostName, value: float) -> int:
        """A budget as an absolute number: values up to 1 are relative to the dense network.

        Raises:
            InvalidArgument: not a positive finite number, or not a cost.
        """
        if name not in COSTS:
            raise InvalidArgument(f"budget {name!r} is not a cost; costs are: {', '.join(COSTS)}")
        if not (isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value) and value > 0):
            raise InvalidArgument(f"{name}={value!r}: a budget is a positive number; up to 1 it is a share of the dense network's")
        dense = getattr(self.baseline, name)
        # a hair of tolerance, so that limit(x / dense) gives x back and not x - 1
        return math.floor(value * dense * (1 + 1e-12)) if value <= 1 else math.floor(value)

    def smallest(self, name: CostName) -> int:
        """The least any configuration costs."""
        table = self.cost_tables[name]
        return int(sum(values.min() for values in table.values) + table.offset)

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Uniform random option indices, int64, shape: (count, n_sites)."""
        return np.random.default_rng(seed).integers(0, np.array(self.shape), size=(count, len(self.ladders)))

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of sites, options and costs: two spaces with the same one hold the same configurations."""
        data = [[l.site.name, [[o.decomposition, o.rank, o.cost.params, o.cost.macs] for o in l.options]] for l in self.ladders]
        return hashlib.sha256(json.dumps([data, self.metric], separators=(",", ":")).encode()).hexdigest()[:16]


def build_space(
    spectra: Spectra,
    *,
    error: ErrorName = "frobenius",
    round_to: int = 1,
    max_options: int | None = None,
    types: Collection[str] | None = None,
) -> SearchSpace:
    """The search space of prepared spectra.

    Args:
        spectra: sites and decompositions.
        types: only these of its decompositions; None: all.
        error: which error decides whether an option is beaten.
        round_to: widths are multiples of this (kernels on hardware like 8 or 16). Types that are stored and built dense have
            no such widths: all their ranks stay.
        max_options: at most so many options per ladder besides dense, spread evenly over the logarithm of the error.

    Raises:
        EmptySpace: nothing to choose.
        InvalidArgument: ``round_to`` or ``max_options`` below 1, or a type that the spectra do not have.
    """
    if round_to < 1 or (max_options is not None and max_options < 1):
        raise InvalidArgument(f"round_to={round_to}, max_options={max_options}: both must be at least 1")
    names = [spectra.decomposition(name).name for name in (spectra.decompositions if types is None else types)]
    ladders = tuple(_ladder(spectra, site, names, error, round_to, max_options) for site in spectra.sites)
    metrics = {m.metric for m in spectra.moments.values()} or {"weight"}
    return SearchSpace(ladders, spectra.sites.total, metric="+".join(sorted(metrics)))


def _ladder(
    spectra: Spectra, site: Site, names: Sequence[str], error: ErrorName, round_to: int, max_options: int | None
) -> Ladder:
    profiles = [p for name in names if name != "dense" and (p := spectra.profile(site, name)) is not None]
    parts, owners = [], []
    for number, profile in enumerate(profiles):
        decomposition = spectra.decomposition(profile.decomposition)
        widths = profile.ranks[:, profile.ranks.shape[1] if decomposition.storage_only else decomposition.labels :]
        keep = np.flatnonzero((widths % round_to == 0).all(axis=1))
        values = profile.operator if error == "operator" else profile.frobenius
        value = np.nan_to_num(values[keep], nan=np.inf)
        parts.append(np.stack([profile.params[keep], profile.macs[keep], value], axis=1))
        owners.append(np.stack([np.full(len(keep), number), keep], axis=1))
    dense = Option("dense", (), site.cost, 0.0, 0.0, 0.0)
    if not parts or not sum(len(part) for part in parts):
        return Ladder(site, (dense,))
    points, owner = np.concatenate(parts), np.concatenate(owners)
    # dense takes part: an option of its cost or more with an error is never worth having
    points = np.concatenate([points, [[dense.cost.params, dense.cost.macs, 0.0]]])
    kept = np.flatnonzero(moocore.is_nondominated(points))
    kept = kept[kept < len(owner)]
    cost = (points[kept, :2] / np.maximum(points[-1, :2], 1)).sum(axis=1)
    kept = kept[np.lexsort((points[kept, 2], cost))]
    if max_options is not None and len(kept) > max_options:
        kept = kept[_spread(points[kept, 2], max_options)]
    options = tuple(_option(profiles[owner[k, 0]], int(owner[k, 1])) for k in kept)
    return Ladder(site, (*options, dense))


def _option(profile: Profile, index: int) -> Option:
    frobenius = float(profile.frobenius[index])
    return Option(
        profile.decomposition, tuple(int(r) for r in profile.ranks[index]),
        Cost(int(profile.params[index]), int(profile.macs[index])),
        frobenius, float(profile.operator[index]), (frobenius * profile.norm) ** 2,
    )  # fmt: skip


def _spread(errors: np.ndarray, count: int) -> np.ndarray:
    """Positions of ``count`` options spread evenly over the logarithm of the error, the extremes among them."""
    levels = np.log(np.maximum(errors, 1e-12))
    wanted = np.linspace(levels.max(), levels.min(), count)
    picked: list[int] = []
    for level in wanted:
        order = np.argsort(np.abs(levels - level), kind="stable")
        picked.append(int(next(i for i in order if i not in picked)))
    return np.sort(np.array(picked))
