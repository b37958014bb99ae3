"""What a study computes of its network before it evaluates anything: layers, factors, space, costs, and the hash that its evaluations
are facts about. Everything is computed when it is asked for first, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ranksearch.costs import CostModel, DenseNetwork, Narrower, network_cost
from ranksearch.errors import EmptySpace, InvalidArgument
from ranksearch.evaluation import Evaluator
from ranksearch.home import home
from ranksearch.search import landing
from ranksearch.search.events import Announced, Profiled
from ranksearch.sites import Cost, Sites
from ranksearch.space import SearchSpace, SpaceSpec
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import metric as space_metric
from ranksearch.study import counts, identity
from ranksearch.tasks import Task


@dataclass(frozen=True)
class Counted:
    """What networks are counted by, and the space that it counts: costs that refine need a space, and a space needs costs."""

    costs: tuple[CostModel, ...]
    space: SearchSpace | None  # None: nothing needed it so far


class Parts:
    """The parts of a `ranksearch.study.Study`, which sets what they are made of."""

    name: str
    model: nn.Module
    task: Task
    spec: SpaceSpec
    costs: Sequence[CostModel]
    narrower: Narrower | None
    device: torch.device | None
    _store: str | None
    _counted: Counted | None = None  # None: nobody asked for `counts` or `space` so far

    @cached_property
    def sites(self) -> Sites:
        """The factorizable layers, and what was skipped and why."""
        found = self.spec.sites(self.model, self.task.example(), batch_dim=self.task.batch_dim)
        _ = self.network  # what is computed from now on is of this network
        return found

    @cached_property
    def spectra(self) -> Spectra:
        """The prepared decompositions of every site, in the metric of the space; what took long is kept under
        ``$RANKSEARCH_HOME/cache/spectra``.

        Other metrics than the weights' take statistics from ``space.calibration`` batches first, cached under
        ``$RANKSEARCH_HOME/cache``, with what was measured best as defaults (`ranksearch.statistics.metric`): labels
        sampled from the model at temperature 3."""
        name = self.spec.metric
        moments = None
        if name != "weight":
            batches, gradients = self.spec.calibration, name == "fisher"
            found = space_metric.statistics(self.model, self.sites, self.task, calibration=batches, gradients=gradients)
            moments = space_metric.moments(found, name)
        cache = home() / "cache" / "spectra"
        return Spectra(self.model, self.sites, self.spec.decompositions, moments=moments, cache=cache, device=self.device)

    @property
    def space(self) -> SearchSpace:
        """The search space: a ladder of options for every site."""
        counted = self._made(_unsaid)
        if counted.space is None:
            self._counted = counted = replace(counted, space=self._built(counted.costs))
        assert counted.space is not None
        return counted.space

    @property
    def counts(self) -> tuple[CostModel, ...]:
        """The cost models that have amounts: ``costs``, those that measure by the measurement that the store has, else by one made now,
        which also measures the options that exact fronts land on (`ranksearch.search.landing`) and so makes the space.

        Raises:
            StoreError: the store is another study's.
            InvalidArgument: the store has another measurement than ``costs`` ask for."""
        return self._made(_unsaid).costs

    @property
    def profiled(self) -> bool:
        """Whether the space is computed already."""
        return self._counted is not None and self._counted.space is not None

    def profile(self, tell: Callable[[Announced | Profiled], None]) -> SearchSpace:
        """`space`, each stage of its computation told before it begins, each site when it is done."""
        if not self.profiled:
            self._profile_sites(tell)
        self.measure(tell)
        return self.space

    def measure(self, tell: Callable[[Announced | Profiled], None]) -> None:
        """Make `counts`, each stage told before it begins."""
        self._made(tell)

    def _made(self, tell: Callable[[Announced | Profiled], None]) -> Counted:
        """`counts` and, where that made it, `space`; computed once."""
        if self._counted is None:
            self._counted = self._count(tell)
        return self._counted

    def _count(self, tell: Callable[[Announced | Profiled], None]) -> Counted:
        def said(text: str) -> None:
            tell(Announced(text))

        known = self._stored_costs() if counts.measures(self.costs) else {}
        found = counts.bound(self.costs, self.dense_network, known, said)
        if not (names := landing.refining(found, kept=known)):
            return Counted(found, None)
        self._profile_sites(tell)
        try:
            return Counted(*landing.landed(found, self.spectra, self._built, landing.fronts(names), kept=known, tell=said))
        except EmptySpace:  # nothing can be chosen, so nothing is landed on; whoever needs a space is told
            return Counted(found, None)

    def _built(self, costs: Sequence[CostModel]) -> SearchSpace:
        return self.spec.build(self.spectra, costs=costs, example=self.dense_network.example)

    def _profile_sites(self, tell: Callable[[Announced | Profiled], None]) -> None:
        if self.spec.metric != "weight":
            tell(Announced(space_metric.announced(self.model, self.sites, self.spec.metric, self.spec.calibration)))
            _ = self.spectra
        tell(Announced(f"profiling {len(self.sites)} sites"))
        self.spectra.profile_all(tell)

    def _stored_costs(self) -> counts.Records:
        return counts.stored(self.store_url, study=self.name, fingerprint=self.fingerprint, formerly=self.former_fingerprint)

    @cached_property
    def baseline(self) -> Cost:
        """Every cost of the dense network."""
        return network_cost(self.counts, self.dense_network)

    @property
    def dense_network(self) -> DenseNetwork:
        """The network as cost models see it."""
        return DenseNetwork(
            self.model, self.sites, self.task.example(), self.task.batch_dim, self.spec.decompositions, self.narrower
        )  # fmt: skip

    @cached_property
    def network(self) -> identity.Network:
        """What the model is: its weights, and how its modules are configured."""
        return identity.network(self.model, self.task.example())

    @cached_property
    def outputs(self) -> list[dict[str, Any]] | None:
        """What the model computes: a summary of its outputs on the first calibration batch; None where it varies by itself."""
        return None if self.network.varies else identity.outputs(self.model, self.task.calibration(1))

    @cached_property
    def fingerprint(self) -> str:
        """Content hash of the model's weights and structure and of the task: evaluations are facts about this. In other metrics than
        the weights' a configuration has other factors, so the metric and its settings are part of it there. What the model computes
        is compared with what the store says of it, within a tolerance (`ranksearch.study.identity`)."""
        return identity.fingerprint(self._measured, self.network)

    @cached_property
    def former_fingerprint(self) -> str:
        """The fingerprint in stores of earlier versions: without the structure, so that other networks of the same weights had it too."""
        return identity.former_fingerprint(self._measured, self.model)

    @property
    def _measured(self) -> str:
        of_task = self.task.fingerprint()
        if not isinstance(of_task, str):
            raise InvalidArgument(f"{type(self.task).__name__}.fingerprint() gives {of_task!r}: give a text that tells it from other tasks")
        return of_task + space_metric.settings(self.spec.metric, self.spec.calibration, self.task)

    def check_unchanged(self) -> None:
        """Refuse a model that was changed in place since the study looked at it first: what is computed of its sites would be
        another network's.

        Raises:
            InvalidModel: it was; the message says what changed.
        """
        if "network" not in vars(self):
            return
        now = identity.network(self.model, self.task.example())
        before, after = vars(self).get("outputs"), None
        if before is not None and not now.varies:
            after = identity.outputs(self.model, self.task.calibration(1))
        identity.unchanged(self.network, now, before, after)

    @property
    def evaluator(self) -> Evaluator:
        """What evaluates a request; picklable."""
        return Evaluator(self.spectra, self.task)

    @property
    def store_url(self) -> str:
        """Where the evaluations are."""
        return self._store or str(home() / f"{self.name}.db")


def _unsaid(event: Announced | Profiled) -> None:
    """Who asks for a part, and not for its progress, hears nothing."""
