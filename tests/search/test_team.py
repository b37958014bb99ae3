"""Several searches of one study over a store on a server, and a server that is away for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from search_cases import InFlight, small_space

from ranksearch.errors import StoreUnreachable
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.proxies import free_proxies
from ranksearch.samplers import Random
from ranksearch.search.events import Announced
from ranksearch.search.known import Known
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


class Server:
    """What a `Team` asks of a store: everything new is found once; nothing is answered while it is ``away``."""

    def __init__(self) -> None:
        self.new, self.away = {"theirs"}, False

    def answered(self, value):
        if self.away:
            raise StoreUnreachable("no route to host")
        return value

    def claim(self, id: str, fidelity: str, seed: int, *, again: bool) -> bool:
        return self.answered(id == "free")

    def others(self, fidelity: str, seed: int) -> int:
        return self.answered(2)

    def new_ids(self, fidelity: str, seed: int, seen: set[str]) -> set[str]:
        return self.answered(self.new - seen)


def test_news_are_what_others_stored_since_and_nothing_is_read_where_there_are_none() -> None:
    read: list[set[str]] = []

    def known(ids: set[str]) -> dict[str, Known]:
        read.append(ids)
        return {id: Known(DENSE, [0.5]) for id in ids}

    server = Server()
    team = Team(server, "full", 3, known, set(), {"mine"})  # type: ignore[arg-type]
    assert team.busy() == 0
    assert team.news() == {"theirs": Known(DENSE, [0.5])} and team.busy() == 2
    assert team.news() == {} and read == [{"theirs"}] and team.seen == {"mine", "theirs"}
    server.new = {"theirs", "later"}
    assert team.news().keys() == {"later"}


def test_while_the_server_is_away_everything_is_free_and_nothing_is_new() -> None:
    server = Server()
    team = Team(server, "full", 3, lambda ids: {}, set(), set())  # type: ignore[arg-type]
    assert not team.claim("taken") and team.claim("free") and team.seen == {"free"}
    server.away = True
    assert team.claim("taken") and team.seen == {"free", "taken"} and team.news() == {}


@pytest.mark.parametrize("take_over", [False, True])
def test_the_claims_of_others_are_ended_where_that_is_asked_for_alone(space: SearchSpace, take_over: bool) -> None:
    ended: list[str] = []
    store = SimpleNamespace(claims=SimpleNamespace(take_over=lambda: ended.append("all")))
    team = make(space, None, take_over=take_over)._team(store, {"known"}, {"failed"})  # type: ignore[arg-type]
    assert ended == (["all"] if take_over else [])
    assert team.again == {"failed"} and team.seen == {"known", "failed"}


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
