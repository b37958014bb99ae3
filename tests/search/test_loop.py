"""The search loop, driven with a fake evaluator and several requests in flight."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from search_cases import InFlight, Scripted, anything, small_space, worth

from ranksearch.errors import DenseFailed, FailedInARow
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.runners import WAIT
from ranksearch.samplers import GP, SAMPLERS, Random, Sampler
from ranksearch.search.known import Known
from ranksearch.search.loop import IN_A_ROW, SearchLoop
from ranksearch.search.starts import Start
from ranksearch.search.team import Nobody
from ranksearch.space import DENSE, Candidate, Configuration, SearchSpace


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space()


def values(outcome: Outcome, candidate: Candidate) -> list[float]:
    return [-outcome.metrics["accuracy"], candidate.cost.macs / 1e6]


def make(space: SearchSpace, sampler: Sampler, *, trials: int, **changes) -> tuple[SearchLoop, Sampler, list[Outcome]]:
    """A loop, its started sampler, and what it keeps."""
    kept: list[Outcome] = []
    admissible = changes.pop("admissible", anything)
    started = sampler.start(space.shape, 2, seed=0, admissible=admissible)
    given = {"starts": (), "known": {}, "fidelity": Fidelity(epochs=0), "seed": 7, "values": values} | changes
    loop = SearchLoop(space, started, admissible=admissible, trials=trials, keep=lambda o, c: kept.append(o), **given)
    return loop, started, kept


def starts_of(space: SearchSpace, count: int, *, seed: int = 0) -> list[Start]:
    rows = np.unique(space.sample(10 * count, seed=seed), axis=0)
    rows = rows[(rows != space.dense).any(axis=1)]
    assert len(rows) >= count
    return [Start(space.candidate(row), f"start {number}") for number, row in enumerate(rows[:count])]


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.name)
def test_every_sampler_gets_what_was_asked_for_and_nothing_twice(space: SearchSpace, kind: Sampler, workers: int) -> None:
    kind = GP(startup=26) if isinstance(kind, GP) else kind  # what it models takes it a second each
    loop, _, kept = make(space, kind, trials=30, starts=starts_of(space, 4))
    runner = InFlight(workers)
    runner.run(worth, loop.propose, loop.report)
    ids = [request.configuration.id for request in runner.sent]
    assert len(ids) == len(set(ids)) == 30 == loop.done and runner.most == workers
    assert {o.request.configuration.id for o in kept} == set(ids) and len(kept) == 30
    assert all((r.fidelity, r.seed) == (Fidelity(epochs=0), 7) for r in runner.sent)
    assert loop.propose() is None


def test_a_space_that_is_exhausted_waits_for_what_is_in_flight(space: SearchSpace) -> None:
    """Three configurations are admissible: who asks for a fourth waits while one of them is out, since it may fail, and then has all."""
    rows = [space.dense, space.dense - [1, 0, 0], space.dense - [0, 1, 0]]
    usable = {tuple(row.tolist()) for row in rows}
    loop, _, _ = make(space, Scripted(rows), trials=10, admissible=lambda indices: tuple(indices.tolist()) in usable)
    sent = [loop.propose() for _ in range(3)]
    assert all(isinstance(request, Request) for request in sent)
    for request in sent:
        assert loop.propose() is WAIT
        loop.report(worth(request))
    assert loop.propose() is None and loop.done == 3


def test_a_sampler_that_has_no_more_ideas_leaves_nothing_out() -> None:
    """Two options at each of three layers, and a sampler that proposes the dense network for ever."""
    space = small_space(1)
    assert space.size == 8
    loop, _, kept = make(space, Scripted([space.dense]), trials=20)
    InFlight(2).run(worth, loop.propose, loop.report)
    assert loop.done == len(kept) == 8


class Busy(Nobody):
    """Two other evaluations, of which nothing is heard."""

    def busy(self) -> int:
        return 2


def test_what_others_are_about_counts_among_the_trials(space: SearchSpace) -> None:
    loop, _, _ = make(space, Random(), trials=4, others=Busy())
    sent = [loop.propose(), loop.propose()]
    assert all(isinstance(request, Request) for request in sent) and loop.propose() is WAIT
    for request in sent:
        assert isinstance(request, Request)
        loop.report(Outcome(request, "done", {"accuracy": 0.5}))
    assert loop.propose() is None and loop.done == 2


def test_what_others_found_of_a_request_in_flight_waits_for_its_own_outcome(space: SearchSpace) -> None:
    class Others:
        def __init__(self) -> None:
            self.found: dict[str, Known] = {}

        def claim(self, id: str) -> bool:
            return True

        def news(self) -> dict[str, Known]:
            return self.found

        def busy(self) -> int:
            return 0

    others = Others()
    loop, sampler, _ = make(space, Scripted([(2, 2, 2), (2, 2, 3)]), trials=9, others=others)
    dense = loop.propose()
    others.found = {DENSE.id: Known(DENSE, [-0.1, 0.2])}
    loop.propose()
    assert loop.done == 0 and not sampler.told  # type: ignore[attr-defined]
    others.found = {}
    loop.report(worth(dense))
    assert loop.done == 1 and len(sampler.told) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_sampler_is_told_every_outcome_once_with_its_values(space: SearchSpace, workers: int) -> None:
    rows = [tuple(row) for row in itertools.product(range(3), repeat=3)]
    starts = [Start(space.candidate(row), "start") for row in ((4, 4, 4), (4, 4, 3), (3, 4, 4))]  # none of the sampler's
    loop, sampler, kept = make(space, Scripted(rows), trials=20, starts=starts)
    InFlight(workers).run(worth, loop.propose, loop.report)
    told = dict(sampler.told)  # type: ignore[attr-defined]
    assert len(sampler.told) == len(told) == len(kept) == 20  # type: ignore[attr-defined]
    for outcome in kept:
        candidate = space.candidate(space.indices(outcome.request.configuration))
        expected = values(outcome, candidate) if outcome.status == "done" else None
        assert told[tuple(candidate.indices.tolist())] == expected
    assert None in told.values() and any(v is not None for v in told.values()), "both kinds must occur for this to say anything"


def test_a_duplicate_of_what_is_known_is_answered_at_once_and_not_evaluated(space: SearchSpace) -> None:
    first, second = (0, 1, 2), (1, 1, 1)
    loop, sampler, kept = make(space, Scripted([first, first, first, second, second]), trials=3)
    InFlight(1).run(worth, loop.propose, loop.report)
    assert len(kept) == 3
    answers = [values for indices, values in sampler.told if indices == first]  # type: ignore[attr-defined]
    assert len(answers) == 3, "once when it landed, and once for each time that it was proposed again"
    assert all(answer == answers[0] for answer in answers)


def test_a_duplicate_in_flight_is_answered_when_it_lands(space: SearchSpace) -> None:
    first, second = (0, 1, 2), (1, 1, 1)
    loop, sampler, _ = make(space, Scripted([first, first, second]), trials=3, known={DENSE.id: Known(DENSE, [0.0, 0.0])})
    told = sampler.told  # type: ignore[attr-defined]
    one, two = loop.propose(), loop.propose()
    assert isinstance(one, Request) and isinstance(two, Request)
    assert [space.indices(r.configuration).tolist() for r in (one, two)] == [list(first), list(second)]
    assert [indices for indices, _ in told] == [tuple(space.dense)]
    loop.report(Outcome(one, "done", {"accuracy": 0.5}))
    assert [indices for indices, _ in told][1:] == [first]


def test_the_sampler_is_told_what_earlier_runs_found_before_it_proposes(space: SearchSpace) -> None:
    elsewhere = Configuration({"0": ("tucker2", (1, 1))})
    one, two = space.configuration([0, 1, 2]), space.configuration([2, 2, 2])
    known = {c.id: Known(c, v) for c, v in ((one, [-0.5, 0.1]), (elsewhere, [-0.9, 0.1]), (two, None))}
    loop, sampler, kept = make(space, Scripted([(0, 1, 2), (1, 1, 1)]), trials=5, known=known)
    assert sampler.told == [((0, 1, 2), [-0.5, 0.1]), ((2, 2, 2), None)]  # type: ignore[attr-defined]
    InFlight(2).run(worth, loop.propose, loop.report)
    assert [o.request.configuration.id for o in kept] != [] and {one.id, two.id, elsewhere.id}.isdisjoint(
        o.request.configuration.id for o in kept
    )  # fmt: skip
    assert len(kept) == 2 and loop.done == 5, "what another space of the study held counts too"


def test_a_sampler_that_repeats_itself_does_not_stop_the_search(space: SearchSpace) -> None:
    """Nothing is evaluated twice, in flight or after, whatever the sampler and the starts propose."""
    same = starts_of(space, 1)[0]
    loop, _, kept = make(space, Scripted([same.candidate.indices]), trials=12, starts=[same, same, same])
    runner = InFlight(5)
    runner.run(worth, loop.propose, loop.report)
    origins = [request.origin for request in runner.sent]
    assert len({o.request.configuration.id for o in kept}) == len(kept) == 12
    assert origins == ["dense", "start 0", *["random"] * 10]


@pytest.mark.parametrize(("trials", "known"), [(11, 0), (4, 0), (10, 3)])
def test_starts_take_half_of_the_trials_at_most(space: SearchSpace, trials: int, known: int) -> None:
    starts = starts_of(space, 20)
    earlier = {s.candidate.configuration.id: Known(s.candidate.configuration, [0.0, 0.0]) for s in starts[:known]}
    loop, _, _ = make(space, Random(), trials=trials, starts=starts, known=earlier)
    runner = InFlight(3)
    runner.run(worth, loop.propose, loop.report)
    origins = [request.origin for request in runner.sent]
    assert origins[: 1 + trials // 2 - known] == ["dense", *(s.origin for s in starts[known : trials // 2])]
    assert set(origins[1 + trials // 2 - known :]) == {"random"} and len(origins) == trials - known


def test_it_waits_for_what_is_in_flight_and_ends_after_it(space: SearchSpace) -> None:
    loop, _, _ = make(space, Random(), trials=2)
    requests = [loop.propose(), loop.propose()]
    assert all(isinstance(request, Request) for request in requests)
    assert loop.propose() is WAIT, "a third would be one evaluation too many"
    for number, request in enumerate(requests):
        assert isinstance(request, Request)
        loop.report(worth(request))
        assert loop.propose() is (WAIT if number == 0 else None)


def test_a_space_is_evaluated_to_its_end() -> None:
    tiny = small_space(max_options=1)
    loop, _, kept = make(tiny, Random(), trials=100)
    InFlight(3).run(worth, loop.propose, loop.report)
    assert len(kept) == tiny.size == 8
    assert loop.propose() is None


def test_what_the_constraints_forbid_is_never_evaluated(space: SearchSpace) -> None:
    def admissible(indices: np.ndarray) -> bool:
        return int(indices.sum()) <= 6

    only = (0, 0, 0)  # the sampler repeats itself, so that the loop looks for something new
    loop, _, kept = make(space, Scripted([only]), trials=15, admissible=admissible)
    InFlight(4).run(worth, loop.propose, loop.report)
    found = [space.indices(o.request.configuration) for o in kept if o.request.configuration != DENSE]
    assert len(found) == 14 and all(admissible(indices) for indices in found)


def test_the_dense_networks_failure_ends_the_search_and_others_are_not_held_against_them(space: SearchSpace) -> None:
    """Failures that come before the dense network's may have its cause: they are kept only once it is known not to be so."""
    loop, sampler, kept = make(space, Scripted([(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)]), trials=8)
    dense, *others = (loop.propose() for _ in range(4))
    assert isinstance(dense, Request) and dense.configuration == DENSE
    fine, broken, late = others
    assert isinstance(fine, Request) and isinstance(broken, Request) and isinstance(late, Request)
    assert loop.report(Outcome(fine, "done", {"accuracy": 0.5})) != []
    assert loop.report(Outcome(broken, "failed", error="RuntimeError: no")) == [] and loop.done == 1 == len(kept)
    again = loop.propose()
    assert isinstance(again, Request) and again.configuration != broken.configuration, "what is held back is not asked for again"
    with pytest.raises(DenseFailed, match=r"RuntimeError: no luck; .* free some memory or disk.* run again"):
        loop.report(Outcome(dense, "failed", error="RuntimeError: no\nluck", error_kind="machine"))
    assert [o.request for o in kept] == [fine, dense] and kept[1].status == "failed"
    assert len(sampler.told) == 2  # type: ignore[attr-defined]


def test_failures_that_were_held_back_are_taken_in_after_the_dense_network(space: SearchSpace) -> None:
    loop, sampler, kept = make(space, Scripted([(0, 0, 0), (0, 0, 1), (0, 0, 2)]), trials=4)
    dense, one, two = (loop.propose() for _ in range(3))
    assert isinstance(dense, Request) and isinstance(one, Request) and isinstance(two, Request)
    assert loop.report(Outcome(two, "failed", error="b")) == [] == loop.report(Outcome(one, "failed", error="a"))
    settled = loop.report(Outcome(dense, "done", {"accuracy": 0.5}))
    assert [o.request for o in settled] == [dense, two, one] == [o.request for o in kept] and loop.done == 3
    assert [values for _, values in sampler.told][1:] == [None, None]  # type: ignore[attr-defined]
    last = loop.propose()
    assert isinstance(last, Request)
    assert [o.request for o in loop.report(Outcome(last, "failed", error="c"))] == [last], "nothing is held back any more"


def test_what_is_tried_again_comes_after_the_dense_network_and_all_of_it(space: SearchSpace) -> None:
    again, starts = starts_of(space, 6)[:4], starts_of(space, 6)[4:]
    loop, _, _ = make(space, Random(), trials=5, again=again, starts=starts)
    runner = InFlight(1)
    runner.run(lambda request: Outcome(request, "done", {"accuracy": 0.5}), loop.propose, loop.report)
    assert [r.configuration for r in runner.sent] == [DENSE, *(s.candidate.configuration for s in again)]


def test_an_outcome_is_kept_before_anything_is_learned_from_it(space: SearchSpace) -> None:
    def full(outcome: Outcome, candidate: Candidate) -> None:
        raise OSError("disk full")

    sampler = Scripted([(1, 1, 1)]).start(space.shape, 2, seed=0, admissible=anything)
    loop = SearchLoop(
        space, sampler, starts=(), admissible=anything, fidelity=Fidelity(), seed=0, trials=3, known={}, values=values, keep=full
    )
    request = loop.propose()
    assert isinstance(request, Request) and request.configuration == DENSE
    with pytest.raises(OSError, match="disk full"):
        loop.report(worth(request))
    assert sampler.told == [] and loop.done == 0


def test_so_many_failures_end_a_search_that_goes_on_too_and_no_fewer(space: SearchSpace) -> None:
    """The dense network is known of an earlier run: nothing has succeeded in this one."""
    loop, _, kept = make(space, Random(), trials=40, known={DENSE.id: Known(DENSE, [0.0, 0.0])})
    for number in range(1, IN_A_ROW + 1):
        request = loop.propose()
        assert isinstance(request, Request)
        outcome = Outcome(request, "failed", error="no", error_kind="code")
        if number < IN_A_ROW:
            assert loop.report(outcome) == [outcome]
        else:
            with pytest.raises(FailedInARow):
                loop.report(outcome)
    assert len(kept) == IN_A_ROW
