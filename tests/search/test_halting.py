"""What a scheduler is asked and told, and which evaluations it has a say in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from search_cases import small_space

from ranksearch.evaluation import Fidelity, Outcome, Place, Point, Progress, Request
from ranksearch.runners import LocalRunner
from ranksearch.samplers import Random
from ranksearch.schedulers import Scheduler
from ranksearch.search.halting import Halting
from ranksearch.search.run import Objectives, SearchRun
from ranksearch.search.starts import Start
from ranksearch.space import DENSE, Configuration, SearchSpace
from ranksearch.store import Record, Store

TRAINED = Fidelity(epochs=4)
COST = {"params": 10, "macs": 100}


class Strict(Scheduler):
    """Asks at one epoch and at three, and lets nobody go on; ``asked`` is whom it was asked about, all at the rung, the newcomer last."""

    name = "strict"

    def __init__(self) -> None:
        self.asked: list[list[list[float]]] = []

    def rungs(self, length: float) -> tuple[float, ...]:
        return tuple(rung for rung in (1.0, 3.0) if rung < length)

    def _goes_on(self, values: np.ndarray) -> bool:
        self.asked.append(values.tolist())
        return False


def halting(scheduler: Scheduler, *, spared: tuple[str, ...] = ()) -> Halting:
    def values(metrics, cost) -> list[float]:
        return [-metrics["accuracy"], cost["macs"]]

    return Halting(scheduler.start([False, True]), scheduler.rungs(4.0), values, lambda request: COST, spared)


def request(site: str = "a") -> Request:
    return Request(Configuration({site: ("svd", (1,))}), TRAINED, 3)


def progress(asked: Request, *points: tuple[float, float]) -> Progress:
    return Progress(asked, tuple(Point(epochs, {"accuracy": accuracy}) for epochs, accuracy in points))


def record(site: str, curve, *, status: str = "done") -> Record:
    configuration = Configuration({site: ("svd", (1,))})
    return Record(configuration.id, configuration.to_json(), TRAINED.key, 3, status, {}, {"params": 5, "macs": 50}, curve=curve)  # type: ignore[arg-type]


def test_newcomers_are_compared_with_what_earlier_runs_came_to_at_the_same_rung() -> None:
    scheduler = Strict()
    judge = halting(scheduler)
    judge.learn([
        record("b", [(1.0, {"accuracy": 0.2}), (2.0, {"accuracy": 0.3})]),  # nobody is asked at two epochs
        record("c", [(1.0, {"accuracy": 0.4}), (3.0, {"accuracy": 0.5})], status="stopped"),
        record("d", None),  # nobody looked
        record("e", [(1.0, {"loss": 7.0})]),  # of a time when the task did not report the objective
    ])  # fmt: skip
    assert judge.goes_on(progress(request(), (1.0, 0.6))) is False
    assert judge.goes_on(progress(request("f"), (1.0, 0.1), (3.0, 0.2))) is False
    assert scheduler.asked == [[[-0.2, 50.0], [-0.4, 50.0], [-0.6, 100.0]], [[-0.5, 50.0], [-0.2, 100.0]]]


def test_between_rungs_and_where_it_is_spared_an_evaluation_goes_on_and_is_compared_with() -> None:
    scheduler, mine, other = Strict(), request(), request("b")
    judge = halting(scheduler, spared=(mine.configuration.id,))
    assert judge.goes_on(progress(mine, (1.0, 0.9))) is True
    assert judge.goes_on(progress(other, (0.5, 0.1))) is True and scheduler.asked == []
    assert judge.goes_on(progress(other, (0.5, 0.1), (1.0, 0.2))) is False
    assert scheduler.asked == [[[-0.9, 100.0], [-0.2, 100.0]]]


def test_rungs_that_a_run_which_was_cut_short_had_seen_are_told_and_not_asked() -> None:
    scheduler = Strict()
    judge = halting(scheduler)
    assert judge.goes_on(progress(request(), (1.0, 0.3), (3.0, 0.4))) is False
    assert judge.goes_on(progress(request("b"), (1.0, 0.5))) is False
    assert scheduler.asked == [[[-0.4, 100.0]], [[-0.3, 100.0], [-0.5, 100.0]]]


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s.db", study="small", fingerprint="f", create=True, write=True) as opened:
        yield opened


def looked_at(rungs, place: Place):
    """An evaluator in parts: a tenth of what it ends with at every rung."""

    def evaluate(request: Request) -> Iterator[Progress | Outcome]:
        curve: tuple[Point, ...] = ()
        for rung in rungs:
            curve += (Point(rung, {"accuracy": rung / 10}),)
            yield Progress(request, curve)
        yield Outcome(request, "done", {"accuracy": 0.5}, curve=curve)

    return evaluate


def make(space: SearchSpace, *, fidelity: Fidelity, scheduler: Scheduler | None, in_parts=looked_at) -> SearchRun:
    objectives = Objectives(("accuracy", "macs"), {"accuracy": "max", "macs": "min", "params": "min"}, space.baseline)
    return SearchRun(space, objectives, fidelity, 3, 5, Random(), [], None, {}, lambda: whole, scheduler=scheduler, in_parts=in_parts)


def whole(request: Request) -> Outcome:
    return Outcome(request, "done", {"accuracy": 0.25})


def test_a_search_stops_all_but_the_dense_network_and_what_is_wanted(space: SearchSpace, store: Store) -> None:
    wanted = Start(space.candidate(np.zeros(3, dtype=np.int64)), "mine")
    search = make(space, fidelity=TRAINED, scheduler=Strict())
    search.run(store, LocalRunner(), lambda event: None, wanted=[wanted])
    ended = {found.configuration_id: found for found in store.records()}
    spared = {DENSE.id, wanted.candidate.configuration.id}
    assert len(ended) == 5 and {id for id, found in ended.items() if found.status == "done"} == spared
    assert {found.status for id, found in ended.items() if id not in spared} == {"stopped"}
    assert store.spool is not None and not store.spool.exists()


def test_what_was_stopped_goes_to_its_end_once_it_is_wanted(space: SearchSpace, store: Store) -> None:
    search = make(space, fidelity=TRAINED, scheduler=Strict())
    search.run(store, LocalRunner(), lambda event: None)
    before = {found.configuration_id: found for found in store.records()}
    one = next(found for found in before.values() if found.status == "stopped")
    wanted = Start(space.candidate(space.indices(Configuration.from_json(one.configuration))), "mine")
    search.run(store, LocalRunner(), lambda event: None, wanted=[wanted])
    after = {found.configuration_id: found for found in store.records()}
    assert after.keys() == before.keys()
    assert {id for id in after if after[id].status != before[id].status} == {one.configuration_id}
    assert after[one.configuration_id].status == "done"


@pytest.mark.parametrize(
    ("fidelity", "scheduler", "in_parts"),
    [(Fidelity(epochs=1), Strict(), looked_at), (TRAINED, None, looked_at), (TRAINED, Strict(), None)],
    ids=["too short for a rung", "no scheduler", "an evaluator that has no parts"],
)
def test_nothing_is_looked_at_where_nothing_can_be_stopped(space: SearchSpace, store: Store, fidelity, scheduler, in_parts) -> None:
    search = make(space, fidelity=fidelity, scheduler=scheduler, in_parts=in_parts)
    search.run(store, LocalRunner(), lambda event: None)
    assert [found.metrics for found in store.records()] == [{"accuracy": 0.25}] * 5, "evaluated as a whole"
