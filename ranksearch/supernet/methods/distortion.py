"""Learning low-rank approximation for CNNs (arXiv 1905.10145): the network is trained as usual for long stretches, and after each
its weights are distorted to low rank. Flat directions of the loss survive this, sharp ones do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import numpy as np
from torch import Tensor

from ranksearch import checks
from ranksearch.decompositions import DECOMPOSITIONS, AnyDecomposition, Rank
from ranksearch.errors import InvalidArgument
from ranksearch.sites import Site
from ranksearch.space import Configuration
from ranksearch.supernet.methods._base import Batch, Loss, Method
from ranksearch.supernet.network import RankSupernet

Lowering = Literal["tucker2", "svd", "tiled_svd"]
LOWERINGS: tuple[Lowering, ...] = ("tucker2", "svd", "tiled_svd")
Schedule = Literal["constant", "linear"]


@final
class Distortion(Method):
    """Every ``period`` steps W is replaced by W_r, its best approximation in the weight metric. There is no regularizer, the
    structure does not change, and batch norm is left alone.

    In a quadratic model the distance to the distorted point contracts by (I - gamma H)^period, so that the period decides which
    directions count as flat. The paper's periods are 100 to 5,000: with a shorter one training never converges, with a longer one
    it escapes too rarely.

    Args:
        target: the configuration to distort to, such as an allocation at a budget. Any decomposition with a reconstruction will do.
        decomposition, ratio: without a target, every site where ``decomposition`` is defined gets ``ratio`` of its full
            rank: ``tucker2``, ``svd`` of the lowered T x (S d d) matrix, or ``tiled_svd`` of its tiles (the paper's are
            64 x 576; here the site's first cut, 2 x 1 where it divides). Others stay as they are: see ``untouched``.
        period: S_D; 200 is the paper's for ResNet-32 on CIFAR-10.
        schedule: ``constant``, or ``linear``: ranks fall from full to the target's, which they reach after ``ramp`` of
            ``steps``. The paper's is constant. It mentions a schedule of ranks but not its form; this one is our choice.
        steps: how many steps training has; needed by ``linear``.
        ramp: share of the steps over which ranks fall.

    The steps after the last distortion undo a little of it, so that extraction truncates once more; little is lost.
    """

    name = "distortion"

    def __init__(
        self,
        supernet: RankSupernet,
        loss: Loss,
        *,
        seed: int = 0,
        target: Configuration | None = None,
        decomposition: Lowering = "tucker2",
        ratio: float = 0.5,
        period: int = 200,
        schedule: Schedule = "constant",
        steps: int | None = None,
        ramp: float = 0.5,
    ) -> None:
        _check(decomposition, ratio, period, schedule, steps, ramp)
        if target is not None and not isinstance(target, Configuration):
            raise InvalidArgument(f"target={target!r}: must be a Configuration, or None")
        super().__init__(supernet, loss, seed=seed)
        self.period, self.schedule, self.steps, self.ramp = period, schedule, steps, ramp
        self.untouched: dict[str, str] = {}  # sites that are never distorted, and why
        if target is None:
            target = self._uniform(TABLE[decomposition], ratio)
        self.target, self.target_id = target, target.id
        self._choices = [self._choice(*choice) for choice in target.choices]
        if not self._choices:
            raise InvalidArgument("target: it is the dense network, so that nothing would ever be distorted; give one with lower ranks")

    def _choice(self, name: str, kind: str, rank: Rank) -> tuple[Site, AnyDecomposition, Rank, Rank]:
        """One of the target's choices: site, decomposition, rank, and the full rank of the same structure."""
        site = self.supernet.sites[name]
        if kind not in TABLE:
            raise InvalidArgument(f"target: {kind!r} at {name!r} is not known; known are: {', '.join(TABLE)}")
        reason = TABLE[kind].undefined(site)
        if reason is not None:
            raise InvalidArgument(f"target: {kind} is not defined for {name!r}: {reason}")
        return site, TABLE[kind], rank, full_rank(site, TABLE[kind], rank)

    def _uniform(self, decomposition: AnyDecomposition, ratio: float) -> Configuration:
        choices = {}
        for site in self.supernet.sites:
            reason = decomposition.undefined(site)
            if reason is not None:
                self.untouched[site.name] = reason
                continue
            labels = decomposition.labels
            first = tuple(int(r) for r in decomposition.ranks(site)[0])
            full = full_rank(site, decomposition, first)
            choices[site.name] = (decomposition.name, (*full[:labels], *(max(1, round(ratio * r)) for r in full[labels:])))
        if not choices:
            raise InvalidArgument(f"decomposition={decomposition.name!r} is defined for no site here; take another or give a target")
        return Configuration(choices)

    def loss(self, batch: Batch) -> Tensor:
        return self.dense(batch)

    def ranks(self, step: int) -> dict[str, Rank]:
        """The rank of every distorted site after a number of steps."""
        progress = 1.0
        if self.schedule == "linear":
            assert self.steps is not None
            progress = min(1.0, step / (self.ramp * self.steps))
        found = {}
        for site, decomposition, rank, full in self._choices:
            labels = decomposition.labels
            widths = (max(r, round(f + (r - f) * progress)) for r, f in zip(rank[labels:], full[labels:], strict=True))
            found[site.name] = (*rank[:labels], *widths)
        return found

    def after_step(self, step: int) -> None:
        if step % self.period == 0:
            ranks = self.ranks(step)
            weights = self.weights()
            distorted: dict[str, Tensor] = {}
            for site, decomposition, _, full in self._choices:
                if ranks[site.name] != full:  # the full rank changes nothing but rounding
                    state = decomposition.prepare(site, weights[site.name])
                    distorted[site.name] = decomposition.reconstruct(site, state, ranks[site.name])
            self.overwrite(distorted)
        super().after_step(step)


def _check(decomposition: str, ratio: float, period: int, schedule: str, steps: int | None, ramp: float) -> None:
    if decomposition not in LOWERINGS:
        raise InvalidArgument(f"decomposition={decomposition!r} is none of {', '.join(LOWERINGS)}; give a target for others")
    checks.number("ratio", ratio, above=0, below=1)
    checks.whole("period", period, least=1)
    if schedule not in ("constant", "linear"):
        raise InvalidArgument(f"schedule={schedule!r} is none of constant, linear")
    if schedule == "linear" and steps is None:
        raise InvalidArgument("steps=None: schedule='linear' needs to know how many steps training has")
    if steps is not None:
        checks.whole("steps", steps, least=1)
    checks.number("ramp", ramp, above=0)
    if ramp > 1:
        raise InvalidArgument(f"ramp={ramp!r}: must be in (0, 1], a share of the steps")


TABLE: Mapping[str, AnyDecomposition] = {d.name: d for d in DECOMPOSITIONS if d.name != "dense"}


def full_rank(site: Site, decomposition: AnyDecomposition, rank: Rank) -> Rank:
    """The largest rank of the same structure (labels) as a rank; for types that list few ranks, at least that rank."""
    labels = decomposition.labels
    ranks = decomposition.ranks(site)
    same = ranks[(ranks[:, :labels] == np.array(rank[:labels], dtype=np.int64)).all(axis=1)]
    full = [max(r, int(f)) for r, f in zip(rank[labels:], same[:, labels:].max(axis=0), strict=True)] if len(same) else list(rank[labels:])
    return (*rank[:labels], *full)
