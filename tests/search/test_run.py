"""One run of a study over its store, with a fake evaluator and several requests in flight."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
from search_cases import InFlight, Scripted, small_space, worth

from ranksearch.allocators import Additive, Allocation, Problem
from ranksearch.errors import DenseFailed, FailedInARow, InfeasibleBudget
from ranksearch.evaluation import FailureKind, Fidelity, Outcome, Request
from ranksearch.proxies import Frobenius, free_proxies
from ranksearch.results.conditions import Condition
from ranksearch.samplers import Random, Sampler
from ranksearch.search.events import Announced, Finished, Planned, SearchEvent
from ranksearch.search.loop import IN_A_ROW
from ranksearch.search.run import Objectives, SearchRun, upper_limits
from ranksearch.search.starts import SHARES, Start, optima
from ranksearch.sites import Cost
from ranksearch.space import DENSE, Configuration, SearchSpace
from ranksearch.store import Record, Store

FULL = Fidelity(epochs=0, recalibration=0)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space()


@pytest.fixture
def store(tmp_path: Path):
    with Store.open(tmp_path / "s.db", study="small", fingerprint="f", create=True, write=True) as opened:
        yield opened


def make(space: SearchSpace, *, trials: int, sampler: Sampler | None = None, **changes) -> SearchRun:
    objectives = Objectives(("accuracy", "macs"), {"accuracy": "max", "macs": "min", "params": "min"}, space.baseline)
    given = {"fidelity": FULL, "seed": 3, "proxies": free_proxies(), "allocator": None, "limits": {}, "evaluator": lambda: worth} | changes
    return SearchRun(space=space, objectives=objectives, trials=trials, sampler=sampler or Random(), **given)


def run(search: SearchRun, store: Store, *, workers: int = 3, first: list[Start] | None = None) -> tuple[InFlight, list[SearchEvent]]:
    runner, events = InFlight(workers), []
    search.run(store, runner, events.append, first=first or [])
    return runner, events


def test_objectives_are_minimised_and_costs_relative_to_the_dense_network_where_it_has_any() -> None:
    directions = {"accuracy": "max", "loss": "min", "macs": "min", "launches": "min", "speed": "max"}
    objectives = Objectives(("loss", "speed", "macs", "accuracy", "launches"), directions, Cost(params=9, macs=200, launches=0, speed=4))
    cost = Cost(params=3, macs=50, launches=2, speed=6)
    assert objectives.values({"accuracy": 0.75, "loss": 0.5, "other": 9.0}, cost) == [0.5, -1.5, 0.25, -0.75, 2.0]


def test_a_search_tells_what_it_evaluates_with(space: SearchSpace, store: Store) -> None:
    for trials, screening, said in ((2, False, "evaluating with InFlight"), (4, True, f"evaluating with InFlight and {FULL.name}")):
        _, events = run(make(space, trials=trials, screening=screening), store)
        planned = [e for e in events if isinstance(e, Planned)]
        assert [e.text for e in events if isinstance(e, Announced)][-1] == said and [e.screening for e in planned] == [screening]


def test_everything_evaluated_is_stored_with_its_cost_and_told(space: SearchSpace, store: Store) -> None:
    runner, events = run(make(space, trials=14), store)
    records = list(store.records())
    assert len(records) == len(runner.sent) == 14 and {r.seed for r in records} == {3} and {r.fidelity for r in records} == {FULL.key}
    for record in records:
        cost = space.cost(space.indices(Configuration.from_json(record.configuration)))
        assert dict(record.costs) == dict(cost)
    finished = [e for e in events if isinstance(e, Finished)]
    assert [e.done for e in finished] == list(range(1, 15)) and {e.total for e in finished} == {14}
    solved = list(optima(space, free_proxies(), {}))[:7]
    assert [r.origin for r in runner.sent[:8]] == ["dense", *(start.origin for start in solved)]


def test_a_second_run_goes_on_and_its_sampler_knows_the_first(space: SearchSpace, store: Store) -> None:
    run(make(space, trials=10), store)
    known = {r.configuration_id: r for r in store.records()}
    started: list[Scripted] = []

    class Listening(Scripted):
        def _begin(self, seed: int) -> None:
            super()._begin(seed)
            started.append(self)

    runner, events = run(make(space, trials=13, sampler=Listening([(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)])), store)
    assert Planned(13, 10) in events and len(runner.sent) == 3
    assert known.keys().isdisjoint(r.configuration.id for r in runner.sent)
    heard = {space.configuration(indices).id: values for indices, values in started[0].told[:10]}
    assert heard.keys() == known.keys()
    for id, record in known.items():
        macs = record.costs["macs"] / space.baseline.macs
        assert heard[id] == (None if record.status == "failed" else pytest.approx([-record.metrics["accuracy"], macs]))
    assert run(make(space, trials=13), store)[0].sent == []
    other = run(make(space, trials=2, seed=4), store)[0]
    assert len(other.sent) == 2, "another seed is another set of evaluations"


def test_first_ones_come_before_the_optima_and_count_among_the_starts(space: SearchSpace, store: Store) -> None:
    solved = list(optima(space, free_proxies(), {}))
    mine = [Start(space.candidate([0, 1, 0]), "mine"), Start(solved[0].candidate, "mine")]
    runner, _ = run(make(space, trials=8), store, first=mine)
    origins = [r.origin for r in runner.sent]
    assert origins[:5] == ["dense", "mine", "mine", solved[1].origin, solved[2].origin]
    assert set(origins[5:]) == {"random"}


def test_evaluations_begin_before_a_start_is_solved_and_no_start_in_vain(space: SearchSpace, store: Store) -> None:
    solved: list[int] = []  # how many starts had been solved when each evaluation was asked for

    class Counting(Additive):
        count = 0

        def allocate(self, problem: Problem) -> Allocation:
            Counting.count += 1
            return super().allocate(problem)

    def evaluator(request: Request) -> Outcome:
        solved.append(Counting.count)
        return worth(request)

    search = make(space, trials=8, proxies=[Frobenius()], allocator=Counting(), evaluator=lambda: evaluator)
    run(search, store, workers=1)
    distinct = len(list(optima(space, [Frobenius()], {})))
    assert solved[0] == 0 and solved[:5] == sorted(solved[:5]) and solved[1] == 1
    assert distinct > 4 and Counting.count < len(SHARES) * len(space.costs), "no more than are used"


def test_limits_hold_for_starts_and_sampler(space: SearchSpace, store: Store) -> None:
    limits = upper_limits(space, [Condition.parse("macs <= 0.6")])
    runner, _ = run(make(space, trials=12, limits=limits), store)
    costs = [space.cost(space.indices(r.configuration)).macs for r in runner.sent if r.configuration != DENSE]
    assert len(costs) == 11 and max(costs) <= limits["macs"]


def test_the_front_of_a_fidelity_starts_another_search(space: SearchSpace, store: Store) -> None:
    def by_size(request: Request) -> Outcome:
        """Larger is better, but for those above 0.7 of the dense MACs: so the front is known."""
        macs = space.cost(space.indices(request.configuration)).macs
        return Outcome(request, "done", {"accuracy": macs / space.baseline.macs if macs < 0.7 * space.baseline.macs else 0.0})

    search = make(space, trials=25, evaluator=lambda: by_size)
    run(search, store)
    stored = {r.configuration_id: r.costs["macs"] for r in store.records()}
    expected = {macs for macs in stored.values() if macs < 0.7 * space.baseline.macs}
    starts = search.best(store, space, 100)
    costs = sorted(s.candidate.cost.macs for s in starts)
    assert costs == sorted(expected) and 4 < len(costs) < 24 and {s.origin for s in starts} == {FULL.name}
    few = search.best(store, space, 4)
    assert len(few) == 4 and {s.candidate.configuration.id for s in few} <= {s.candidate.configuration.id for s in starts}
    limit = costs[len(costs) // 2]
    tight = make(space, trials=25, limits={"macs": limit}).best(store, space, 100)
    assert sorted(s.candidate.cost.macs for s in tight) == [macs for macs in costs if macs <= limit]
    narrow = small_space(max_options=3)  # what it does not have cannot start there
    theirs = {narrow.configuration(row).id for row in itertools.product(*map(range, narrow.shape))}
    kept = search.best(store, narrow, 100)
    assert {s.candidate.configuration.id for s in kept} <= theirs
    assert {s.candidate.cost.macs for s in kept} == {macs for id, macs in stored.items() if id in theirs} & expected


def stored(space: SearchSpace, rows: dict[tuple[int, ...], float]) -> Iterable[Record]:
    """Evaluations of a space with their accuracies."""
    for indices, accuracy in rows.items():
        candidate = space.candidate(indices)
        key = candidate.configuration.id, candidate.configuration.to_json(), FULL.key, 3
        yield Record(*key, "done", {"accuracy": accuracy}, candidate.cost)


def test_what_a_store_knows_is_read_in_the_order_in_which_it_was_stored(space: SearchSpace, store: Store) -> None:
    records = list(stored(space, {(0, 0, 1): 0.5, (2, 2, 2): 0.8, (0, 0, 0): 0.4}))
    for record in records:
        store.add(record)
    known = make(space, trials=9).objectives.known(store, FULL, 3)
    assert [*known] == [record.configuration_id for record in records]
    assert make(space, trials=9).objectives.known(store, FULL, 4) == {}


def test_the_fronts_behind_the_first_come_where_it_has_too_few_and_they_are_asked_for(space: SearchSpace, store: Store) -> None:
    """Three sizes: what is better and smaller is on the first front, then what only that beats."""
    first, second = {(0, 0, 0): 0.5, (2, 2, 2): 0.8}, {(1, 1, 1): 0.4, (3, 3, 3): 0.7}
    for record in stored(space, {**second, **first, tuple(space.dense.tolist()): 0.9}):
        store.add(record)
    search = make(space, trials=9)

    def found(count: int, *, deeper: bool) -> list[tuple[int, ...]]:
        return [tuple(start.candidate.indices.tolist()) for start in search.best(store, space, count, deeper=deeper)]

    assert set(found(9, deeper=False)) == first.keys()
    deep = found(9, deeper=True)
    assert set(deep[:2]) == first.keys() and set(deep[2:]) == second.keys() and len(deep) == 4
    assert set(found(3, deeper=True)[:2]) == first.keys() and len(found(3, deeper=True)) == 3


def test_limits_are_the_tightest_and_within_reach(space: SearchSpace) -> None:
    found = upper_limits(space, [Condition.parse("macs <= 0.8 and params <= 0.9"), Condition.parse("macs <= 0.5")])
    assert found == {"macs": space.limit("macs", 0.5), "params": space.limit("params", 0.9)}
    least = space.smallest("params")
    shares = [rf" \({amount / space.baseline.params:.3f} of the dense network's\)" for amount in (space.limit("params", 0.001), least)]
    said = f"params <= {space.limit('params', 0.001):,}{shares[0]}: the smallest that this space reaches is {least:,}{shares[1]}; relax"
    with pytest.raises(InfeasibleBudget, match=said):
        upper_limits(space, [Condition.parse("params <= 0.001")])


class Machine:
    """An evaluator: what is in ``broken`` fails as it says, everything else works."""

    def __init__(self, broken: dict[str, FailureKind | None]) -> None:
        self.broken = broken

    def __call__(self, request: Request) -> Outcome:
        id = request.configuration.id
        if id in self.broken:
            return Outcome(request, "failed", error="it failed", error_kind=self.broken[id])
        return Outcome(request, "done", {"accuracy": (int(id, 16) % 1000) / 1000})


def test_the_dense_network_is_always_tried_again_and_its_failure_stops_the_run(space: SearchSpace, store: Store) -> None:
    machine = Machine({DENSE.id: "configuration"})
    search = make(space, trials=6, evaluator=lambda: machine)
    for attempts in (1, 2):
        runner = InFlight(1)
        with pytest.raises(DenseFailed, match="it failed"):
            search.run(store, runner, lambda event: None)
        assert [r.configuration for r in runner.sent] == [DENSE]
        assert len(store.attempts(DENSE.id, FULL.key, 3)) == attempts and store.count() == 1
    machine.broken = {}
    assert len(run(search, store)[0].sent) == 6
    assert [r.status for r in store.attempts(DENSE.id, FULL.key, 3)] == ["failed", "failed", "done"]
    assert {r.status for r in store.records()} == {"done"} and store.count() == 6


def test_what_failed_is_tried_again_when_asked_but_for_a_configurations_own_fault(space: SearchSpace, store: Store) -> None:
    candidates = [space.candidate(row) for row in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    picks = [candidate.configuration.id for candidate in candidates]
    kinds: list[FailureKind | None] = ["machine", "code", "configuration", None]
    machine = Machine(dict(zip(picks, kinds, strict=True)))
    first = [Start(candidate, "mine") for candidate in candidates]
    run(make(space, trials=10, evaluator=lambda: machine), store, first=first)
    before = {r.configuration_id: r for r in store.records()}
    assert {id: before[id].error_kind for id in picks} == machine.broken
    machine.broken = {picks[2]: "configuration", picks[1]: "machine"}
    runner, _ = run(make(space, trials=10, evaluator=lambda: machine), store)
    assert [r.configuration.id for r in runner.sent] == [picks[0]], "the machine's; others are not asked for"
    # fewer than there are: all that failed is tried again nevertheless, and nothing else
    runner, events = run(make(space, trials=3, evaluator=lambda: machine, retry_failed=True), store)
    assert sorted(r.configuration.id for r in runner.sent) == sorted([picks[1], picks[3]])
    assert {r.origin for r in runner.sent} == {"mine"} and Planned(10, 8) in events
    assert [e.done for e in events if isinstance(e, Finished)] == [9, 10]
    after = {r.configuration_id: r for r in store.records()}
    assert {id: after[id].status for id in picks} == dict(zip(picks, ("done", "failed", "failed", "done"), strict=True))
    assert after[picks[1]].error_kind == "machine" and after[picks[2]] == before[picks[2]]
    assert all(store.attempts(id, FULL.key, 3)[0] == before[id] for id in before), "nothing that was stored is lost"
    assert {id: r for id, r in after.items() if id not in picks} == {id: r for id, r in before.items() if id not in picks}


def test_what_is_not_in_the_space_or_its_limits_is_not_tried_again(space: SearchSpace, store: Store) -> None:
    elsewhere = Configuration({"0": ("tucker2", (1, 1))})
    cost = space.cost(space.dense)
    large = space.candidate([*[n - 1 for n in space.shape[:-1]], 0]).configuration
    for configuration in (elsewhere, large):
        store.add(Record(configuration.id, configuration.to_json(), FULL.key, 3, "failed", {}, cost, "gone", error_kind="machine"))
    limits = upper_limits(space, [Condition.parse("macs <= 0.5")])
    runner, _ = run(make(space, trials=5, limits=limits, retry_failed=True), store)
    assert {elsewhere.id, large.id}.isdisjoint(r.configuration.id for r in runner.sent) and store.count() == 5


def test_an_evaluator_that_leaves_out_an_objective_fails_and_nothing_is_lost_for_it(space: SearchSpace, store: Store) -> None:
    def measure(request: Request) -> Outcome:
        return Outcome(request, "done", {"accuracy": 0.5} if request.configuration == DENSE else {})

    runner, _ = run(make(space, trials=4, evaluator=lambda: measure), store)
    found = {r.configuration_id: r for r in store.records()}
    assert len(runner.sent) == len(found) == 4 and found.pop(DENSE.id).status == "done"
    assert {(r.status, r.error_kind, r.error) for r in found.values()} == {("failed", "code", "the evaluator did not report accuracy")}
    assert len(run(make(space, trials=5, evaluator=lambda: worth), store)[0].sent) == 1


@pytest.mark.parametrize(("kind", "remedy"), [("code", "run again with --retry-failed"), ("machine", "run again: they are tried again")])
def test_failures_in_a_row_end_the_search(space: SearchSpace, store: Store, kind: FailureKind, remedy: str) -> None:
    """Not before there are so many, whatever is between them but a success."""
    ids = iter(range(100))

    def measure(request: Request) -> Outcome:
        number = next(ids)
        if number in (0, IN_A_ROW):  # the dense network, and one that comes just in time
            return Outcome(request, "done", {"accuracy": 0.5})
        own = number == IN_A_ROW + 3
        return Outcome(request, "failed", error=f"no {number}", error_kind="configuration" if own else kind)

    runner = InFlight(1)
    with pytest.raises(FailedInARow, match=f"5 evaluations in a row failed, the last one with no {2 * IN_A_ROW + 1}; .*{remedy}"):
        make(space, trials=40, evaluator=lambda: measure).run(store, runner, lambda event: None)
    assert len(runner.sent) == store.count() == 2 * IN_A_ROW + 2, "all of them are stored"


class Killed(BaseException):
    """The driver's end, at a moment of the test's choice."""


def test_what_was_measured_and_not_stored_is_stored_by_the_next_run(space: SearchSpace, store: Store, monkeypatch) -> None:
    ids: list[str] = []

    def measure(request: Request) -> Outcome:
        ids.append(request.configuration.id)
        return Outcome(request, "done", {"accuracy": 0.25 + len(ids)}, seconds=2.0, provenance={"host": "h"})

    def killed(record: Record) -> bool:
        if store.count() == 3:
            raise Killed
        return real(record)

    real = store.add
    monkeypatch.setattr(store, "add", killed)
    with pytest.raises(Killed):
        make(space, trials=8, evaluator=lambda: measure).run(store, InFlight(1), lambda event: None)
    monkeypatch.undo()
    assert store.count() == 3 and len(ids) == 4 and store.spool is not None
    (left,) = store.spool.iterdir()
    assert store.spool.stat().st_mode & 0o077 == 0
    (store.spool / "odd.json").write_text("{")  # torn, and of another study: both are left where they are
    (store.spool / "other.json").write_text(left.read_text().replace('"f"', '"another"'))
    runner, events = run(make(space, trials=8, evaluator=lambda: measure), store)
    assert ids[3] not in {r.configuration.id for r in runner.sent} and len(set(ids)) == len(ids) == store.count() == 8
    record = next(r for r in store.records() if r.configuration_id == ids[3])
    assert (record.metrics, record.seconds, record.provenance) == ({"accuracy": 4.25}, 2.0, {"host": "h"}) and record.origin
    assert next(e.text for e in events if isinstance(e, Announced)).startswith("1 evaluations that were finished")
    assert {path.name for path in store.spool.iterdir()} == {"odd.json", "other.json"}


def test_failures_are_not_written_down_and_no_folder_is_left(space: SearchSpace, store: Store) -> None:
    seen: list[int] = []

    def measure(request: Request) -> Outcome:
        assert store.spool is not None
        seen.append(len(list(store.spool.iterdir())))
        own = request.configuration != DENSE
        return Outcome(request, "failed" if own else "done", {} if own else {"accuracy": 1.0}, error_kind="configuration" if own else None)

    run(make(space, trials=5, evaluator=lambda: measure), store, workers=1)
    assert seen == [0] * 5 and store.spool is not None and not store.spool.exists()
