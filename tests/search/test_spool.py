"""Outcomes that are written down before they are handed on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ranksearch.errors import StoreUnreachable
from ranksearch.evaluation import Fidelity, Outcome, Point, Progress, Request
from ranksearch.search.spool import WAITS, Keeper, Spool, Spooling
from ranksearch.space import Configuration
from ranksearch.store import Record

ASKED = Request(Configuration({"a": ("svd", (1,))}), Fidelity(epochs=2), 3, "mine")
ON_ITS_WAY = Progress(ASKED, (Point(1.0, {"accuracy": 0.25}),))
DONE = Outcome(ASKED, "done", {"accuracy": 0.5}, seconds=2.0, provenance={"host": "h"}, curve=ON_ITS_WAY.curve)


def record_of(number: int) -> Record:
    configuration = Configuration({"a": ("svd", (number,))})
    return Record(configuration.id, configuration.to_json(), "full", 3, "done", {"accuracy": 0.5}, {"params": 1, "macs": 2})


def outcome_of(number: int, *, status: str = "done") -> Outcome:
    request = Request(Configuration({"a": ("svd", (number,))}), Fidelity(epochs=2), 3)
    return Outcome(request, status, {"accuracy": 0.5} if status == "done" else {})  # type: ignore[arg-type]


class Away:
    """A store that does not answer the first ``times`` times; ``added`` is what it has."""

    url = "postgresql://somewhere/studies"

    def __init__(self, times: int) -> None:
        self.times = times
        self.added: list[tuple[str, Record]] = []

    def add(self, record: Record, how: str = "add") -> bool:
        if self.times:
            self.times -= 1
            raise StoreUnreachable("no route to host")
        self.added.append((how, record))
        return True

    def add_attempt(self, record: Record) -> bool:
        return self.add(record, "attempt")


def keeper(store: Away, spool: Spool | None, again: tuple[str, ...] = ()) -> tuple[Keeper, list[str], list[float]]:
    """A keeper, what it tells, and how long it sleeps."""
    said: list[str] = []
    waits: list[float] = []
    return Keeper(store, spool, again, said.append, sleep=waits.append), said, waits  # type: ignore[arg-type]


def test_what_comes_while_the_server_is_away_is_written_down_and_stored_in_order_when_it_is_back(spool: Spool) -> None:
    store = Away(2)
    keep, said, waits = keeper(store, spool, (record_of(2).configuration_id,))
    keep.keep(outcome_of(1), record_of(1))
    keep.keep(outcome_of(2, status="failed"), record_of(2))
    assert [outcome.request for outcome in spool.outcomes()] == [outcome_of(1).request], "a failure is not worth keeping"
    assert len(said) == 1 and f"is written down in {spool.folder}" in said[0] and store.added == []
    keep.keep(outcome_of(3), record_of(3))
    assert [(how, record.configuration_id) for how, record in store.added] == [
        (how, record_of(number).configuration_id) for how, number in (("add", 1), ("attempt", 2), ("add", 3))
    ]  # fmt: skip
    assert said[1:] == [f"store {store.url!r} is back"] and list(spool.outcomes()) == [] and waits == []
    keep.keep(outcome_of(4), record_of(4))
    keep.finish()
    assert len(store.added) == 4 and len(said) == 2 and waits == []


def test_at_the_end_it_is_tried_for_a_while_and_then_left_to_the_next_run(spool: Spool) -> None:
    store = Away(3)
    keep, _, waits = keeper(store, spool)
    keep.keep(outcome_of(1), record_of(1))
    keep.finish()
    assert waits == [*WAITS[:2]] and len(store.added) == 1 and list(spool.outcomes()) == []
    store = Away(1000)
    keep, _, waits = keeper(store, spool)
    keep.keep(outcome_of(1), record_of(1))
    keep.keep(outcome_of(2), record_of(2))
    with pytest.raises(StoreUnreachable, match="2 outcomes are not stored yet: run again then"):
        keep.finish()
    assert waits == [*WAITS] and len(list(spool.outcomes())) == 2
    keep, said, _ = keeper(Away(1), None)
    with pytest.raises(StoreUnreachable):
        keep.keep(outcome_of(1), record_of(1))
    assert said == []


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "spool", "f")
    made.open()
    return made


def test_an_outcome_that_comes_in_parts_is_written_down_before_it_is_handed_on(spool: Spool) -> None:
    def evaluate(request: Request) -> Iterator[Progress | Outcome]:
        yield ON_ITS_WAY
        yield DONE

    found = Spooling(evaluate, spool)(ASKED)
    assert not isinstance(found, Outcome)
    assert next(found) == ON_ITS_WAY and list(spool.outcomes()) == []
    assert next(found) == DONE and list(spool.outcomes()) == [DONE]
    assert list(found) == []


def test_what_failed_or_cannot_be_written_down_is_handed_on_all_the_same(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Outcome(ASKED, "failed", error="no")
    assert Spooling(lambda request: failed, spool)(ASKED) is failed and list(spool.outcomes()) == []
    elsewhere = Spool(spool.folder / "of another machine", "f")
    assert Spooling(lambda request: DONE, elsewhere)(ASKED) is DONE and not elsewhere.folder.exists()

    def full(self: Spool, outcome: Outcome) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Spool, "put", full)
    assert Spooling(lambda request: DONE, spool)(ASKED) is DONE


def test_outcomes_of_another_study_and_what_cannot_be_read_stay_where_they_are(spool: Spool) -> None:
    other = Spool(spool.folder, "another")
    spool.put(DONE)
    other.put(outcome_of(2))
    (spool.folder / "half.json").write_text('{"fingerprint": "f", "configuration"')
    (spool.folder / "none.json").write_text('{"fingerprint": "f"}')
    assert list(spool.outcomes()) == [DONE] and [outcome.request for outcome in other.outcomes()] == [outcome_of(2).request]
    assert len(list(spool.folder.iterdir())) == 4


def test_what_is_stored_is_dropped_with_its_checkpoint_whether_or_not_it_is_there(spool: Spool) -> None:
    other = Request(Configuration({"b": ("svd", (1,))}), ASKED.fidelity, 3)
    for request in (ASKED, other):
        spool.put(Outcome(request, "done", {"accuracy": 0.5}))
        spool.checkpoint(request).write_bytes(b"state")
    spool.drop(ASKED)
    spool.drop(ASKED)
    assert [outcome.request for outcome in spool.outcomes()] == [other] and sorted(spool.folder.iterdir()) == sorted(
        [spool.checkpoint(other), *spool.folder.glob("*.json")]
    )  # fmt: skip
    spool.close()
    assert spool.folder.is_dir(), "something is in it"
    spool.drop(other)
    spool.close()
    assert not spool.folder.exists()
