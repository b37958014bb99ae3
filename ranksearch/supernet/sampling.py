"""Which configurations a supernet is trained on: every training method draws its low-rank networks from one of these.
All draws come from a numpy generator that the caller seeds, and none leaves the search space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from ranksearch import checks
from ranksearch.allocators import Problem, exact_for
from ranksearch.allocators.decomposable_net import largest_singular_value
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.decompositions.folding import FOLDINGS
from ranksearch.decompositions.symmetric import eigvalsh
from ranksearch.errors import InvalidArgument
from ranksearch.proxies import TableProxy, free_proxies
from ranksearch.space import DENSE, Configuration, Ladder, SearchSpace

Criterion = Literal["relative", "cost_aware", "raw"]
CRITERIA = ("relative", "cost_aware", "raw")
DIRECTIONS = ("svd", "svd_in", "spatial", "spatial_t")  # types whose ranks count singular directions of the layer
STEPS = 40  # bisection steps of `UniformCost`: far below the spacing of any ladder


class Sampling(ABC):
    """Draws configurations of a space.

    Args:
        space: what to draw from.
        types: the decompositions that may be drawn (dense always may); None: all. A supernet projects on some only.

    Raises:
        InvalidArgument: no option is left.
    """

    name: ClassVar[str]
    follow: int = 0  # `observe` wants the weights every so many steps; 0: never

    def __init__(self, space: SearchSpace, *, types: Collection[str] | None = None) -> None:
        self.space = space if types is None else restrict(space, types)
        self.types = None if types is None else sorted(types)

    @abstractmethod
    def draw(self, generator: np.random.Generator) -> Configuration:
        """Draw one configuration. The generator is asked the same number of times whatever it answers, so that processes with the
        same seed stay in step."""

    @abstractmethod
    def smallest(self) -> Configuration:
        """The cheapest configuration of those that are drawn from, for the sandwich rule. It is always the same one."""

    def largest(self) -> Configuration:
        """The most expensive configuration of those that are drawn from: the dense network."""
        return DENSE

    def observe(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the current canonical weights, by site. Rules that depend on them override this."""
        del weights

    def state_dict(self) -> dict[str, Any]:
        """What `observe` left behind, as JSON can hold it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        del state


class Ratio(Sampling):
    """Decomposable-Net (arXiv 1910.13141): of all bases (singular directions) of all layers a share Z ~ U(low, high) is kept, those
    with the largest criterion. The first version has U(0.01, 1), the IJCAI version U(0.01, 0.25).

    A site's rank is the number of its bases that are kept, taken up to the next option on its ladder, dense beyond the
    last. With ``types`` the site takes instead, of all their options, the one of least error that costs no more than that
    rank would (MACs; params where there are none): ladders of mixtures hold few SVDs, as other types beat them.

    The singular values are those of the weights that were observed last. Before any were, they are read off the ladders, where they
    are exact at the ladders' ranks and interpolated between.

    Args:
        low, high: the range of the share, 0 < low <= high <= 1.
        criterion: ``relative``: C1 = sigma_k / sigma_1, what the first version trains with; ``cost_aware``: C1 times
            C2 = (1 - P_i / sum P)(1 - M_i / sum M), which it selects ranks with after training; ``raw``: sigma_k, the
            IJCAI version.
        least: bases that every layer keeps, where it has so many: 1; the IJCAI version keeps 5.
        types: what layers are built as; default: ``decomposition`` alone, as in the paper.
        decomposition: what bases are counted of: ``svd``, or the other folding of the IJCAI version, ``spatial`` or
            ``spatial_t``; ``svd_in`` too.
        follow: observe the weights every so many steps. The paper's criterion follows the SVD, every 2 steps or every
            step; 20 was chosen, since the order of the bases changes slowly and their values cost an eigenproblem per layer.
    """

    name = "ratio"

    def __init__(
        self,
        space: SearchSpace,
        *,
        low: float = 0.01,
        high: float = 1.0,
        criterion: Criterion = "relative",
        least: int = 1,
        decomposition: str = "svd",
        types: Collection[str] | None = None,
        follow: int = 20,
    ) -> None:
        check_range("low", low, "high", high)
        if criterion not in CRITERIA:
            raise InvalidArgument(f"criterion={criterion!r} is none of {', '.join(CRITERIA)}")
        checks.whole("least", least, least=1)
        checks.whole("follow", follow, least=0)
        if decomposition not in DIRECTIONS:
            known = ", ".join(DIRECTIONS)
            raise InvalidArgument(f"decomposition={decomposition!r} is none of {known}: its bases are not singular directions")
        super().__init__(space, types=(decomposition,) if types is None else types)
        self.low, self.high, self.criterion, self.least = low, high, criterion, least
        self.decomposition, self.follow = decomposition, follow
        pick = _next_rank if types is None else _as_dear
        self._options = [pick(ladder, decomposition) for ladder in self.space.ladders]  # per ladder: rank -> option
        costs = np.array([[l.site.cost.params, l.site.cost.macs] for l in self.space.ladders], dtype=np.float64)
        self._c2 = np.prod(1 - costs / np.maximum(costs.sum(axis=0), 1), axis=1)
        self._sigma = [_ladder_spectrum(ladder, fold_size(ladder, decomposition), decomposition) for ladder in self.space.ladders]
        self._order()

    def _order(self) -> None:
        """All bases of all sites in one list, most important first."""
        values, owners = [], []
        for number, sigma in enumerate(self._sigma):
            scale = 1.0 if self.criterion == "raw" else max(float(sigma[0]), 1e-300)
            weight = self._c2[number] if self.criterion == "cost_aware" else 1.0
            values.append(sigma / scale * weight)
            owners.append(np.full(len(sigma), number))
        order = np.argsort(-np.concatenate(values), kind="stable")
        self._owner = np.concatenate(owners)[order]

    def at(self, share: float) -> Configuration:
        """The configuration that keeps a share of all bases."""
        kept = np.bincount(self._owner[: round(share * len(self._owner))], minlength=len(self._sigma))
        indices = [options[max(rank, min(self.least, len(options) - 1))] for rank, options in zip(kept, self._options, strict=True)]
        return self.space.configuration(np.array(indices))

    def draw(self, generator: np.random.Generator) -> Configuration:
        return self.at(float(generator.uniform(self.low, self.high)))

    def smallest(self) -> Configuration:
        return self.at(self.low)

    def largest(self) -> Configuration:
        return self.at(self.high)

    def observe(self, weights: Mapping[str, Tensor]) -> None:
        for number, ladder in enumerate(self.space.ladders):
            matrix = FOLDINGS[self.decomposition].fold(ladder.site, weights[ladder.site.name].detach()).double()
            gram = matrix @ matrix.mT if matrix.shape[1] <= matrix.shape[2] else matrix.mT @ matrix
            squared = eigvalsh(gram).clamp_min(0.0).flip(-1).amax(dim=0)  # of all groups, which share a rank
            self._sigma[number] = squared.sqrt().cpu().numpy()
        self._order()

    def state_dict(self) -> dict[str, Any]:
        return {"sigma": [sigma.tolist() for sigma in self._sigma]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        sigma = [np.array(values, dtype=np.float64) for values in state["sigma"]]
        if [len(s) for s in sigma] != [len(s) for s in self._sigma]:
            raise InvalidArgument("state: its singular values are those of another space; resume with the space that training began with")
        self._sigma = sigma
        self._order()


class UniformCost(Sampling):
    """Draws configurations whose costs are uniform in [low, high] of the dense network's. A target is drawn, and every site takes a
    random place among its options sorted by cost, logit(place) = t + spread * normal; t is common to all sites and found by
    bisection, so that the target is met. This is not from a paper: uniform draws of options would pile up around one cost.

    Args:
        low, high: shares of the dense network's cost; ``low`` is raised to what the space can reach.
        cost: one of the space's, such as ``params``; default: MACs, or params where there are none.
        spread: how much sites differ; 0: all at the same place.
    """

    name = "uniform_cost"

    def __init__(
        self,
        space: SearchSpace,
        *,
        low: float = 0.1,
        high: float = 1.0,
        cost: str | None = None,
        spread: float = 1.0,
        types: Collection[str] | None = None,
    ) -> None:
        check_range("low", low, "high", high)
        cost = checked_cost(space, cost)
        checks.number("spread", spread, least=0)
        super().__init__(space, types=types)
        self.low, self.high, self.cost, self.spread = max(low, least_share(self.space, cost)), high, cost, spread
        if self.low > self.high:
            raise InvalidArgument(f"high={high}: the smallest share of {cost} in this space is {self.low:.4f}; raise it")
        self._order = [np.argsort(ladder.column(cost), kind="stable") for ladder in self.space.ladders]
        sizes = np.array(self.space.shape)
        self._sorted = np.full((len(sizes), int(sizes.max())), np.inf)  # costs, rising, one row per site
        for row, (ladder, order) in enumerate(zip(self.space.ladders, self._order, strict=True)):
            self._sorted[row, : len(order)] = ladder.column(cost)[order]
        self._sizes = sizes
        self._rows = np.arange(len(sizes))

    def at(self, share: float, normal: np.ndarray) -> Configuration:
        """The configuration nearest to a share of the dense cost.

        Args:
            normal: how sites differ, shape: (n_sites,).
        """
        target = share * self.space.baseline[self.cost] - self.space.fixed[self.cost]

        def places(t: float) -> np.ndarray:
            level = 1 / (1 + np.exp(-np.clip(t + self.spread * normal, -500, 500)))
            return np.minimum((level * self._sizes).astype(np.int64), self._sizes - 1)

        def total(place: np.ndarray) -> float:
            return float(self._sorted[self._rows, place].sum())

        low, high = -60.0 - self.spread * 10, 60.0 + self.spread * 10
        for _ in range(STEPS):
            middle = (low + high) / 2
            if total(places(middle)) > target:
                high = middle
            else:
                low = middle
        best = min((places(low), places(high)), key=lambda place: abs(total(place) - target))
        return self.space.configuration(np.array([order[place] for order, place in zip(self._order, best, strict=True)]))

    def draw(self, generator: np.random.Generator) -> Configuration:
        share = float(generator.uniform(self.low, self.high))
        return self.at(share, generator.standard_normal(len(self._sizes)))

    def smallest(self) -> Configuration:
        return self.at(self.low, np.zeros(len(self._sizes)))


class SmallRank(Sampling):
    """FLORA: the probability of a configuration falls with the product of its ranks, so each site draws on its own with
    probability 1 / rank^power.

    Ranks of different types are not comparable; the share of the site's dense weights that an option stores is, and is
    proportional to the rank of every SVD. The paper's power could not be read; 1 was chosen.

    Args:
        power: 0 draws options uniformly.
    """

    name = "small_rank"

    def __init__(self, space: SearchSpace, *, power: float = 1.0, types: Collection[str] | None = None) -> None:
        checks.number("power", power, least=0)
        super().__init__(space, types=types)
        self.power = power
        self._cumulative: list[np.ndarray] = []
        for ladder in self.space.ladders:
            bias = ladder.site.c_out if ladder.site.bias else 0
            size = np.maximum(ladder.column("params") - bias, 1.0)
            weight = (size / size[-1]) ** -power
            self._cumulative.append(np.cumsum(weight) / weight.sum())

    def draw(self, generator: np.random.Generator) -> Configuration:
        places = generator.random(len(self._cumulative))
        indices = [min(int(np.searchsorted(c, u, side="right")), len(c) - 1) for c, u in zip(self._cumulative, places, strict=True)]
        return self.space.configuration(indices)

    def smallest(self) -> Configuration:
        return self.space.configuration([int(np.argmin(ladder.column("params"))) for ladder in self.space.ladders])


class FrontGuided(Sampling):
    """Draws configurations near the exact fronts of the proxies, where the answers will come from. A budget is drawn uniformly in
    [low, high], and one of the proxies, whose optimum at this budget is taken. Then every site moves along its ladder with
    probability ``move``, by a normal step of ``jitter`` times the ladder's length, and by one option at least. This is not from a
    paper.

    Args:
        low, high: shares of the dense network's cost; ``low`` is raised to what the space can reach.
        points: budgets per proxy, evenly spaced.
        cost: one of the space's, such as ``params``; default: MACs, or params where there are none.
        proxies: default: those that need nothing but the space and are not known to be poor at budgets of ``cost``: the
            absolute error in the metric of the space (not for MACs in the weight metric), the relative Frobenius error (sum) and
            operator norm (max).
    """

    name = "front_guided"

    def __init__(
        self,
        space: SearchSpace,
        *,
        low: float = 0.1,
        high: float = 1.0,
        points: int = 16,
        jitter: float = 0.05,
        move: float = 0.5,
        cost: str | None = None,
        proxies: Sequence[TableProxy] | None = None,
        types: Collection[str] | None = None,
    ) -> None:
        check_range("low", low, "high", high)
        cost = checked_cost(space, cost)
        checks.whole("points", points, least=2)
        checks.fraction("jitter", jitter, hint="a share of a ladder's length")
        checks.fraction("move", move, hint="a probability")
        super().__init__(space, types=types)
        self.low, self.high, self.jitter, self.move = max(low, least_share(self.space, cost)), high, jitter, move
        self.points, self.cost = points, cost
        if self.low > self.high:
            raise InvalidArgument(f"high={high}: the smallest share of {cost} in this space is {self.low:.4f}; raise it")
        if proxies is None:
            proxies = tuple(proxy for proxy in free_proxies() if cost not in proxy.poor_budgets(self.space))
        if not proxies:
            raise InvalidArgument("proxies=() is empty: give at least one, or leave it out")
        self.proxies = [proxy.name for proxy in proxies]
        shares = np.linspace(self.low, self.high, points)
        fronts = []
        for proxy in proxies:
            table = proxy.table(self.space)
            solver = exact_for(table.reduction)
            fronts.append([solver.allocate(Problem(self.space, table, {cost: float(share)})).indices for share in shares])
        self.front = np.array(fronts)  # option indices, int64, shape: (n_proxies, points, n_sites)

    def draw(self, generator: np.random.Generator) -> Configuration:
        proxy = int(generator.integers(len(self.front)))
        point = int(generator.integers(self.front.shape[1]))
        sites = self.front.shape[2]
        moved = generator.random(sites) < self.move
        steps = generator.standard_normal(sites) * self.jitter * np.array(self.space.shape)
        steps = np.sign(steps) * np.maximum(np.abs(np.rint(steps)), 1 if self.jitter else 0)
        indices = self.front[proxy, point] + np.where(moved, steps, 0).astype(np.int64)
        return self.space.configuration(np.clip(indices, 0, self.space.dense))

    def smallest(self) -> Configuration:
        return self.space.configuration(self.front[0, 0])


SAMPLINGS: dict[str, type[Sampling]] = {s.name: s for s in (Ratio, UniformCost, SmallRank, FrontGuided)}


def restrict(space: SearchSpace, types: Collection[str]) -> SearchSpace:
    """The part of a space that has certain types only, dense always among them: its configurations are also the space's.

    Raises:
        InvalidArgument: a type that is not known, or no option besides dense is left.
    """
    unknown = sorted(set(types) - {d.name for d in DECOMPOSITIONS})
    if unknown:
        raise InvalidArgument(f"types={unknown}: none of these is known; known are: {', '.join(d.name for d in DECOMPOSITIONS)}")
    ladders = [ladder.take(np.flatnonzero(ladder.mask({*types, "dense"}))) for ladder in space.ladders]
    if all(len(ladder) == 1 for ladder in ladders):
        have = sorted(set().union(*(ladder.present for ladder in space.ladders)) - {"dense"})
        raise InvalidArgument(f"types={sorted(types)}: no site of this space has one of them; it has {', '.join(have)}")
    return SearchSpace(tuple(ladders), space.baseline, space.metric)


def fold_size(ladder: Ladder, decomposition: str) -> int:
    """Singular values of a site's folding: the smaller side."""
    return min(FOLDINGS[decomposition].shape(ladder.site)[1:])


def _next_rank(ladder: Ladder, decomposition: str) -> np.ndarray:
    """For ranks 0..full the option of the next rank on the ladder, dense beyond the last; int64, shape: (full + 1,)."""
    ranks = ladder.ranks[:-1, 0]  # of a ladder with one type besides dense
    order = np.argsort(ranks)
    places = np.searchsorted(ranks[order], np.arange(fold_size(ladder, decomposition) + 1))
    return np.append(order, len(order))[places]


def _as_dear(ladder: Ladder, decomposition: str) -> np.ndarray:
    """For ranks 0..full the option of least error that costs no more than that rank would: the cheapest where none does,
    dense where the rank costs as much; int64, shape: (full + 1,)."""
    cost: str = "macs" if ladder.site.cost.macs else "params"
    ranks = np.arange(fold_size(ladder, decomposition) + 1, dtype=np.int64)
    kind = next(d for d in DECOMPOSITIONS if d.name == decomposition)
    params, macs = kind.costs(ladder.site, ranks[:, None])
    limits = macs if cost == "macs" else params
    costs, errors = ladder.column(cost), ladder.column("frobenius")
    fits = costs[None, :] <= limits[:, None]
    fits[:, int(np.argmin(costs))] = True
    best = np.where(fits, errors[None, :], np.inf).argmin(axis=1)
    return np.where(limits >= costs[-1], len(costs) - 1, best)


def _ladder_spectrum(ladder: Ladder, full: int, decomposition: str) -> np.ndarray:
    """Singular values from the operator norms of a ladder, sigma_{r+1} = operator(r) sigma_1; float64, shape: (full,)."""
    operator = ladder.column("operator")
    own = np.flatnonzero(ladder.mask((decomposition,)) & np.isfinite(operator))
    found = {0: 1.0, full: 0.0} | dict(zip(ladder.ranks[own, 0].tolist(), operator[own].tolist(), strict=True))
    ranks = sorted(found)
    return largest_singular_value(ladder) * np.interp(np.arange(full), ranks, [found[r] for r in ranks])


def least_share(space: SearchSpace, cost: str) -> float:
    """The smallest cost of the space, as a share of the dense network's."""
    return space.smallest(cost) / space.baseline[cost]


def check_range(low_name: str, low: float, high_name: str, high: float) -> None:
    checks.number(low_name, low, above=0, most=1)
    checks.number(high_name, high, above=0, most=1)
    if low > high:
        raise InvalidArgument(f"{low_name}={low!r}, {high_name}={high!r}: must satisfy 0 < {low_name} <= {high_name} <= 1")


def checked_cost(space: SearchSpace, cost: str | None) -> str:
    """A cost of the space that the dense network has some of; the leading one where none is named."""
    cost = space.leading_cost if cost is None else cost
    if cost not in space.costs:
        raise InvalidArgument(f"cost={cost!r} is none of {', '.join(space.costs)}")
    if not space.baseline[cost]:
        raise InvalidArgument(f"cost={cost!r}: the dense network has no {cost}; take another cost")
    return cost
