"""Which input channels share a group: a balanced partition that keeps most of the energy at a rank, by turns of each group's best subspace
and of the best assignment of channels to subspaces (k-subspaces, Bradley and Mangasarian 2000, with groups of one size)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ranksearch.decompositions.symmetric import eigh

TURNS = 20  # at most, from every start
KICKS = 10  # at most: exchanges of a few channels of the best order, from which turns start again
WORK = 4e8  # multiply-adds of subspaces that kicks may take, about; two are always made
ENOUGH = 1e-9  # share of the energy that a turn has to gain


def partition(blocks: Tensor, groups: int, rank: int, starts: Iterable[Tensor]) -> Tensor:
    """An order of the channels in which consecutive groups of one size keep most energy, each in ``rank`` directions of its own. Both
    steps of a turn are optimal for the other's result, so no answer keeps less than the best of the starts. Turns end at a local
    optimum; random exchanges and further turns lead on from it where they find a better one (iterated local search).

    Args:
        blocks: what every channel contributes, float64, shape: (c_out, channels, taps); in a metric whitened, channel by channel.
        groups: divides the channels.
        starts: orders to begin from, int64, shape (channels,) each.

    Returns:
        int64, shape: (channels,); channels of a group ascend, groups by their first channel.
    """
    rows, channels, _ = blocks.shape
    found = [_alternated(blocks, order.to(blocks.device), groups, rank) for order in starts]
    best, most = max(found, key=lambda one: one[1])
    generator = torch.Generator().manual_seed(0)
    for _ in range(int(min(KICKS, max(2, WORK / (4 * groups * rows**3))))):
        order = best.clone()
        moved = torch.randperm(channels, generator=generator)[: max(2, channels // 4)].to(order.device)
        order[moved] = order[moved.roll(1)]
        order, energy = _alternated(blocks, order, groups, rank)
        if energy > most * (1 + ENOUGH):
            best, most = order, energy
    return best


def kept(blocks: Tensor, order: Tensor, groups: int, rank: int) -> float:
    """The energy that the groups of an order keep: the squares of the ``rank`` largest singular values of each."""
    _, gains = _subspaces(blocks, order, groups, rank)
    return float(gains.gather(1, _labels(order, groups)[:, None]).sum())


def _alternated(blocks: Tensor, order: Tensor, groups: int, rank: int) -> tuple[Tensor, float]:
    order, gains = _subspaces(blocks, order, groups, rank)
    size, now = len(order) // groups, float(gains.gather(1, _labels(order, groups)[:, None]).sum())
    for _ in range(TURNS):
        places = gains.repeat_interleave(size, dim=1).cpu().numpy()
        channel, place = linear_sum_assignment(places, maximize=True)
        wanted, gains = _subspaces(blocks, torch.as_tensor(channel[place.argsort()], device=order.device), groups, rank)
        energy = float(gains.gather(1, _labels(wanted, groups)[:, None]).sum())
        if energy <= now * (1 + ENOUGH):
            break
        order, now = wanted, energy
    return order, now


def _subspaces(blocks: Tensor, order: Tensor, groups: int, rank: int) -> tuple[Tensor, Tensor]:
    """The order with its groups sorted, and the energy of every channel in the ``rank`` leading directions of every group's channels,
    shape: (channels, groups)."""
    members = order.reshape(groups, -1).sort(dim=1).values
    members = members[members[:, 0].argsort()]
    columns = blocks[:, members].permute(1, 0, 2, 3).flatten(2)  # (groups, c_out, size * taps)
    basis = eigh(columns @ columns.mT)[1][..., -rank:]
    projected = torch.einsum("gmr,mck->gcrk", basis, blocks)
    return members.flatten(), projected.square().sum(dim=(2, 3)).T


def _labels(order: Tensor, groups: int) -> Tensor:
    """The group of every channel, int64."""
    labels = torch.empty_like(order)
    labels[order] = torch.arange(groups, device=order.device).repeat_interleave(len(order) // groups)
    return labels
