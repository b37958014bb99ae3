"""Outcomes that are written down before they are handed on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ranksearch.evaluation import Fidelity, Outcome, Point, Progress, Request
from ranksearch.search.spool import Spool, Spooling
from ranksearch.space import Configuration

ASKED = Request(Configuration({"a": ("svd", (1,))}), Fidelity(epochs=2), 3, "mine")
ON_ITS_WAY = Progress(ASKED, (Point(1.0, {"accuracy": 0.25}),))
DONE = Outcome(ASKED, "done", {"accuracy": 0.5}, seconds=2.0, provenance={"host": "h"}, curve=ON_ITS_WAY.curve)


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
