"""The frames of a study, against its space and the networks that it builds."""

from __future__ import annotations

import contextlib
import math
import shutil
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ranksearch.costs import COSTS, Bytes
from ranksearch.errors import RanksearchWarning
from ranksearch.evaluation import Fidelity
from ranksearch.space import Configuration, mixture
from ranksearch.store import Record
from ranksearch.study import Study
from ranksearch.tasks import Classification


def make(store: str | Path, **changes: Any) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 3, 6, 6, generator=generator)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    task = Classification(train=(x[:64], y[:64]), validation=(x[64:], y[64:]), batch_size=32, learning_rate=0.05)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    return Study("small", model=net, task=task, store=store, fidelity=Fidelity(epochs=0, recalibration=0), **changes)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A searched study that nobody writes to."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKSEARCH_HOME", str(home))
        made = make(home / "small.db")
        made.run(14, runner="local")
    return made


def test_layers_are_the_options_of_the_space(study: Study) -> None:
    every, layers = study.evaluations(), study.results.layers()
    space = study.space
    assert len(layers) == len(every) * len(space.ladders)
    assert list(layers["site"].cat.categories) == [ladder.site.name for ladder in space.ladders]
    assert layers["id"].tolist() == np.repeat(every["id"].to_numpy(object), len(space.ladders)).tolist()
    ladders = {ladder.site.name: ladder for ladder in space.ladders}
    costs = every.set_index("id")
    for row in layers.to_dict("records"):
        ladder = ladders[row["site"]]
        rank = tuple(int(entry) for entry in row["rank"].split("x")) if row["rank"] else ()
        position = ladder.position(row["decomposition"], rank)
        assert position is not None
        option, dense = ladder.option(position), ladder.option(-1)
        assert (row["macs"], row["params"]) == (option.cost.macs, option.cost.params)
        assert row["macs_rel"] == option.cost.macs / dense.cost.macs
        assert row["macs_share"] == option.cost.macs / costs.loc[row["id"], "macs"]
        assert row["relative_error"] == option.frobenius
        assert row["description"] == ("" if not rank else study.spectra.decomposition(row["decomposition"]).describe(ladder.site, rank))
    sums = layers.groupby("id", observed=True)["macs"].sum()
    assert (sums + space.fixed.macs).to_dict() == costs["macs"].to_dict()


def test_layers_of_some_and_without_errors(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = study.front()["id"].tolist()
    some = study.results.layers(ids)
    every = study.results.layers()
    pd.testing.assert_frame_equal(
        some.astype({"id": "string"}), every[every["id"].isin(ids).to_numpy()].reset_index(drop=True).astype({"id": "string"}),
        check_categorical=False,
    )  # fmt: skip
    monkeypatch.setattr(study.spectra, "profile", lambda *_: pytest.fail("factorized"))
    blind = study.results.layers(errors=False)
    assert blind["relative_error"].isna().tolist() == (blind["decomposition"] != "dense").tolist()


def test_layers_go_to_parquet_and_back(study: Study, tmp_path: Path) -> None:
    layers = study.results.layers()
    layers.to_parquet(tmp_path / "layers", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "layers"), layers)


def test_history_ends_with_the_front(study: Study) -> None:
    history, front = study.results.history(), study.front()
    assert set(history.loc[history["on_front"], "id"]) == set(front.loc[front["on_front"], "id"])
    assert history["gain"].sum() == pytest.approx(history["hypervolume"].iloc[-1]) and (history["gain"] >= 0).all()
    assert {"dense", "surrogate"} <= set(history["finder"]) and not history["finder"].astype(str).str.contains("<=").any()


def test_proxies_stand_beside_what_was_measured(study: Study) -> None:
    frame = study.results.proxies(calibrate=False)
    scores = study.report.scores(calibrate=False, batches=0)
    for row in scores.to_dict("records"):
        (found,) = frame.loc[frame["id"] == row["id"]].to_dict("records")
        assert found[f"score:{row['proxy']}"] == row["score"] and found["accuracy"] == row["measured"]
    assert len(frame) == scores["id"].nunique() and not (frame["factorized"] == 0).any()


def test_a_cost_that_the_study_has_gained_is_that_of_the_networks(study: Study) -> None:
    counting = study.replace(costs=(*COSTS, Bytes()))
    every, front = counting.evaluations(), counting.front(objectives=["accuracy", "bytes"], all=True)
    assert every["bytes"].dtype == "Int64"
    for frame in (every, front):
        for id, found in zip(frame["id"], frame["bytes"], strict=True):
            network = study.build(id)
            assert found == sum(p.numel() * p.element_size() for p in network.parameters())
    layers = counting.results.layers()
    assert {"bytes", "bytes_rel", "bytes_share"} <= set(layers.columns)


def test_other_spaces_and_failures_are_in_the_frames(tmp_path: Path) -> None:
    study = make(tmp_path / "s.db", space=mixture().replace(include=("0", "2")))
    with study.open_store(write=True) as store:
        for configuration, status in ((Configuration(), "done"), (Configuration({"5": ("svd", (1,))}), "failed")):
            metrics = {"accuracy": 0.5, "loss": 1.0} if status == "done" else {}
            kind = None if status == "done" else "machine"
            key = study.fidelity.key
            cost = {"params": 10, "macs": 100}
            store.add(Record(configuration.id, configuration.to_json(), key, 0, status, metrics, cost, "killed", error_kind=kind))  # pyright: ignore[reportArgumentType]
    layers = study.results.layers()
    assert list(layers["site"].cat.categories) == ["0", "2", "5"]
    (row,) = layers[layers["decomposition"] == "svd"].to_dict("records")
    assert (row["site"], row["rank"], row["params"]) == ("5", "1", 128 + 2 + 2) and math.isfinite(row["relative_error"])
    (failure,) = study.results.failures().to_dict("records")
    assert failure["retry"] and failure["error"] == "killed" and failure["attempt"] == 1


def test_damaged_rows_are_left_out_of_every_frame(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "copy.db"
    shutil.copy(study.store_url, path)
    ids = study.evaluations()["id"].tolist()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE ranksearch_evaluations SET metrics = '{' WHERE number = 2")
        connection.execute("UPDATE ranksearch_evaluations SET metrics = '{\"accuracy\": NaN}' WHERE number = 3")
        connection.execute("UPDATE ranksearch_configurations SET json = '{\"a' WHERE id = ?", (ids[4],))
    damaged = study.replace(store=path)
    kept = [id for row, id in enumerate(ids) if row not in (1, 2, 4)]
    with pytest.warns(RanksearchWarning, match="damaged and left out"):
        assert damaged.evaluations()["id"].tolist() == kept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RanksearchWarning)
        assert set(damaged.results.layers()["id"]) == set(kept) and len(damaged.results.failures()) == 0
        assert set(damaged.front(all=True)["id"]) == set(kept)
