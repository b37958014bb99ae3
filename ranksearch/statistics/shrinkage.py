"""How far a second moment is drawn towards its own diagonal: as far as its sampling noise asks for (Ledoit and Wolf 2004, with the target
of Schaefer and Strimmer 2005). Positions of one example are alike, so the independent samples are whole examples, and runs of positions of
long ones. The noise is the variance between these (the sandwich estimator for clusters, Liang and Zeger 1986)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ranksearch.decompositions import Kronecker

SHRINKAGE = "diagonal"  # part of the key of the cache, and of a study that errors depend on
PROBES = 16  # random projections on each side at most; every pair of one and the other sees the entries beside the diagonal once
RUN = 128  # positions of a sequence that count as one sample; an image is one, however large
LEAST = 4  # samples that a forward pass gives at least, where it has the positions
FAINT = 1e-2  # of the median channel's mean square: what is below counts as that, since the first batch does not tell its size well


class Noise:
    """The noise of a second moment S of vectors x, from what it sees of them, in O(dimensions) a vector.

    Channels may differ by orders of magnitude, and a few may carry nearly all of the trace. So all is in units of the channels' own
    sizes, which the first batch tells: x_i sqrt(w_i), where 1 / w_i is the mean square of x_i's channel. Random signs p on half of the
    entries and q on the other half have E (p^T S q)^2 = sum of s_ij^2 over pairs between the halves; the same holds for the
    variance between samples, so that no sample's own matrix is needed.

    Args:
        groups, size: of the moment, shape (groups, size, size).
        taps: entry i of ``size`` belongs to channel i // taps.
    """

    def __init__(self, groups: int, size: int, taps: int = 1) -> None:
        self.groups, self.size, self._taps = groups, size, taps
        half = size // 2
        count = min(PROBES, max(size // 16, 8), max(size // 4, min(half, 1)))  # each costs as much as a channel does
        random = torch.Generator().manual_seed(size)
        entries = torch.randperm(size, generator=random)
        self._signs = torch.zeros(2 * count, size)
        for rows, side in ((slice(count), entries[:half]), (slice(count, None), entries[half:])):
            self._signs[rows, side] = torch.randint(0, 2, (count, len(side)), generator=random).float() * 2 - 1
        self._scale: Tensor | None = None  # sqrt(w), float64, shape: (groups, size)
        self._sum, self._square, self._cross = (torch.zeros(groups, count, count, dtype=torch.float64) for _ in range(3))
        self._share = self._shares = 0.0
        self.samples = 0

    def probes(self, device: torch.device, energies: Callable[[], Tensor]) -> Tensor:
        """What vectors are to be projected on: rows p sqrt(w), then rows q sqrt(w), float32, shape (groups, 2 count, size).

        Args:
            device: where they are to be.
            energies: gives the mean squares of the vectors at hand per channel, shape (groups, size / taps). The first that are not zero
                make w; later ones are not asked for.
        """
        if self._scale is None or not bool(self._scale.any()):
            energy = energies().double().cpu()
            alive = energy[energy > 0]
            least = FAINT * (alive.median() if len(alive) else torch.tensor(1.0, dtype=torch.float64))
            scale = torch.where(energy > 0, energy.maximum(least).rsqrt(), torch.zeros_like(energy))
            self._scale = scale.repeat_interleave(self._taps, dim=1)
        return (self._signs * self._scale[:, None, :]).float().to(device)

    def add(self, projected: Tensor, *, examples: int, batch: int, sequences: bool, per_position: bool) -> None:
        """Take in one forward pass, or a part of it.

        Args:
            projected: on `probes`, shape (groups, 2 count, examples * positions), an example's positions side by side.
            examples: where they do not divide the positions, such as tokens that were routed here, all are one sequence.
            batch: examples of the whole forward pass.
            sequences: positions are tokens, so that runs of them count as samples.
            per_position: the moment is a mean over positions; or else over examples, a sum over the positions of each.
        """
        total = projected.shape[2]
        if not examples or total % examples:
            examples = batch = 1
        positions = total // examples
        if not positions or not projected.shape[1]:
            return
        pieces = min(max(-(-positions // RUN) if sequences else 1, -(-LEAST // batch)), positions)
        length = positions // pieces  # a remainder of less than ``pieces`` positions is left out of the estimate
        runs = projected.reshape(self.groups, -1, examples, positions)[..., : pieces * length].unflatten(3, (pieces, length))
        left, right = runs.permute(0, 2, 3, 1, 4).flatten(1, 2).chunk(2, dim=2)  # each (groups, samples, count, length)
        products = (left @ right.mT).to(self._sum)
        share = float(length) if per_position else length / positions
        self._sum += products.sum(dim=1)
        self._square += products.square().sum(dim=1)
        self._cross += share * products.sum(dim=1)
        self.samples += examples * pieces
        self._share += share * examples * pieces
        self._shares += share * share * examples * pieces

    def weight(self) -> Tensor:
        """The weight of the diagonal, in [0, 1], shape (groups,): the noise of the other entries over their energy, both in units of the
        channels' sizes and seen through the same projections. 1 where fewer than two samples say nothing of the noise."""
        if not self._sum.numel() or not self._share:
            return torch.zeros(self.groups, dtype=torch.float64)
        if self.samples < 2:
            return torch.ones(self.groups, dtype=torch.float64)
        mean = self._sum / self._share
        spread = self._square - 2 * mean * self._cross + mean.square() * self._shares
        noise = spread.sum(dim=(1, 2)).clamp_min(0) / self._share**2 * self.samples / (self.samples - 1)
        energy = mean.square().sum(dim=(1, 2))
        return torch.where(energy > 0, noise / energy.clamp_min(torch.finfo(torch.float64).tiny), 0.0).clamp_max(1.0)


def shrunk_product(moment: Kronecker, weight: Tensor) -> Kronecker:
    """A Kronecker product drawn towards its diagonal in both factors by 1 - sqrt(1 - ``weight``), so that what lies beside both diagonals
    is multiplied by 1 - ``weight``; by ``weight`` itself where one factor is a number."""
    both = moment.channel.shape[-1] > 1 < moment.tap.shape[-1]
    each = 1 - (1 - weight).sqrt() if both else weight
    return Kronecker(shrunk(moment.channel, each), shrunk(moment.tap, each))


def shrunk(
    moment: Tensor,  # shape: (groups, d, d)
    weight: Tensor,  # of the diagonal, shape: (groups,)
) -> Tensor:
    """The moment with its entries beside the diagonal multiplied by 1 - ``weight``. The diagonal stays, so that a channel is as large as
    it was, however it compares to the others."""
    kept = moment * (1 - weight.to(moment))[:, None, None]
    kept.diagonal(dim1=1, dim2=2).copy_(moment.diagonal(dim1=1, dim2=2))
    return kept
