"""What the rules of one `compress` share: spectra and spaces by metric, costs, and how answers are made and judged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ranksearch.allocators import Allocation
from ranksearch.compression.judge import Judge, judge
from ranksearch.compression.measured import Light, Measured, as_it_is, fitted, light, prior
from ranksearch.compression.rules import Rule
from ranksearch.costs import CostModel, DenseNetwork
from ranksearch.decompositions import Moments
from ranksearch.errors import EmptySpace, InfeasibleBudget, InvalidArgument
from ranksearch.home import home
from ranksearch.networks.distillation import distill, no_room, unseen_first
from ranksearch.networks.reconstruction import Answers, announced, batches_within, dense_answers, reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy
from ranksearch.search import landing
from ranksearch.search.events import Announced
from ranksearch.search.local_search import Polished, polish
from ranksearch.search.loop import indices_of
from ranksearch.search.refit import Refitted, refit
from ranksearch.sites import Cost, Sites, device_of
from ranksearch.space import Configuration, SearchSpace, SpaceSpec
from ranksearch.space.space import NO_SITE
from ranksearch.space.spectra import Spectra
from ranksearch.statistics import Statistics
from ranksearch.statistics import metric as space_metric
from ranksearch.statistics.memory import device_memory
from ranksearch.statistics.metric import MetricName
from ranksearch.tasks import Task

POLISH = "polish"  # the name of what measured exchanges make of the best answer
REFIT = "refit"  # and of what a model of the loss makes of all measured answers
Answer = TypeVar("Answer", Allocation, Refitted, Polished)  # each has ``indices``
Key = tuple[MetricName, str]  # the metric that a network's factors are made for, and its configuration's id
Made = tuple[MetricName, str, int]  # the same, and how many batches the factors were fitted to; 0: they are as they come
Notes = MutableMapping[tuple[str, MetricName], MutableMapping[str, float]]  # losses by how a network is made and measured, and by its id
HELD_OUT = 4  # batches that networks are judged on
KNOWN = 8  # of the rules' answers, those that a model of the loss begins with: the best
FINAL = 3  # of what it measured, those that are judged like the rules' answers
KEPT = 1 / 16  # of the device's memory that a network may take which is kept until a better one is found; larger ones are made again
LIGHT = 1  # batches that factors are fitted to where networks are measured by dozens


@dataclass(frozen=True)
class Tried:
    """One rule's answer, measured.

    Attributes:
        rule: its name.
        metric: what the factors are made for.
        configuration: None where it has no answer.
        cost: of the whole network.
        loss: on the held-out batches, as the factors come; NaN where the answer is no contender.
        light: after a light reconstruction, on batches that the choice of ranks may see; NaN where no contenders were picked by it.
        reconstructed: on the held-out batches after `reconstruct`.
        finished: the same after `reconstruct` on more batches, which the best answer alone has.
        finish: so many batches; 0: there was no last fit.
        distilled: the same once the network that lost least until then was taught as a whole, which the best answer alone has.
        distill: so many batches; 0: it was not.
        note: why there is no answer.
        passes: forward passes of one batch that its networks were measured with; those of `reconstruct` are not among them.
    """

    rule: str
    metric: MetricName
    configuration: Configuration | None
    cost: Cost | None
    loss: float = math.nan
    light: float = math.nan
    reconstructed: float = math.nan
    finished: float = math.nan
    finish: int = 0
    distilled: float = math.nan
    distill: int = 0
    note: str = ""
    passes: int = 0

    @property
    def least(self) -> float:
        """The best of the losses on the held-out batches; infinite where nothing was measured."""
        losses = self.loss, self.reconstructed, self.finished, self.distilled
        return min((value for value in losses if not math.isnan(value)), default=math.inf)

    @property
    def screened(self) -> bool:
        """Whether it is no contender, by its light reconstruction."""
        return math.isnan(self.loss) and not math.isnan(self.light)

    @property
    def promise(self) -> float:
        """The loss by which answers are compared before all are reconstructed."""
        return self.least if math.isnan(self.light) else self.light


@dataclass(frozen=True)
class Data:
    """Batches of training data, parted: those that metrics and reconstruction see, and those that networks are judged on."""

    seen: int
    held_out: list[Any]

    @classmethod
    def of(cls, task: Task, calibration: int) -> Data:
        """At most ``calibration`` seen batches; a quarter of little data, and one batch of it at least, is held out. A task with a
        single batch is judged on the batch that is seen."""
        batches = list(task.labelled(calibration + HELD_OUT))
        held = min(HELD_OUT, max(1, len(batches) // 4))
        seen = max(1, len(batches) - held)
        return cls(seen, batches[-held:])


@dataclass
class Portfolio:
    """What the rules of one call share: spectra and spaces by metric, and how a network is made and judged."""

    model: nn.Module
    task: Task
    spec: SpaceSpec
    costs: Sequence[CostModel]
    budgets: dict[str, float]
    data: Data
    reconstruction: int
    recalibration: int
    tell: Callable[[Announced], None]
    two_sided: bool  # whether output gradients are collected at all: where a rule takes them
    contenders: int  # of the rules' answers, so many are reconstructed
    device: torch.device | None
    spaces: dict[MetricName, SearchSpace] = field(default_factory=dict)
    prepared: dict[MetricName, Spectra] = field(default_factory=dict)
    measuring: dict[MetricName, Measured] = field(default_factory=dict)
    collected: dict[bool, Statistics] = field(default_factory=dict)  # with output gradients and without
    fitting: dict[MetricName, Measured] = field(default_factory=dict)
    notes: Notes = field(default_factory=lambda: defaultdict(dict))
    best: tuple[float, Made, nn.Module] | None = None  # of the reconstructed networks, that of the least loss, if it is kept
    known: tuple[int, Answers] | None = None  # the dense network's, to so many batches that factors are fitted to
    last: MetricName | None = None  # the metric that was worked in

    @cached_property
    def sites(self) -> Sites:
        return self.spec.sites(self.model, self.task.example(), batch_dim=self.task.batch_dim)

    def check_sites(self) -> None:
        """Raises:
        EmptySpace: no layer can be factorized."""
        if not self.sites:
            raise EmptySpace(NO_SITE)

    @cached_property
    def dense_network(self) -> DenseNetwork:
        return DenseNetwork(self.model, self.sites, self.task.example(), self.task.batch_dim, self.spec.decompositions)

    @cached_property
    def counts(self) -> tuple[CostModel, ...]:
        """The cost models, measured once for all metrics where they measure."""
        return tuple(cost.of(self.dense_network, None, lambda text: self.tell(Announced(text))) for cost in self.costs)

    @cached_property
    def judge(self) -> Judge:
        return judge(self.model, self.task, self.data.held_out, statistics=self.recalibration)

    def answers(self, batches: int) -> Answers:
        """Those of the dense network to the batches that factors are fitted to; those to another number of batches are forgotten."""
        if self.known is None or self.known[0] != batches:
            self.known = None
            self.known = batches, dense_answers(self.model, self.sites, self.task.calibration(batches))
        return self.known[1]

    @cached_property
    def light(self) -> Light:
        """What is fitted to and measured where networks are measured by dozens."""
        return light(self.model, self.sites, self.task, LIGHT, self.measured_on, seen=self.data.seen)

    @cached_property
    def loss(self) -> Judge:
        """What networks are measured by while ranks are chosen, as their factors come: on the batches that factors are fitted to."""
        return judge(self.model, self.task, list(self.task.labelled(self.measured_on)))

    @cached_property
    def outputs(self) -> Mapping[str, Moments]:
        """Moments whose output gradients weigh errors in every rule's reconstruction, whatever the metric that it chooses in."""
        return self.moments("fisher")

    def moments(self, metric: MetricName) -> Mapping[str, Moments]:
        """Those of a metric. Where output gradients are collected, the inputs' moments are those of the same pass."""
        gradients = metric == "fisher" or self.two_sided
        if gradients not in self.collected:
            self.tell(Announced(space_metric.announced(self.model, self.sites, "fisher" if gradients else metric, self.data.seen)))
            found = space_metric.statistics(self.model, self.sites, self.task, calibration=self.data.seen, gradients=gradients)
            self.collected[gradients] = found
        return space_metric.moments(self.collected[gradients], metric)

    def space(self, metric: MetricName) -> tuple[Spectra, SearchSpace]:
        """Prepared decompositions and ladders in a metric, made once; ladders again where costs were measured more closely."""
        spectra = self.spectra(metric)
        if metric not in self.spaces:
            self.spaces[metric] = self._built(spectra, self.counts)
        return spectra, self.spaces[metric]

    def _built(self, spectra: Spectra, counts: Sequence[CostModel]) -> SearchSpace:
        return self.spec.build(spectra, costs=counts, example=self.task.example())

    def spectra(self, metric: MetricName) -> Spectra:
        """Prepared decompositions in a metric, made once; when another metric's turn comes, what can be made again is forgotten."""
        if self.last not in (None, metric):
            self.prepared[self.last].forget()
        if metric not in self.prepared:
            moments = None if metric == "weight" else self.outputs if metric == "fisher" else self.moments(metric)
            self.tell(Announced(f"profiling {len(self.sites)} sites in the {metric} metric"))
            cache = home() / "cache" / "spectra"
            self.prepared[metric] = Spectra(
                self.model, self.sites, self.spec.decompositions, moments=moments, cache=cache, device=self.device
            )
        self.last = metric
        return self.prepared[metric]

    def chosen(self, metric: MetricName, choose: Callable[[Spectra, SearchSpace], Answer]) -> Answer:
        """What is chosen in the space of a metric, once the latency of what it lands on is measured (`ranksearch.search.landing`)."""
        spectra, space = self.space(metric)
        if not landing.refining(self.counts):
            return choose(spectra, space)
        last: list[tuple[SearchSpace, Answer]] = []

        def indices(space: SearchSpace) -> list[np.ndarray]:
            last[:] = [(space, choose(spectra, space))]
            return [last[0][1].indices]

        def build(costs: Sequence[CostModel]) -> SearchSpace:
            return space if costs == self.counts else self._built(spectra, costs)

        counts, found = landing.landed(self.counts, spectra, build, indices, tell=lambda text: self.tell(Announced(text)))
        if found is not space:
            self.counts, self.spaces = counts, {metric: found}
        return last[0][1] if last[0][0] is found else choose(spectra, found)

    def every(self, rules: Sequence[Rule]) -> list[Tried]:
        """Every rule's answer, in their order; made metric by metric, so that each is prepared once. Where there are more rules than
        contenders, all answers are measured after a light reconstruction, and those that lose least are judged."""
        metrics = list(dict.fromkeys(rule.metric for rule in rules))
        screened = self.reconstruction > 0 and len(rules) > self.contenders
        found = {rule.name: self.tried(rule, screened=screened) for rule in sorted(rules, key=lambda rule: metrics.index(rule.metric))}
        contending = self._contending([*found.values()]) if screened else set()
        for one in sorted(found.values(), key=lambda one: (one.metric != self.last, one.metric)):
            if one.configuration is not None and (one.metric, one.configuration.id) in contending:
                self.tell(Announced(f"judging the answer of {one.rule}"))
                found[one.rule] = self.whole(one)
        return [found[rule.name] for rule in rules]

    def _contending(self, answers: Sequence[Tried]) -> set[Key]:
        """The networks that are reconstructed, several rules' answers being one."""
        order = sorted((one for one in answers if one.configuration), key=lambda one: one.promise)
        keys: dict[Key, None] = {(one.metric, one.configuration.id): None for one in order if one.configuration}
        return set([*keys][: self.contenders])

    def tried(self, rule: Rule, *, screened: bool = False) -> Tried:
        """A rule's answer, judged as its factors come and after reconstruction; ``screened``: measured after a light one alone."""
        seen = self.seen(rule.metric) if rule.measures else None
        before = 0 if seen is None else seen.passes
        try:
            found = self.chosen(rule.metric, lambda spectra, space: rule.choose(spectra, space, self.budgets, seen))
        except (InfeasibleBudget, InvalidArgument) as error:
            return Tried(rule.name, rule.metric, None, None, note=str(error))
        self.tell(Announced(f"measuring the answer of {rule.name}"))
        answer = replace(self._untried(rule.name, rule.metric, found.indices), passes=0 if seen is None else seen.passes - before)
        return self._lightly(answer) if screened else self.whole(answer)

    def _untried(self, name: str, metric: MetricName, indices: np.ndarray) -> Tried:
        """A configuration that nothing was measured of."""
        candidate = self.space(metric)[1].candidate(indices)
        return Tried(name, metric, candidate.configuration, candidate.cost)

    def _lightly(self, answer: Tried) -> Tried:
        assert answer.configuration is not None
        measure = self.fitted(answer.metric)
        before = measure.passes
        loss = measure(answer.configuration)
        return replace(answer, light=loss if math.isfinite(loss) else math.inf, passes=answer.passes + measure.passes - before)

    def whole(self, answer: Tried) -> Tried:
        """An answer, judged before and after reconstruction."""
        assert answer.configuration is not None
        loss, passes = self._judged(answer.metric, answer.configuration, 0)
        found = replace(answer, loss=loss, passes=answer.passes + passes)
        if not self.reconstruction:
            return found
        loss, passes = self._judged(answer.metric, answer.configuration, self.reconstruction)
        return replace(found, reconstructed=loss, passes=found.passes + passes)

    def measured(self, name: str, metric: MetricName, indices: np.ndarray) -> Tried:
        """The losses of a configuration before and after reconstruction, measured once."""
        return self.whole(self._untried(name, metric, indices))

    def _judged(self, metric: MetricName, configuration: Configuration, batches: int) -> tuple[float, int]:
        """The loss of a network whose factors are fitted to so many batches, on the held-out ones, and forward passes that this took."""
        if configuration.id in (known := self.notes[f"judged, fitted to {batches}", metric]):
            return known[configuration.id], 0
        if batches and (text := announced(self.spectra(metric), configuration)) is not None:
            self.tell(Announced(text))
        network = self.network(metric, configuration, batches)
        loss = known[configuration.id] = self.judge(network)
        least = math.inf if self.best is None else self.best[0]
        if batches and loss < least and sum(p.nbytes for p in network.parameters()) <= KEPT * device_memory(device_of(self.model)):
            self.best = loss, (metric, configuration.id, batches), network
        return loss, self.judge.passes

    def finished(self, best: Tried, batches: int) -> Tried:
        """The best answer, its factors fitted once more, to more batches: as many of them as there are and memory has room for
        (`batches_within`)."""
        assert best.configuration is not None
        count = min(batches, self.data.seen)
        if not self.reconstruction or count <= self.reconstruction:
            return best
        self.tell(Announced(f"fitting the answer of {best.rule} to more batches"))
        spectra = self.spectra(best.metric)
        count = batches_within(self.model, [site.name for site in spectra.sites], next(iter(self.task.calibration(1))), count)
        if count <= self.reconstruction:
            return best
        loss, passes = self._judged(best.metric, best.configuration, count)
        return replace(best, finished=loss, finish=count, passes=best.passes + passes)

    def handed_out(self, best: Tried) -> nn.Module:
        """The network of an answer, in the way that loses least."""
        assert best.configuration is not None
        ways = ((best.loss, 0), (best.reconstructed, self.reconstruction), (best.finished, best.finish))
        batches = next((count for loss, count in ways if loss == best.least), 0)
        return self.network(best.metric, best.configuration, batches)

    def taught(self, network: nn.Module, best: Tried, steps: int) -> Tried:
        """The network of an answer, in the way that loses least, learns the dense network's answers as a whole, in place; it stays as it
        was where it then loses no less."""
        assert best.configuration is not None
        if not steps:
            return best
        if (text := no_room(network)) is not None:
            self.tell(Announced(f"not teaching it the dense network's answers: {text}"))
            return best
        self.tell(Announced(f"teaching it the dense network's answers to {steps} batches"))
        spectra, divergence, losses = self.prepared[best.metric], self.task.divergence, list[float]()
        lessons = partial(unseen_first, self.task, steps, seen=self.data.seen, kept=len(self.data.held_out))

        def better() -> bool:
            losses.append(self.judge(network))
            return losses[0] < best.least

        try:
            distill(network, spectra, best.configuration, lessons, steps=steps, divergence=divergence, kept=better)
        except RuntimeError as error:  # no gradient of what it does, or no memory: it answers all the same
            self.tell(Announced(f"it stays as it was: {str(error).splitlines()[0]}"))
            return best
        return replace(best, distilled=losses[0], distill=steps, passes=best.passes + self.judge.passes) if losses else best

    def seen(self, metric: MetricName) -> Measured:
        """Measures networks as their factors come, on the batches that factors are fitted to."""
        if metric not in self.measuring:
            self.measuring[metric] = as_it_is(self.spectra(metric), self.loss, self.notes["as it is", metric])
        return self.measuring[metric]

    def fitted(self, metric: MetricName) -> Measured:
        """Measures networks after a reconstruction on a single batch, if what comes out is reconstructed at all."""
        if not self.reconstruction:
            return self.seen(metric)
        if metric not in self.fitting:
            moments, known = self.outputs if self.two_sided else None, self.notes["lightly fitted", metric]
            self.fitting[metric] = fitted(self.spectra(metric), self.light, known, moments=moments)
        return self.fitting[metric]

    @property
    def measured_on(self) -> int:
        """Batches that `seen` and `fitted` measure on."""
        return self.reconstruction or min(HELD_OUT, self.data.seen)

    def refitted(self, tried: Sequence[Tried], rounds: int) -> Tried:
        """What a model of the loss finds that was fitted to the best of the rules' answers, with factors for the Fisher metric, and to its
        own. Of the networks that measured least, that with the least loss on the held-out batches."""
        self.tell(Announced(f"fitting a model of the loss in {rounds} rounds"))
        best = sorted((one for one in tried if one.configuration), key=lambda one: one.promise)[:KNOWN]
        measure, alone = self.fitted("fisher"), self.seen("fisher")
        before = measure.passes + alone.passes

        def choose(spectra: Spectra, space: SearchSpace) -> Refitted:
            del spectra
            known = [indices for one in best if one.configuration and (indices := indices_of(space, one.configuration)) is not None]
            return refit(space, prior(space, alone), measure.on(space), self.budgets, known=known, rounds=rounds)

        try:
            found = self.chosen("fisher", choose)
        except (InfeasibleBudget, InvalidArgument) as error:
            return Tried(REFIT, "fisher", None, None, note=str(error))
        judged = [self.measured(REFIT, "fisher", indices) for indices in found.ranked[:FINAL]]
        passes = sum(one.passes for one in judged) + (measure.passes + alone.passes - before) // (2 if measure is alone else 1)
        return replace(min(judged, key=lambda one: one.least), passes=passes)

    def polished(self, best: Tried, evaluations: int) -> Tried:
        """Measured exchanges from the best answer on."""
        self.tell(Announced(f"polishing the answer of {best.rule} by {evaluations} measurements"))
        measure = self.fitted(best.metric) if best.reconstructed < best.loss else self.seen(best.metric)
        before = measure.passes

        def choose(spectra: Spectra, space: SearchSpace) -> Polished:
            del spectra
            assert best.configuration is not None
            table = Energy().table(space) if best.metric == "fisher" else None
            start = space.indices(best.configuration)
            return polish(space, start, measure.on(space), self.budgets, evaluations=evaluations, table=table)

        try:
            found = self.chosen(best.metric, choose)
        except (InfeasibleBudget, InvalidArgument) as error:  # its start, since more of its latency was measured
            return Tried(POLISH, best.metric, None, None, note=str(error))
        answer = self.measured(POLISH, best.metric, found.indices)
        return replace(answer, passes=answer.passes + measure.passes - before)

    def network(self, metric: MetricName, configuration: Configuration, batches: int = 0) -> nn.Module:
        """The network of a configuration, its factors fitted to so many batches, its batch norms as they were. The best of those that were
        reconstructed is there already, and given away."""
        if batches and self.best is not None and self.best[1] == (metric, configuration.id, batches):
            network, self.best = self.best[2], None
            return network
        network = build(self.spectra(metric), configuration).eval()
        if batches:  # in the last fit, thoroughly
            moments, thorough = self.outputs if self.two_sided else None, batches > self.reconstruction
            reconstruct(network, self.spectra(metric), configuration, self.answers(batches), moments=moments, thorough=thorough)
        return network
