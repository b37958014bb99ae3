"""A study in stages: cheap measurements of many candidates first, thorough ones of the best of them last. Every stage is facts of its own
fidelity in the store, so that a search goes on in the stage where it was cut short."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Literal

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.evaluation.fidelity import SUPERNET
from ranksearch.samplers import Random
from ranksearch.search import events
from ranksearch.search.portfolio import cheap_front
from ranksearch.search.run import SearchRun
from ranksearch.search.starts import Start, optima
from ranksearch.sites import Amount
from ranksearch.space import DENSE
from ranksearch.store import Store
from ranksearch.study import storage
from ranksearch.study.run import Asked, check_scheduler, portfolio_of, prepared, proxies_of, search_of, starting, supernet_search

if TYPE_CHECKING:
    from ranksearch.study.study import Study

PROXIES = "proxies"
Candidates = Callable[[int], list[Start]]  # at most so many, the best


@dataclass(frozen=True)
class Stage:
    """One stage of a study.

    Attributes:
        fidelity: how its candidates are evaluated; ``"proxies"``: not at all, they are the best answers of proxies and rules, by what these
            lose on a calibration batch; ``"supernet"``: with the supernet that is trained for the study, and not at all where none is.
        trials: evaluations of the stage, the dense network among them, or answers of proxies.
        explore: whether the sampler proposes further candidates when those of the stage before are evaluated, until there are ``trials``.
            None: in the first stage that measures.

    Raises:
        InvalidArgument: another word, a fidelity of the kind ``supernet``, or ``trials`` below 1.
    """

    fidelity: Fidelity | Literal["proxies", "supernet"]
    trials: int
    explore: bool | None = None

    def __post_init__(self) -> None:
        checks.whole("trials", self.trials, least=1, hint="of a stage")
        if self.fidelity not in (PROXIES, SUPERNET) and not isinstance(self.fidelity, Fidelity):
            raise InvalidArgument(f"fidelity={self.fidelity!r} of a stage: give a Fidelity, 'proxies' or 'supernet'")
        if isinstance(self.fidelity, Fidelity) and self.fidelity.kind == SUPERNET:
            raise InvalidArgument(f"fidelity={self.fidelity.key!r} of a stage: give the word 'supernet': it takes the one that is trained")
        if self.fidelity == PROXIES and self.explore:
            raise InvalidArgument("explore=True: a stage of proxies has no sampler; leave it out")

    @property
    def text(self) -> str:
        """In words."""
        return self.fidelity.key if isinstance(self.fidelity, Fidelity) else str(self.fidelity)


def checked(stages: Sequence[Stage], fidelity: Fidelity | None) -> tuple[tuple[Stage, ...], Fidelity]:
    """The stages of a study, and its fidelity, which is that of the last.

    Raises:
        InvalidArgument: what is no `Stage` or no `Fidelity`, two of one fidelity, proxies that are not first, a last stage without a
            `Fidelity`, or another fidelity than the last stage's."""
    if not isinstance(fidelity, (Fidelity, type(None))):
        raise InvalidArgument(f"fidelity={fidelity!r:.80} is none; give Fidelity(epochs=..., recalibration=...)")
    stages = checks.several("stages", stages, hint="of Stage(fidelity, trials)")
    wrong = [stage for stage in stages if not isinstance(stage, Stage)]
    if wrong:
        raise InvalidArgument(f"stages: {wrong[0]!r:.80} is no Stage; give Stage(fidelity, trials)")
    if not stages:
        return (), fidelity or Fidelity()
    texts = [stage.text for stage in stages]
    if twice := [text for text in dict.fromkeys(texts) if texts.count(text) > 1]:
        raise InvalidArgument(f"stages: {', '.join(twice)} comes twice; give each stage a fidelity of its own")
    if PROXIES in texts[1:]:
        raise InvalidArgument("stages: 'proxies' must be the first: they measure nothing that an earlier stage could have chosen")
    last = stages[-1].fidelity
    if not isinstance(last, Fidelity):
        raise InvalidArgument(f"stages: the last is {last!r}; it must have a Fidelity, whose front is the study's")
    if fidelity not in (None, last):
        raise InvalidArgument(f"fidelity={fidelity.key!r}: the last stage has {last.key!r}, which is the study's; leave fidelity out")
    return stages, last


def run_stages(study: Study, asked: Asked) -> None:
    """Run every stage of a study that is not finished; see `Study.run`."""
    of_stages = [study.replace(fidelity=stage.fidelity) for stage in study.stages if isinstance(stage.fidelity, Fidelity)]
    longest = max(of_stages, key=lambda one: one.fidelity.epochs)
    check_scheduler(longest, asked.scheduler)
    _, limits = prepared(study, asked)
    searches = iter([search_of(one, asked, 1, limits) for one in of_stages])
    before: Candidates | None = None
    measures = False
    with storage.open_store(study, write=True, planned=study.stages[-1].trials) as store:
        for number, stage in enumerate(study.stages, start=1):
            asked.tell(events.Announced(f"stage {number} of {len(study.stages)}: {stage.text}"))
            if stage.fidelity == PROXIES:
                before = cache(lambda count, most=stage.trials: _answers(study, asked, limits, most)[:count])
                continue
            if stage.fidelity == SUPERNET:
                if not study.supernets.store.trained():
                    asked.tell(events.Announced("no supernet is trained for this study, so its stage is left out"))
                    continue
                search, wanted = supernet_search(study, True, stage.trials, asked), []
            else:
                search, wanted = next(searches)
            explore = not measures if stage.explore is None else stage.explore
            known = search.objectives.known(store, search.fidelity, search.seed)
            if explore:
                search, first = _exploring(study, asked, search, stage.trials, before, finished=len(known) >= stage.trials)
            else:
                search, first = _judging(search, stage.trials, before, {*known, *(start.candidate.configuration.id for start in wanted)})
            search.run(store, asked.runner, asked.tell, wanted=wanted, first=first)
            before, measures = _best(search, store, study), True


def _exploring(
    study: Study, asked: Asked, search: SearchRun, trials: int, before: Candidates | None, *, finished: bool
) -> tuple[SearchRun, list[Start]]:  # fmt: skip
    """A search that begins with the candidates of the stage before, or, without one, as any search does."""
    search = replace(search, trials=trials)
    if finished:
        return search, []
    if before is None:
        return starting(study, asked, search), []
    return search, before(asked.sampler.starts(trials))


def _judging(search: SearchRun, trials: int, before: Candidates | None, others: Collection[str]) -> tuple[SearchRun, list[Start]]:
    """A search of nothing but the candidates of the stage before, beside ``others``, which are known or wanted anyway."""
    first = [] if before is None else before(trials - 1)
    alone = Random()
    alone.start_share = 1.0  # they are all that there is to evaluate
    ids = {DENSE.id, *others, *(start.candidate.configuration.id for start in first)}
    return replace(search, trials=len(ids), sampler=alone), first


def _best(search: SearchRun, store: Store, study: Study) -> Candidates:
    return lambda count: search.best(store, study.space, count, deeper=True)


def _answers(study: Study, asked: Asked, limits: Mapping[str, Amount], most: int) -> list[Start]:
    """The best answers of proxies and rules, by what they lose on a calibration batch; all of them where the task has no such batch."""
    proxies, portfolio = proxies_of(study, asked), portfolio_of(study, most)
    if portfolio is None:
        return list(islice(optima(study.space, proxies, limits, allocator=asked.allocator), most))
    measured = portfolio.measured(study.space, proxies, limits, allocator=asked.allocator, most=most, tell=asked.tell)
    costs = [name for name in study.space.costs if name in study.objectives or name in limits]
    return cheap_front(measured, costs or [study.space.leading_cost], most)
