"""A study is served while it is written: readers see what lands, the writer is not held up, and nothing in the store is changed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import sqlite3
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ranksearch.evaluation import Fidelity
from ranksearch.space import DENSE, Configuration
from ranksearch.store import Record, Store
from ranksearch.study import Study
from ranksearch.study.live import Live
from ranksearch.tasks import Classification


def _study(folder: Path) -> Study:
    x, y = torch.randn(64, 3, 6, 6), torch.arange(64) % 2
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    task = Classification(train=(x[:32], y[:32]), validation=(x[32:], y[32:]), batch_size=16, learning_rate=0.05)
    return Study("live", model=model, task=task, fidelity=Fidelity(epochs=0, recalibration=1), store=folder / "live.db")


def _record(study: Study, configuration: Configuration, accuracy: float) -> Record:
    costs = {"params": 1000, "macs": 20_000}
    metrics = {"accuracy": accuracy, "loss": 1 - accuracy}
    return Record(configuration.id, configuration.to_json(), study.fidelity.key, 0, "done", metrics, costs, seconds=2.0, origin="nsga2")


def _contents(path: Path) -> str:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        return hashlib.sha256("\n".join(connection.iterdump()).encode()).hexdigest()


def test_a_study_is_served_while_it_is_written(tmp_path: Path) -> None:
    study = _study(tmp_path)
    reading = study.replace()
    with study.open_store(write=True) as store:
        store.add(_record(study, DENSE, 0.9))
        with reading.report.serve(every=0.02, trials=10) as dashboard:
            number, body = dashboard.latest
            first = json.loads(gzip.decompress(body))["study"]
            assert first["networks"]["id"] == [DENSE.id] and first["live"]["planned"] == 10
            assert first["live"]["writers"] == Store.writers(study.store_url) == [f"pid {os.getpid()} on {socket.gethostname()}"]
            other = Configuration({"0": ("svd", (2,))})
            assert store.add(_record(study, other, 0.8)), "the lock is still the writer's"
            for _ in range(500):
                if dashboard.latest[0] > number:
                    break
                threading.Event().wait(0.02)
            second: Any = json.loads(gzip.decompress(dashboard.latest[1]))["study"]
            assert set(second["networks"]["id"]) == {DENSE.id, other.id} and second["live"]["evaluations"] == 2
            assert second["options"][0]["words"] == ["r=2"]
    assert Store.writers(study.store_url) == []


def test_progress_is_towards_what_the_search_was_asked_for(tmp_path: Path) -> None:
    study = _study(tmp_path)
    reading = study.replace()
    study.run(3, runner="local")
    live = Live(reading, fidelity=None, trials=None, proxies=False, build=None)
    version = live.version()
    assert live.data()["live"]["planned"] == 3 and live.data()["live"]["left"] == 0
    study.run(2, runner="local")  # which it has
    study.enqueue(Configuration({"0": ("svd", (1,))}))  # opens the store for writing, and knows of no plan
    assert live.data()["live"]["planned"] == 3
    study.run(4, runner="local")
    assert live.version() != version and live.data()["live"]["planned"] == 4
    asked = Live(reading, fidelity=None, trials=10, proxies=False, build=None)
    assert asked.data()["live"]["planned"] == 10


def test_reading_changes_nothing(tmp_path: Path) -> None:
    study = _study(tmp_path)
    with study.open_store(write=True) as store:
        store.add(_record(study, DENSE, 0.9))
    before = _contents(tmp_path / "live.db")
    live = Live(study, fidelity=None, trials=None, proxies=True, build=None)
    version, data = live.version(), live.data()
    assert data["live"]["writers"] == [] and data["live"]["last"] is not None
    assert "at least 3 are needed" in data["proxies"]["reason"], "too few to judge proxies by"
    assert live.version() == version and _contents(tmp_path / "live.db") == before
