"""A search of a study: what is given by name or instance is checked first, then the space is profiled, then evaluations begin."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from ranksearch import checks
from ranksearch.allocators import ALDS, ALLOCATORS, EVBMF, Allocator
from ranksearch.compression import judge
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Outcome, Request, Stepwise, check_stepwise
from ranksearch.proxies import (
    LEMS,
    PROXIES,
    ActivationError,
    Calibrated,
    CalibrationLoss,
    FisherError,
    ProxyContext,
    SingleSiteLoss,
    TableProxy,
    free_proxies,
)
from ranksearch.proxies.context import SAMPLE
from ranksearch.proxies.lems import TRIALS
from ranksearch.results.conditions import BOUNDS, Condition
from ranksearch.runners import RUNNERS, Runner
from ranksearch.samplers import SAMPLERS, Sampler
from ranksearch.schedulers import SCHEDULERS, NoStopping, Scheduler
from ranksearch.search.events import Planned, SearchEvent
from ranksearch.search.known import Known
from ranksearch.search.portfolio import PUBLISHED, Portfolio
from ranksearch.search.run import Objectives, SearchRun, failed_before, upper_limits
from ranksearch.search.starts import Start
from ranksearch.sites import Amount
from ranksearch.space import SearchSpace
from ranksearch.space.space import check_bits
from ranksearch.study import queue, storage

if TYPE_CHECKING:
    from ranksearch.study.study import Study

BATCHES = 2  # labelled batches for proxies that run networks
PER_TRIAL, POINTS = 2, 6  # measurements that go into measured proxies; and of a single site at most
OPTIONS_PER_TRIAL = 20  # that are put together for errors in other metrics than the space's
T = TypeVar("T")


@dataclass(frozen=True)
class Screening:
    """Configurations measured with a trained supernet before the evaluations, stored at its fidelity; the evaluations then begin with
    the front of them, well spread.

    Attributes:
        supernet: True for the only one, or its method or key.
        count: how many configurations; those in the store count.

    Raises:
        InvalidArgument: ``count`` below 1.
    """

    supernet: str | bool = True
    count: int = 100

    def __post_init__(self) -> None:
        checks.whole("count", self.count, least=1)


@dataclass(frozen=True)
class Asked:
    """What a search is to be made with, checked."""

    sampler: Sampler
    kinds: Sequence[TableProxy | type[TableProxy]] | None  # of proxies; None: the portfolio
    allocator: Allocator | None
    scheduler: Scheduler
    runner: Runner
    conditions: Sequence[Condition]
    retry_failed: bool
    take_over: bool
    tell: Callable[[SearchEvent], None]


def asked(
    study: Study,
    *,
    sampler: str | Sampler,
    proxies: Sequence[str | TableProxy] | None,
    allocator: str | Allocator | None,
    scheduler: str | Scheduler,
    runner: str | Runner,
    constraints: str | Sequence[str],
    retry_failed: bool,
    take_over: bool,
    on_event: Callable[[SearchEvent], None] | None,
) -> Asked:
    """The arguments of `ranksearch.study.Study.run` as instances.

    Raises:
        InvalidArgument: a name that no table has, or a condition that bounds no cost."""
    if not isinstance(runner, Runner):
        runner = _of_table("runner", runner, Runner, RUNNERS.items())()
    if not isinstance(sampler, Sampler):
        sampler = _of_table("sampler", sampler, Sampler, ((s.name, s) for s in SAMPLERS))
    if allocator is not None and not isinstance(allocator, Allocator):
        allocator = _of_table("allocator", allocator, Allocator, ((a.name, a) for a in ALLOCATORS))
    if not isinstance(scheduler, Scheduler):
        scheduler = _of_table("scheduler", scheduler, Scheduler, ((s.name, s) for s in SCHEDULERS))
    if not isinstance(retry_failed, bool):
        raise InvalidArgument(f"retry_failed={retry_failed!r:.80}: must be True or False")
    kinds = None if proxies is None else [_proxy_kind(proxy) for proxy in checks.several("proxies", proxies, hint="names or instances")]
    conditions = Condition.parse_all(constraints, example=BOUNDS)
    for condition in conditions:
        condition.check_bounds([cost.name for cost in study.costs])
    check_bits(study.spec.decompositions, study.costs)  # before the store learns of this space
    tell = on_event or (lambda event: None)
    return Asked(sampler, kinds, allocator, scheduler, runner.carrying(study.modules), conditions, retry_failed, take_over, tell)


def run(study: Study, trials: int, asked: Asked, *, screening: Screening | None = None) -> None:
    """See `ranksearch.study.Study.run`."""
    checks.whole("trials", trials, least=1)
    check_scheduler(study, asked.scheduler)
    study.check_unchanged()
    study.measure(asked.tell)
    if screening is None and not asked.conditions:
        known = _known(study)
        again = failed_before(known, retry_failed=asked.retry_failed)
        again += [id for id in queue.ids(study) if id in known and known[id].stopped]
        if len(known) >= trials and not again:  # nothing to profile for
            asked.tell(Planned(len(known), len(known)))
            return
    space, limits = prepared(study, asked)
    search, wanted = search_of(study, asked, trials, limits)
    search = starting(study, asked, search)
    screened = None
    if screening is not None:
        screened = starting(study, asked, supernet_search(study, screening.supernet, screening.count, asked))
    with storage.open_store(study, write=True, planned=trials) as store:
        if screened is not None:
            screened.run(store, asked.runner, asked.tell)
        first = [] if screened is None else screened.best(store, space, search.sampler.starts(trials))
        search.run(store, asked.runner, asked.tell, wanted=wanted, first=first)


def prepared(study: Study, asked: Asked) -> tuple[SearchSpace, dict[str, Amount]]:
    """The space, profiled, and the limits that the conditions mean in it.

    Raises:
        InfeasibleBudget: a condition that nothing satisfies."""
    study.check_unchanged()
    study.measure(asked.tell)
    space = study.profile(asked.tell)
    return space, upper_limits(space, asked.conditions)


def search_of(study: Study, asked: Asked, trials: int, limits: Mapping[str, Amount]) -> tuple[SearchRun, list[Start]]:
    """The search of a study at its fidelity, with no starts of its own, and what people want evaluated at that."""
    wanted = queue.starts(study, limits)
    evaluating = study.covering(*(start.candidate.configuration for start in wanted))
    search = SearchRun(
        study.space, _objectives(study), study.fidelity, study.seed, trials, asked.sampler, (), asked.allocator, limits,
        lambda: evaluating.evaluator, retry_failed=asked.retry_failed, scheduler=asked.scheduler,
        in_parts=lambda rungs, place: Stepwise(evaluating.evaluator, rungs, place), take_over=asked.take_over,
    )  # fmt: skip
    return search, wanted


def starting(study: Study, asked: Asked, search: SearchRun) -> SearchRun:
    """The same search, which starts from the proxies that are asked for, or from the portfolio. A supernet's has no portfolio: what it
    would measure is little cheaper than its evaluations."""
    portfolio = portfolio_of(study, search.trials) if asked.kinds is None and not search.screening else None
    return replace(search, proxies=proxies_of(study, asked), portfolio=portfolio)


def supernet_search(study: Study, which: str | bool, count: int, asked: Asked) -> SearchRun:
    """The search of configurations as a trained supernet measures them, with no starts of its own.

    Raises:
        InvalidArgument: there is none such."""
    store = study.supernets.store
    entry, space = store.find(which), store.space()

    def evaluator() -> Callable[[Request], Outcome]:
        return store.load(entry).evaluator

    return SearchRun(
        space, _objectives(study), entry.fidelity, study.seed, count, asked.sampler, (), asked.allocator,
        upper_limits(space, asked.conditions), evaluator, screening=True, retry_failed=asked.retry_failed, take_over=asked.take_over,
    )  # fmt: skip


def _objectives(study: Study) -> Objectives:
    return Objectives(study.objectives, study.directions, study.baseline)


def check_scheduler(study: Study, scheduler: Scheduler) -> None:
    """Refuse a scheduler that would stop nothing, or cannot.

    Raises:
        InvalidArgument: it looks at no evaluation of this fidelity, the task cannot be left on its way, or all objectives are costs."""
    if isinstance(scheduler, NoStopping):
        return
    epochs = study.fidelity.epochs
    if not scheduler.rungs(epochs):
        raise InvalidArgument(
            f"scheduler={scheduler.name!r}: it looks at no evaluation of {epochs:g} epochs, so none would be stopped: let it begin earlier "
            f"(first=..., --first-rung), or evaluate with more epochs than its first rung"
        )
    scheduler.start([name in {cost.name for cost in study.costs} for name in study.objectives])
    check_stepwise(study.task)


def _known(study: Study) -> dict[str, Known]:
    with study.open_store(write=True) as store:
        return _objectives(study).known(store, study.fidelity, study.seed)


def portfolio_of(study: Study, trials: int) -> Portfolio | None:
    """Every published rule, and the proxies that so many trials can afford, measured as `compress` measures; None where the task has no
    calibration batch."""
    batches = list(study.task.labelled(BATCHES))
    if not batches:
        return None
    seen = judge(study.model, study.task, batches)
    loss = CalibrationLoss(study.spectra, seen.batches, seen.loss, normalization="batch")
    rules = [*PUBLISHED, EVBMF(study.spectra)]
    if study.space.metric == "weight":  # in which its errors are
        rules.append(ALDS(study.spectra))
    return Portfolio(rules, lambda indices: loss(study.space.configuration(indices)), proxies=_afforded(study, trials, loss))


def _afforded(study: Study, trials: int, loss: CalibrationLoss) -> list[Callable[[], TableProxy]]:
    """What makes proxies that measure networks without training: two measurements per trial go into them, first into `LEMS`, then into
    `Calibrated`, what is left into further options of single sites. And, in the weight metric, those of other metrics, where so many
    options can be put together."""
    context = ProxyContext(study.space, study.spectra, study.task, calibration=study.spec.calibration, batches=BATCHES)
    found: list[Callable[[], TableProxy]] = []
    if context.missing("networks") is None:
        room = PER_TRIAL * trials
        if room >= (lems := len(study.space.ladders) + TRIALS + 1):
            found.append(lambda: LEMS(loss))
            room -= lems
        room -= SAMPLE + 1
        if room >= 0:
            found.append(lambda: Calibrated.make(context))
        if points := min(max(room, 0) // len(study.space.ladders), POINTS):
            found.append(lambda: SingleSiteLoss(context.loss, points=points))
    if study.space.metric == "weight" and context.missing("statistics") is None and sum(study.space.shape) <= OPTIONS_PER_TRIAL * trials:
        found += [lambda: ActivationError.make(context), lambda: FisherError.make(context)]
    return found


def _of_table(argument: str, given: object, kind: type, table: Iterable[tuple[str, T]]) -> T:
    """The entry of a table that is called ``given``.

    Raises:
        InvalidArgument: there is none; the message lists them."""
    entries = dict(table)
    if isinstance(given, str) and given in entries:
        return entries[given]
    close = difflib.get_close_matches(given, entries, n=1) if isinstance(given, str) else []
    hint = f"; did you mean {close[0]!r}?" if close else f", nor an instance of {kind.__name__}"
    raise InvalidArgument(f"{argument}={given!r} is none of {', '.join(entries)}{hint}")


def _proxy_kind(given: str | TableProxy) -> TableProxy | type[TableProxy]:
    """A proxy that has optima, or the class that makes one."""
    if isinstance(given, TableProxy):
        return given
    tabled = ((kind.name, kind) for kind in PROXIES if issubclass(kind, TableProxy))
    return _of_table("proxies", given, TableProxy, tabled)


def proxies_of(study: Study, asked: Asked) -> list[TableProxy]:
    """The proxies whose optima a search starts from: those that are asked for, or those that need nothing but the space."""
    if asked.kinds is None:
        return [*free_proxies()]
    context = ProxyContext(study.space, study.spectra, study.task, calibration=study.spec.calibration, batches=BATCHES)
    return [kind.make(context) if isinstance(kind, type) else kind for kind in asked.kinds]
