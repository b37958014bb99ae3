"""Several searches of one study over a store on a server, and a server that is away for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from search_cases import InFlight, small_space

from ranksearch.errors import StoreUnreachable
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.proxies import free_proxies
from ranksearch.samplers import Random
from ranksearch.search.events import Announced
from ranksearch.search.run import Objectives, SearchRun
from ranksearch.search.spool import Keeper
from ranksearch.search.team import Team
from ranksearch.space import DENSE, SearchSpace
from ranksearch.store import Store

FULL = Fidelity(epochs=0, recalibration=0)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return small_space()


@pytest.fixture
def url(postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path))
    yield postgres.database()


def make(space: SearchSpace, evaluate, **changes) -> SearchRun:
    objectives = Objectives(("accuracy", "macs"), {"accuracy": "max", "macs": "min", "params": "min"}, space.baseline)
    given = {"fidelity": FULL, "seed": 3, "trials": 24, "proxies": free_proxies(), "allocator": None, "limits": {}} | changes
    return SearchRun(space=space, objectives=objectives, sampler=Random(), evaluator=lambda: evaluate, **given)


def opened(url: str) -> Store:
    return Store.open(url, study="small", fingerprint="f", create=True, write=True)


def test_what_failed_is_claimed_as_something_tried_again() -> None:
    class Claims:
        def claim(self, id: str, fidelity: str, seed: int, *, again: bool) -> bool:
            return again

    team = Team(Claims(), "full", 3, lambda ids: {}, {"failed"}, set())  # type: ignore[arg-type]
    assert team.claim("failed") and not team.claim("new") and team.seen == {"failed"}


def test_two_searches_share_the_work_and_each_evaluation_is_made_once(space: SearchSpace, url: str) -> None:
    made: list[tuple[str, int]] = []
    both = threading.Barrier(2)

    def search(number: int) -> None:
        def evaluate(request: Request) -> Outcome:
            if not any(who == number for _, who in made):
                both.wait(timeout=60)  # both are at work before either has a result
            made.append((request.configuration.id, number))
            return Outcome(request, "done", {"accuracy": 0.5})

        with opened(url) as store:
            make(space, evaluate).run(store, InFlight(2), lambda event: None)

    threads = [threading.Thread(target=search, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    ids = [id for id, _ in made]
    assert len(set(ids)) == len(ids) and {who for _, who in made} == {0, 1} and ids.count(DENSE.id) == 1
    with Store.open(url, create=False) as store:
        # both may ask for the last one at the same moment
        assert {r.configuration_id for r in store.records()} == set(ids) and 24 <= len(ids) <= 25


def test_what_another_search_is_about_is_left_to_it_until_it_is_taken_over(space: SearchSpace, url: str) -> None:
    made: list[str] = []

    def evaluate(request: Request) -> Outcome:
        made.append(request.configuration.id)
        return Outcome(request, "done", {"accuracy": 0.5})

    with opened(url) as other, opened(url) as store:
        assert other.claim(DENSE.id, FULL.key, 3)
        make(space, evaluate, trials=5).run(store, InFlight(1), lambda event: None)
        assert DENSE.id not in made and len(made) == 4, "it counts among those that the study is to have"
        make(space, evaluate, trials=5, take_over=True).run(store, InFlight(1), lambda event: None)
        assert made[4:] == [DENSE.id] and store.count() == 5


def test_a_server_that_is_restarted_costs_nothing_that_was_measured(space: SearchSpace, url: str, postgres) -> None:
    made: list[str] = []

    def evaluate(request: Request) -> Outcome:
        made.append(request.configuration.id)
        if len(made) == 3:
            postgres.stop()
        if len(made) == 6:
            postgres.start()
        return Outcome(request, "done", {"accuracy": 0.5})

    events = []
    with opened(url) as store:
        make(space, evaluate, trials=9).run(store, InFlight(1), events.append)
        assert len(made) == len(set(made)) == 9 and [r.configuration_id for r in store.records()] == made, "in order, all of them"
        assert store.spool is not None and not store.spool.exists()
    said = [event.text for event in events if isinstance(event, Announced)]
    assert sum("is written down in" in text for text in said) == 1 and said.count(f"store {store.url!r} is back") == 1


def test_what_a_server_that_stays_away_was_not_told_is_stored_by_the_next_run(
    space: SearchSpace, url: str, postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def evaluate(request: Request) -> Outcome:
        made.append(request.configuration.id)
        if len(made) == 3:
            postgres.stop()
        return Outcome(request, "done", {"accuracy": 0.5})

    waits: list[float] = []
    monkeypatch.setattr(Keeper.__init__, "__kwdefaults__", {"sleep": waits.append})
    with opened(url) as store:
        with pytest.raises(StoreUnreachable, match="4 outcomes are not stored yet: run again then"):
            make(space, evaluate, trials=6).run(store, InFlight(1), lambda event: None)
        assert sum(waits) > 30
        postgres.start()
        make(space, evaluate, trials=6).run(store, InFlight(1), lambda event: None)
        assert len(made) == 6 and sorted(r.configuration_id for r in store.records()) == sorted(made)
