"""A ladder: the options of one site that no other option beats, as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, overload

import moocore
import numpy as np

from ranksearch.costs import CostModel, DenseNetwork, LayerOptions, dense_layer_cost, layer_cost
from ranksearch.decompositions import Rank
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Cost, Site
from ranksearch.space.spectra import Profile, Spectra

ErrorName = Literal["frobenius", "operator", "energy"]
ERRORS: tuple[ErrorName, ...] = ("frobenius", "operator", "energy")
_NONE = -1  # fills the rows of ranks that have fewer entries than others


@dataclass(frozen=True)
class Option:
    """One way to build one site: a decomposition at a rank."""

    decomposition: str
    rank: Rank
    cost: Cost
    frobenius: float  # relative Frobenius error, in the metric of the space
    operator: float  # relative operator norm of the residual; NaN where there is none
    energy: float  # absolute squared error in the metric: comparable between sites


@dataclass(frozen=True, eq=False, repr=False)
class Ladder:
    """The options of one site that no other option beats in (costs, error), cheapest first, dense last.

    The arrays are read-only and have one row per option; `Option` values are made when they are asked for."""

    site: Site
    decompositions: tuple[str, ...]  # names that ``which`` points at
    which: np.ndarray  # position in ``decompositions``, int64, shape: (n_options,)
    ranks: np.ndarray  # int64, shape: (n_options, longest rank); -1 behind the entries of a shorter one
    costs: Mapping[str, np.ndarray]  # int64 where counted, else float64, shape: (n_options,) each
    errors: Mapping[str, np.ndarray]  # by `ErrorName`, float64, shape: (n_options,) each

    def __post_init__(self) -> None:
        for array in (self.which, self.ranks, *self.costs.values(), *self.errors.values()):
            array.setflags(write=False)

    @classmethod
    def of(cls, site: Site, options: Sequence[Option]) -> Ladder:
        """The ladder with these options, in their order; dense is to be the last."""
        names = tuple(dict.fromkeys(option.decomposition for option in options))
        ranks = np.full((len(options), max(1, *(len(option.rank) for option in options))), _NONE, dtype=np.int64)
        for row, option in zip(ranks, options, strict=True):
            row[: len(option.rank)] = option.rank
        costs = {name: np.array([option.cost[name] for option in options]) for name in options[0].cost}
        errors = {name: np.array([getattr(option, name) for option in options], dtype=np.float64) for name in ERRORS}
        return cls(site, names, np.array([names.index(option.decomposition) for option in options]), ranks, costs, errors)

    def __len__(self) -> int:
        return len(self.which)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ladder) or (self.site, len(self), [*self.costs]) != (other.site, len(other), [*other.costs]):
            return False
        columns = [*self.costs, *self.errors]
        alike = all(np.array_equal(self.column(name), other.column(name), equal_nan=True) for name in columns)
        return alike and all(self.choice(i) == other.choice(i) for i in range(len(self)))

    def __hash__(self) -> int:
        return hash((self.site, len(self)))

    def __repr__(self) -> str:
        return f"Ladder({self.site.name}: {len(self)} options)"

    def column(self, name: str) -> np.ndarray:
        """A cost (int64 where counted) or error of every option, shape: (n_options,); a view.

        Raises:
            InvalidArgument: no cost or error of that name.
        """
        found = self.costs.get(name, self.errors.get(name))
        if found is None:
            raise InvalidArgument(f"column {name!r} is neither a cost nor an error; there are {', '.join([*self.costs, *self.errors])}")
        return found

    def rank(self, index: int) -> Rank:
        """The rank of an option."""
        return self._choices[index][1]

    def choice(self, index: int) -> tuple[str, Rank]:
        """(decomposition, rank) of an option."""
        return self._choices[index]

    def cost(self, index: int) -> Cost:
        """What a layer built at an option costs."""
        return Cost({name: amounts[index].item() for name, amounts in self.costs.items()})

    def option(self, index: int) -> Option:
        """One option; negative indices count from the end."""
        errors = {name: float(values[index]) for name, values in self.errors.items()}
        return Option(*self.choice(index), self.cost(index), **errors)

    @property
    def options(self) -> Sequence[Option]:
        """The options as values, each made when it is looked at."""
        return _Options(self)

    @property
    def present(self) -> set[str]:
        """The decompositions that occur, dense among them."""
        return {self.decompositions[number] for number in np.unique(self.which)}

    def mask(self, decompositions: Collection[str]) -> np.ndarray:
        """Which options are of these decompositions, bool, shape: (n_options,)."""
        return np.array([name in decompositions for name in self.decompositions], dtype=bool)[self.which]

    def take(self, kept: np.ndarray | Iterable[int]) -> Ladder:
        """The ladder with only some options, by position."""
        rows = np.asarray(list(kept) if not isinstance(kept, np.ndarray) else kept, dtype=np.int64)
        costs, errors = ({name: column[rows] for name, column in columns.items()} for columns in (self.costs, self.errors))
        return Ladder(self.site, self.decompositions, self.which[rows], self.ranks[rows], costs, errors)

    def position(self, decomposition: str, rank: Rank) -> int | None:
        """Where an option is; None where it is not on the ladder."""
        return self._positions.get((decomposition, tuple(rank)))

    @cached_property
    def _positions(self) -> dict[tuple[str, Rank], int]:
        return {choice: index for index, choice in enumerate(self._choices)}

    @cached_property
    def _choices(self) -> list[tuple[str, Rank]]:
        rows = zip(self.which.tolist(), self.ranks.tolist(), strict=True)
        return [(self.decompositions[number], tuple(entry for entry in rank if entry != _NONE)) for number, rank in rows]


class _Options(Sequence[Option]):
    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder

    def __len__(self) -> int:
        return len(self._ladder)

    @overload
    def __getitem__(self, index: int) -> Option: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Option]: ...
    def __getitem__(self, index: int | slice) -> Option | Sequence[Option]:
        if isinstance(index, slice):
            return [self._ladder.option(i) for i in range(*index.indices(len(self)))]
        return self._ladder.option(index)


def build_ladder(
    spectra: Spectra,
    network: DenseNetwork,
    site: Site,
    names: Sequence[str],
    *,
    costs: Sequence[CostModel],
    error: ErrorName,
    round_to: int,
    max_options: int | None,
) -> Ladder:
    """The ladder of one site, from the profiles of its decompositions; see `ranksearch.space.build_space`."""
    parts = [
        _Part.of(spectra, network, site, profile, costs, round_to)
        for name in names
        if name != "dense" and (profile := spectra.profile(site, name)) is not None
    ]
    columns = {model.name: [part.costs[model.name] for part in parts] for model in costs}
    # dense takes part: an option of its cost or more with an error is never worth having
    dense = dense_layer_cost(costs, network, site)
    amounts = {name: np.concatenate([*arrays, [dense[name]]]) for name, arrays in columns.items()}
    decides = [part.errors["operator" if error == "operator" else "frobenius"] for part in parts]
    value = np.nan_to_num(np.concatenate([*decides, [0.0]]), nan=np.inf)
    beaten_by = np.minimum(value, np.finfo(np.float64).max)  # moocore takes no infinite numbers
    kept = np.flatnonzero(moocore.is_nondominated(np.stack([*amounts.values(), beaten_by], axis=1).astype(np.float64)))
    kept = kept[kept < len(value) - 1]
    size = np.sum([column[kept] / (column[-1] or 1) for column in amounts.values()], axis=0)
    kept = kept[np.lexsort((value[kept], size))]
    if max_options is not None and len(kept) > max_options:
        kept = kept[_spread(value[kept], max_options)]
    kept = np.append(kept, len(value) - 1)
    which = np.concatenate([*(np.full(len(part.ranks), number) for number, part in enumerate(parts)), [len(parts)]])
    errors = {name: np.concatenate([*(part.errors[name] for part in parts), [0.0]])[kept] for name in ("frobenius", "operator")}
    norms = [*(part.norm for part in parts), 0.0]
    pairs = zip(errors["frobenius"].tolist(), which[kept].tolist(), strict=True)
    errors["energy"] = np.array([(frobenius * norms[number]) ** 2 for frobenius, number in pairs])
    decompositions = (*(part.name for part in parts), "dense")
    ranks = _stacked([*(part.ranks for part in parts), np.zeros((1, 0), dtype=np.int64)])
    return Ladder(site, decompositions, which[kept].astype(np.int64), ranks[kept], {n: a[kept] for n, a in amounts.items()}, errors)


@dataclass(frozen=True)
class _Part:
    """What one decomposition brings to a ladder, as arrays of one row per rank."""

    name: str
    ranks: np.ndarray
    costs: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]
    norm: float  # of the weight, in the metric

    @staticmethod
    def of(
        spectra: Spectra, network: DenseNetwork, site: Site, profile: Profile, costs: Sequence[CostModel], round_to: int
    ) -> _Part:
        decomposition = spectra.decomposition(profile.decomposition)
        widths = profile.ranks[:, profile.ranks.shape[1] if decomposition.storage_only else decomposition.labels :]
        keep = np.flatnonzero((widths % round_to == 0).all(axis=1))
        layer = LayerOptions(network, site, decomposition, profile.ranks[keep], profile.params[keep], profile.macs[keep])
        offered = np.logical_and.reduce([model.offered(layer) for model in costs])
        if not offered.all():
            keep = keep[offered]
            layer = LayerOptions(network, site, decomposition, profile.ranks[keep], profile.params[keep], profile.macs[keep])
        errors = {"frobenius": profile.frobenius[keep], "operator": profile.operator[keep]}
        return _Part(profile.decomposition, layer.ranks, layer_cost(costs, layer), errors, float(profile.norm))


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Ranks of several lengths in one array, int64, shape: (n, longest)."""
    ranks = np.full((sum(len(part) for part in parts), max(1, *(part.shape[1] for part in parts))), _NONE, dtype=np.int64)
    row = 0
    for part in parts:
        ranks[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return ranks


def _spread(errors: np.ndarray, count: int) -> np.ndarray:
    """Positions of ``count`` options spread evenly over the logarithm of the error, the extremes among them. An error that is not known,
    infinite, is as the largest that is."""
    largest = errors[np.isfinite(errors)].max(initial=1e-12)
    levels = np.log(np.clip(errors, 1e-12, largest))
    wanted = np.linspace(levels.max(), levels.min(), count)
    picked: list[int] = []
    for level in wanted:
        order = np.argsort(np.abs(levels - level), kind="stable")
        picked.append(int(next(i for i in order if i not in picked)))
    return np.sort(np.array(picked))
