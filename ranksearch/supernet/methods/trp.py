"""Trained rank pruning (TRP, arXiv 1910.04576): truncations interrupt the training, so that the weights end up where truncation
costs little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.decompositions.folding import FOLDINGS
from ranksearch.errors import InvalidArgument
from ranksearch.space import Configuration
from ranksearch.supernet.methods._base import Batch, Loss, Method, at_least
from ranksearch.supernet.methods._truncations import energy_rank, polar, svd, threshold_rank
from ranksearch.supernet.network import RankSupernet, canonical

Scheme = Literal["channel", "spatial", "decoupled"]
SCHEMES: dict[Scheme, str] = {"channel": "svd", "spatial": "spatial_t", "decoupled": "decoupled"}  # to decompositions
THRESHOLD = 0.05  # singular values that count in the end, channel and spatial: as a share of the largest
ENERGY = 0.85  # kept in the end, decoupled


@final
class TRP(Method):
    """Every ``period`` steps W is replaced by its truncated SVD, of the smallest rank that keeps the share 1 - ``loss_of_energy``
    of the energy. For the one step at the truncated weight the sub-gradient ``nuclear`` * U_r V_r^T of the nuclear norm is added to
    the loss's gradient. All else is ordinary training: no gradient passes through the SVD, and batch norm is left alone.

    Args:
        folding: ``channel``: n x (c h w), `svd`; ``spatial``: (c h) x (n w), `spatial_t`; ``decoupled``: c x (h w) of every
            filter, `decoupled`, with one rank for all filters of a layer, since a built layer has one.
        period: 20 in the paper (5 in its script).
        loss_of_energy: e, 0.02 in the paper (0.1 in its script).
        nuclear: lambda, 3e-4 in its repository; 0 for none.
        sites: which to truncate; default: as in the paper all convolutions besides the network's first and 1 x 1 ones.

    The truncation comes in `after_step`, so the first one is after ``period`` steps, not before training; and the term that
    `loss` adds is lambda <W, U_r V_r^T>, whose value at the truncated weight is lambda times its nuclear norm.
    """

    name = "trp"

    def __init__(
        self,
        supernet: RankSupernet,
        loss: Loss,
        *,
        seed: int = 0,
        folding: Scheme = "channel",
        period: int = 20,
        loss_of_energy: float = 0.02,
        nuclear: float = 3e-4,
        sites: Sequence[str] | None = None,
    ) -> None:
        if folding not in SCHEMES:
            raise InvalidArgument(f"folding={folding!r} is none of {', '.join(SCHEMES)}")
        checks.whole("period", period, least=1)
        checks.number("loss_of_energy", loss_of_energy, least=0, below=1)
        checks.number("nuclear", nuclear, least=0)
        super().__init__(supernet, loss, seed=seed)
        self.folding: Scheme = folding
        self.decomposition = SCHEMES[folding]
        self.period, self.loss_of_energy, self.nuclear = period, loss_of_energy, nuclear
        names = convolutions(supernet) if sites is None else tuple(supernet.sites[name].name for name in sites)
        self.sites = tuple(name for name in names if sites is not None or supernet.sites[name].groups < supernet.sites[name].c_in)
        if not self.sites:
            raise InvalidArgument(
                "sites: none is left to truncate; by default these are convolutions other than the first and 1 x 1 ones: name some"
            )
        self.ranks: dict[str, int] = {}  # of the last truncation, by site
        self._fresh = False  # whether the weights were truncated after the last step

    def loss(self, batch: Batch) -> Tensor:
        total = self.dense(batch)
        if self._fresh and self.nuclear:
            for name, rank in self.ranks.items():
                site, weight = self.supernet.sites[name], self.supernet.weight(name)
                matrices = FOLDINGS[self.decomposition].fold(site, canonical(weight, site))
                total = total + self.nuclear * (matrices * polar(matrices, rank)).sum()
        return total

    def after_step(self, step: int) -> None:
        self._fresh = step % self.period == 0
        if self._fresh:
            self.truncate()
        super().after_step(step)

    def truncate(self) -> None:
        """Replace every weight by its truncated SVD, in place."""
        low = {}
        folding = FOLDINGS[self.decomposition]
        for name, dense in self.weights().items():
            if name not in self.sites:
                continue
            site = self.supernet.sites[name]
            u, sigma, vh = svd(folding.fold(site, dense))
            rank = self.ranks[name] = energy_rank(sigma, 1 - self.loss_of_energy)
            with torch.autocast(dense.device.type, enabled=False):
                low[name] = folding.unfold(site, (u[..., :rank] * sigma[:, None, :rank]) @ vh[:, :rank])
        self.overwrite(low)

    def configuration(self, *, threshold: float = THRESHOLD, energy: float = ENERGY) -> Configuration:
        """The network that training led to: per site the rank of the singular values of at least ``threshold`` times the
        largest (channel, spatial), or of ``energy`` kept (decoupled), taken up to the next option of the space, dense beyond
        the last. Whether the paper's 0.05 is relative could not be read; a relative one was chosen."""
        choices = {}
        for name, dense in self.weights().items():
            if name in self.sites:
                _, sigma, _ = svd(FOLDINGS[self.decomposition].fold(self.supernet.sites[name], dense))
                rank = energy_rank(sigma, energy) if self.folding == "decoupled" else threshold_rank(sigma, threshold)
                choices[name] = at_least(self.supernet.space, name, self.decomposition, rank)
        return Configuration(choices)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"ranks": dict(self.ranks), "fresh": self._fresh}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.ranks, self._fresh = dict(state["ranks"]), bool(state["fresh"])


def convolutions(supernet: RankSupernet) -> tuple[str, ...]:
    """The sites that are convolutions with a kernel, without the first convolution of the network."""
    kernels = {name for name, m in supernet.model.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d))}
    first = next((name for name, _ in supernet.model.named_modules() if name in kernels), None)
    return tuple(s.name for s in supernet.sites if s.name in kernels and s.name != first and s.kernel != (1, 1))
