"""``grouped_svd`` with learned groups: input channels are brought into an order in which the groups lose least."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.decompositions import tiles
from ranksearch.decompositions.chain import Link
from ranksearch.decompositions.decomposition import Decomposition, Errors, Rank
from ranksearch.decompositions.grouped_svd import GroupedSVD
from ranksearch.decompositions.kronecker import channel_blocks, permuted
from ranksearch.decompositions.learned_groups import partition
from ranksearch.decompositions.metric import Moments, half, residual_energy
from ranksearch.decompositions.tiles import TileState
from ranksearch.sites import Site

LEARNED = 4  # ranks per number of groups, about, that groups are learned for; the best of these and of the channels as they are is taken


class Reordered(nn.Module):
    """The channels of an input in another order; ``order`` is a buffer, no parameter."""

    order: Tensor

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.dims = dims  # spatial ones, behind the channels
        self.register_buffer("order", torch.arange(channels, dtype=torch.int32))

    def forward(self, input: Tensor) -> Tensor:
        return input.index_select(input.ndim - 1 - self.dims, self.order)

    def extra_repr(self) -> str:
        return f"{len(self.order)}, dims={self.dims}"


@dataclass(frozen=True)
class LearnedState:
    """A weight and metric as `grouped_svd` has them, and the orders that were learned, by (groups, rank); see `Searched`."""

    tiles: TileState
    channels: int
    found: dict[Rank, Tensor] = field(default_factory=dict)  # int64, shape: (channels,)


class GroupedSVDLearned(Decomposition[LearnedState]):
    """Ranks, params and MACs of ``grouped_svd``. The order of the channels is stored beside them, 4 bytes per channel.

    Groups are learned for a few ranks of every number of groups; each rank takes the order, of these and the given one, of least error, so
    that no option is behind that of ``grouped_svd``. Ranks at which the given order is the best are left to that type (all but the last,
    where there are no others). The first factor is the order, which is no weight and is not refitted."""

    name = "grouped_svd_learned"
    labels = 1
    exact = False  # which ranks there are is learned

    def __init__(self, *, max_groups: int = 16) -> None:
        self.plain = GroupedSVD(max_groups=max_groups)

    def undefined(self, site: Site) -> str | None:
        reason = self.plain.undefined(site)
        if reason is None and not (self.plain.ranks(site)[:, 0] < site.c_in).any():
            return "groups of one channel have no order: it equals grouped_svd"
        return reason

    def ranks(self, site: Site) -> np.ndarray:
        ranks = self.plain.ranks(site)
        return ranks[ranks[:, 0] < site.c_in]

    def links(self, site: Site, ranks: np.ndarray) -> list[Link]:
        return self.plain.links(site, ranks)

    def costs(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.plain.costs(site, ranks)

    def held(self, site: Site, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        params, _ = self.costs(site, ranks)
        return np.full(len(ranks), 4 * site.c_in, dtype=np.int64), params

    def prepare(self, site: Site, weight: Tensor, moments: Moments | None = None) -> LearnedState:
        plain = self.plain.prepare(site, weight, moments)
        return LearnedState(replace(plain, ranks=plain.ranks[plain.ranks[:, 1] < site.c_in]), site.c_in)

    def errors(self, state: LearnedState) -> Errors:
        _search(state)
        ranks, given = state.tiles.ranks, torch.arange(state.channels)
        learned = [row for row, (_, t, r) in enumerate(ranks.tolist()) if not torch.equal(state.found[t, r].cpu(), given)]
        ranks = ranks[learned or [-1]]
        frobenius, operator = np.zeros(len(ranks)), np.zeros(len(ranks))
        by_order: dict[tuple[int, ...], list[int]] = {}
        for row, (_, t, r) in enumerate(ranks.tolist()):
            by_order.setdefault((t, *state.found[t, r].tolist()), []).append(row)
        made = tiles.errors(replace(state.tiles, ranks=ranks[:0]))
        for (_, *order), rows in by_order.items():
            made = tiles.errors(replace(_permuted(state, torch.tensor(order)), ranks=ranks[rows]))
            frobenius[rows], operator[rows] = made.frobenius, made.operator
        return Errors(ranks[:, 1:], frobenius, operator, made.norm, made.frobenius_is, made.operator_is)

    def factors(self, state: LearnedState, rank: Rank) -> tuple[Tensor, ...]:
        """The order, int64, shape (c_in,), and the factors of `grouped_svd` of the weight with its channels in it. Where the metric couples
        groups, these are refined; the given order is taken where it is better after that."""
        _search(state)
        t, r = rank
        listed = [known for groups, known in state.found if groups == t]
        order = state.found[t, min(listed, key=lambda known: abs(known - r))]
        given = torch.arange(state.channels, device=order.device)
        ways = [(order, _permuted(state, order))]
        if state.tiles.input is not None and not torch.equal(order, given):
            ways.append((given, state.tiles))
        made = [(one, *tiles.factors(permuted, 1, t, r)) for one, permuted in ways]
        lost = [
            residual_energy((permuted.weight - tiles.joined(left, right))[None], permuted.moments)
            for (_, permuted), (_, left, right) in zip(ways, made, strict=True)
        ]
        return made[int(np.argmin(lost))]

    def empty_factors(self, site: Site, rank: Rank) -> tuple[Tensor, ...]:
        return torch.arange(site.c_in), *self.plain.empty_factors(site, rank)

    def describe(self, site: Site, rank: Rank) -> str:
        return f"{rank[0]} learned groups, r={rank[1]}"

    def compose(self, site: Site, factors: tuple[Tensor, ...]) -> Tensor:
        order, left, right = factors
        return tiles.compose(site, left, right)[:, order.argsort()]

    def module(self, site: Site, factors: tuple[Tensor, ...], bias: Tensor | None) -> nn.Module:
        order, left, right = factors
        first = Reordered(site.c_in, 1 if site.kind == "conv1d" else 2).to(left.device)
        first.get_buffer("order").copy_(order)
        chain = self.plain.module(site, (left, right), bias)
        return nn.Sequential(first, *(chain if isinstance(chain, nn.Sequential) else [chain]))


def _permuted(state: LearnedState, order: Tensor) -> TileState:
    """The weight and metric with the channels in another order."""
    given = state.tiles
    taps = given.weight.shape[1] // state.channels
    columns = (order.to(given.weight.device)[:, None] * taps + torch.arange(taps, device=given.weight.device)).flatten()
    moment = None if given.moments.input is None else permuted(given.moments.input, order.to(given.weight.device))
    return replace(given, weight=given.weight[:, columns], moments=Moments(moment, given.moments.output))


def _search(state: LearnedState) -> None:
    """Learn orders for a few ranks of every number of groups, and take the best for each rank by the error in the metric."""
    if state.found:
        return
    blocks, given = _whitened(state), torch.arange(state.channels, device=state.tiles.weight.device)
    for t in np.unique(state.tiles.ranks[:, 1]).tolist():
        ranks = state.tiles.ranks[state.tiles.ranks[:, 1] == t, 2]
        some = np.unique(ranks[np.linspace(0, max(len(ranks) - 2, 0), LEARNED).round().astype(int)])
        orders = [given]
        for r in some.tolist():
            orders.append(partition(blocks, t, r, [given, orders[-1]]))
        lost = np.stack([tiles.squared_errors(_permuted(state, order), 1, t)[ranks] for order in orders])
        for r, best in zip(ranks.tolist(), lost.argmin(axis=0).tolist(), strict=True):
            state.found[t, r] = orders[best]


def _whitened(state: LearnedState) -> Tensor:
    """What every channel contributes in the metric, apart from what it shares with others: C_G^T W_c C_A with the diagonal block of A."""
    given, taps = state.tiles, state.tiles.weight.shape[1] // state.channels
    weight = given.weight if given.output is None else half(given.output[None])[0].T @ given.weight
    blocks = weight.reshape(len(weight), state.channels, taps)
    if given.input is None:
        return blocks
    return torch.einsum("mck,ckl->mcl", blocks, half(channel_blocks(given.input, state.channels)))
