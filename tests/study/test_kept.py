"""What a study has read of its store is read again as soon as anybody has written to it, whoever that is and in whichever way."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from ranksearch.evaluation import Fidelity
from ranksearch.space import Configuration
from ranksearch.space.specs import SpaceSpec, named
from ranksearch.store import Record, Store, database
from ranksearch.study import Study
from ranksearch.tasks import Classification

FIDELITY = Fidelity(epochs=0, recalibration=0)


def made(store: Path) -> Study:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    x, y = torch.randn(8, 16), torch.arange(8) % 2
    task = Classification(train=(x, y), validation=(x, y), batch_size=8, learning_rate=0.1)
    return Study("kept", model=net, task=task, space=SpaceSpec(named("svd")), store=store, fidelity=FIDELITY)


def add(store: Store, rank: int, accuracy: float, **other: Any) -> Record:
    choice = Configuration({"0": ("svd", (rank,))})
    values = {"status": "done", "metrics": {"accuracy": accuracy, "loss": 1.0}} | other
    record = Record(choice.id, choice.to_json(), FIDELITY.key, 0, costs={"params": 50 * rank, "macs": 50 * rank}, **values)
    assert store.add(record)
    return record


@pytest.fixture
def study(tmp_path: Path) -> Study:
    found = made(tmp_path / "s.db")
    with found.open_store(write=True) as store:
        add(store, 1, 0.5)
        add(store, 2, 0.6)
        add(store, 3, 0.0, status="failed", metrics={}, error="MemoryError: no", error_kind="machine")
    return found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written only just now is kept too."""
    monkeypatch.setattr(database, "RACE", -1)


def test_a_store_that_nobody_writes_to_is_read_once(study: Study, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[Callable[[], pd.DataFrame]] = [
        study.evaluations, lambda: study.front(all=True), lambda: study.front("accuracy > 0.1", all=True), study.results.layers,
        study.results.history,
    ]  # fmt: skip
    before = [frame() for frame in frames]
    columns, configurations = Store.columns, Store.configurations

    def of_some(self: Store, names: Any, *, ids: Any = None, **options: Any) -> Any:
        return columns(self, names, ids=ids, **options) if ids is not None else pytest.fail("read again")

    monkeypatch.setattr(Store, "columns", of_some)
    monkeypatch.setattr(Store, "configurations", lambda self, ids=None: configurations(self, ids) if ids else pytest.fail("read again"))
    for frame, known in zip(frames, before, strict=True):
        pd.testing.assert_frame_equal(frame(), known)


def test_what_a_caller_changes_stays_his(study: Study, at_once: None) -> None:
    for frame in (study.evaluations, study.results.history, lambda: study.front(all=True), study.results.layers):
        before = frame().copy(deep=True)
        theirs = frame()
        for name in theirs.select_dtypes("number").columns:
            values = theirs[name].array
            values[:] = 0  # in place, past what pandas notices
        pd.testing.assert_frame_equal(frame(), before)


def one_more(study: Study, path: Path) -> None:
    with study.open_store(write=True) as store:
        add(store, 4, 0.7)


def tried_again(study: Study, path: Path) -> None:
    choice = Configuration({"0": ("svd", (3,))})
    metrics = {"accuracy": 0.9, "loss": 0.1}
    record = Record(choice.id, choice.to_json(), FIDELITY.key, 0, "done", metrics, costs={"params": 150, "macs": 150})
    with study.open_store(write=True) as store:
        assert store.add_attempt(record)


def edited(study: Study, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE ranksearch_evaluations SET metrics = replace(metrics, '0.6', '0.8')")
        connection.commit()


def another_file(study: Study, path: Path) -> None:
    """Of the same study, with as many evaluations."""
    other = made(path.with_name("other.db"))
    with other.open_store(write=True) as store:
        for rank in (1, 2, 3):
            add(store, rank, 0.9)
    shutil.copy(path.with_name("other.db"), path)


@pytest.mark.parametrize("write", [one_more, tried_again, edited, another_file])
@pytest.mark.parametrize("kept", [True, False])
def test_what_others_write_is_seen(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any, kept: bool) -> None:
    if kept:
        monkeypatch.setattr(database, "RACE", -1)
    frames: Any = [study.evaluations, lambda: study.front(all=True), study.results.layers, study.results.history]
    before = [frame() for frame in frames]
    write(made(tmp_path / "s.db"), tmp_path / "s.db")
    now = [frame() for frame in frames]
    fresh = made(tmp_path / "s.db")
    anew = [fresh.evaluations(), fresh.front(all=True), fresh.results.layers(), fresh.results.history()]
    for found, known in zip(now, anew, strict=True):
        pd.testing.assert_frame_equal(found, known)
    assert now[0]["accuracy"].max() > before[0]["accuracy"].max()


def test_what_is_computed_is_not_taken_from_another_study(study: Study, at_once: None, tmp_path: Path) -> None:
    study.evaluations()
    other = study.replace(store=tmp_path / "o.db")
    with other.open_store(write=True) as store:
        add(store, 5, 0.4)
    assert len(other.evaluations()) == 1 and len(study.evaluations()) == 3


def test_nothing_is_kept_of_memory_and_of_what_was_written_just_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open("sqlite://", study="s", fingerprint="f") as store:
        assert store.stamp() is None
    with Store.open(tmp_path / "s.db", study="s", fingerprint="f", write=False) as store:
        assert store.stamp() is None or store.stamp() == store.stamp()
        later = database.time.time_ns() + 10**9
        monkeypatch.setattr(database.time, "time_ns", lambda: later)
        assert store.stamp() == store.stamp() is not None
        monkeypatch.setattr(database, "RACE", 10**12)
        assert store.stamp() is None
