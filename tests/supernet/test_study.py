"""Supernets of a study: trained, found again, measured at as a fidelity of their own, and built from."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity, Request
from ranksearch.results.pareto import spread_front
from ranksearch.runners import LocalRunner, RayTuneRunner
from ranksearch.samplers import Surrogate
from ranksearch.search.events import Announced, Planned, Profiled
from ranksearch.space import DENSE, Configuration, SpaceSpec, mixture
from ranksearch.space.specs import named
from ranksearch.study import Screening, Study
from ranksearch.supernet import TrainingStep
from ranksearch.supernet.study import named_fidelity, sizes
from ranksearch.tasks import Classification


def make(*, space: SpaceSpec | None = None, noise: float = 0.0) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 3, 6, 6, generator=generator) + noise
    y = (x.mean(dim=(1, 2, 3)) > noise).long()
    task = Classification(train=(x[:96], y[:96]), validation=(x[96:], y[96:]), batch_size=32, learning_rate=0.05)
    torch.manual_seed(0)
    features = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    net = nn.Sequential(*features, nn.Flatten(), nn.Linear(128, 2))
    return Study("small", model=net, task=task, space=space, fidelity=Fidelity(epochs=0, recalibration=1))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """The store of a study with a trained supernet, that was searched with it."""
    url = str(tmp_path_factory.mktemp("supernet") / "small.db")
    study = make().replace(store=url)
    study.train_supernet("joint", epochs=1, recalibration=2)
    study.run(8, runner="local", screening=Screening(count=14))
    return url


def attached(store: str | Path, study: Study | None = None) -> Study:
    return (study or make()).replace(store=store)


def supernet_rows(study: Study):
    frame = study.evaluations()
    return frame[frame["fidelity"].str.startswith("supernet-joint-")]


def test_epochs_that_are_none_are_refused_before_any_work(tmp_path: Path) -> None:
    events: list = []
    with pytest.raises(InvalidArgument, match="epochs=-1"):
        attached(tmp_path / "s.db").train_supernet("joint", epochs=-1, on_event=events.append)
    assert not events


def test_training_goes_on_where_it_stopped_and_is_loaded_once_finished(tmp_path: Path) -> None:
    whole = attached(tmp_path / "a" / "s.db").train_supernet("sandwich", epochs=2)
    study = attached(tmp_path / "b" / "s.db")

    def stop(event) -> None:
        if isinstance(event, TrainingStep) and event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.train_supernet("sandwich", epochs=2, on_event=stop)
    with pytest.raises(InvalidArgument, match=r"not trained to its end: .*sandwich, 2 epochs"):
        study.supernets.load()
    events: list = []
    trained = attached(tmp_path / "b" / "s.db").train_supernet("sandwich", epochs=2, on_event=events.append)
    assert [e.step for e in events if isinstance(e, TrainingStep)] == [5, 6]
    assert trained.key == whole.key
    for name, value in whole.supernet.state_dict().items():
        assert torch.equal(value, trained.supernet.state_dict()[name]), name
    again: list = []
    loaded = attached(tmp_path / "b" / "s.db").train_supernet("sandwich", epochs=2, on_event=again.append)
    assert not any(isinstance(e, TrainingStep) for e in again) and loaded.key == whole.key
    found = attached(tmp_path / "b" / "s.db").supernets.load("sandwich")
    configuration = sizes(found)[0][1]
    assert found.evaluate(configuration) == whole.evaluate(configuration)


def test_key_holds_all_that_decides_the_training(tmp_path: Path) -> None:
    study = attached(tmp_path / "s.db")
    first = study.train_supernet("joint", epochs=0.3)
    changes = ({"epochs": 0.6}, {"seed": 1}, {"sampling": "small_rank"}, {"weight": 0.25}, {"method": "sandwich"})
    keys = [study.train_supernet(**({"method": "joint", "epochs": 0.3} | change)).key for change in changes]
    assert len({first.key, *keys}) == 6
    assert study.train_supernet("joint", epochs=0.3, recalibration=3).key == first.key
    other = attached(tmp_path / "s.db", make(noise=1.0))
    with pytest.raises(InvalidArgument, match="no supernet of this study is trained"):
        other.supernets.load()


def test_types_that_do_not_project_are_left_out_and_named(tmp_path: Path) -> None:
    study = attached(tmp_path / "s.db", make(space=mixture().replace(decompositions=named("svd", "tensor_train"))))
    events: list = []
    trained = study.train_supernet("joint", epochs=0.3, on_event=events.append)
    assert {o.decomposition for ladder in trained.space.ladders for o in ladder.options} == {"svd", "dense"}
    assert list(trained.left_out) == ["tensor_train"] and trained.left_out["tensor_train"] > 0
    assert any(isinstance(e, Announced) and "tensor_train (" in e.text for e in events)
    nothing = attached(tmp_path / "t.db", make(space=mixture().replace(decompositions=named("tensor_train"))))
    with pytest.raises(InvalidArgument, match="no option of it is a projection"):
        nothing.train_supernet()


def test_rows_say_their_fidelity_and_fronts_are_apart(store: str) -> None:
    study = attached(store)
    frame = study.evaluations()
    key = study.supernets.load().fidelity.key
    assert key.endswith(":epochs=0,recalibration=2")
    assert frame["fidelity"].value_counts().to_dict() == {key: 14, study.fidelity.key: 8}
    assert set(study.front(all=True)["fidelity"]) == {study.fidelity.key}
    for name in ("supernet", "joint", "supernet-joint", key, key.split("-")[2][:6]):
        assert set(study.front(all=True, fidelity=name)["fidelity"]) == {key}
    with pytest.raises(InvalidArgument, match=r"fidelity='sandwich': nothing was measured at it; the store has full.*supernet-joint"):
        study.front(fidelity="sandwich")


def test_evaluations_begin_with_the_front_of_the_supernet(store: str) -> None:
    study = attached(store)
    frame = study.evaluations()
    full = frame[frame["fidelity"] == study.fidelity.key].reset_index(drop=True)
    name = study.supernets.load().fidelity.name
    assert full["id"].iloc[0] == DENSE.id and full["origin"].iloc[1] == name
    front = study.front(fidelity="supernet")
    taken = full[full["origin"] == name]
    assert len(taken) == min(Surrogate().starts(8), (front["on_front"] & ~front["is_dense"]).sum())  # the default sampler's
    assert set(taken["id"]) <= set(front[front["on_front"]]["id"])


def test_the_same_search_again_measures_nothing(store: str) -> None:
    events: list = []
    attached(store).run(8, runner="local", screening=Screening("joint", 14), on_event=events.append)
    assert [e for e in events if not isinstance(e, (Profiled, Announced))] == [Planned(14, 14, True), Planned(8, 8)]


def test_stored_metrics_are_those_of_the_network_that_is_built(store: str) -> None:
    study = attached(store)
    rows = supernet_rows(study)
    for row in rows.to_dict("records"):
        network = study.build(row["id"], fidelity="supernet")
        assert not any("supernet" in type(m).__module__ for m in network.modules()) and not network.training
        measured = study.task.measure(network)
        assert measured["accuracy"] == row["accuracy"] and measured["loss"] == pytest.approx(row["loss"], rel=1e-4)
        assert sum(p.numel() for p in network.parameters()) == row["params"]


def test_export_at_the_supernets_fidelity(store: str, tmp_path: Path) -> None:
    from ranksearch.networks.export import load, read_manifest

    study = attached(store)
    row = next(r for r in supernet_rows(study).to_dict("records") if r["factorized"])
    manifest = read_manifest(study.export(row["id"], tmp_path / "net", fidelity="joint"))
    assert manifest["fidelity"] == row["fidelity"]
    assert manifest["measured"]["accuracy"] == manifest["metrics"]["accuracy"] == row["accuracy"]
    again = load(tmp_path / "net", make().model)
    assert study.task.measure(again)["accuracy"] == row["accuracy"]


def test_evaluator_travels_and_says_what_it_cannot_do(store: str) -> None:
    study = attached(store)
    trained = study.supernets.load()
    before = {k: v.clone() for k, v in trained.supernet.state_dict().items()}
    copy = pickle.loads(pickle.dumps(trained.evaluator))
    row = supernet_rows(study).iloc[3]
    request = Request(study.results.configuration(row["id"]), trained.fidelity, 0)
    outcome = copy(request)
    assert outcome.metrics["accuracy"] == row["accuracy"] and outcome.metrics["loss"] == pytest.approx(row["loss"], rel=1e-6)
    wrong = Configuration.from_json('{"0": ["tensor_ring", [2]]}')
    failed = copy(Request(wrong, trained.fidelity, 0))
    assert failed.status == "failed" and "no projection" in str(failed.error)
    trained.build(request.configuration)
    for name, value in trained.supernet.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_workers_measure_what_this_process_measures(store: str) -> None:
    study = attached(store)
    trained = study.supernets.load()
    rows = supernet_rows(study).iloc[2:6]
    for runner in (LocalRunner(), RayTuneRunner(workers=1)):
        requests = [Request(study.results.configuration(id), trained.fidelity, 0) for id in rows["id"]]
        outcomes = []
        runner.run(trained.evaluator, lambda todo=requests: todo.pop(0) if todo else None, outcomes.append)
        found = {o.request.configuration.id: o.metrics["loss"] for o in outcomes}
        for id, loss in zip(rows["id"], rows["loss"], strict=True):
            assert found[id] == pytest.approx(loss, rel=1e-4)


def test_constraints_hold_while_screening(store: str, tmp_path: Path) -> None:
    study = attached(tmp_path / "s.db")
    study.train_supernet("joint", epochs=0.3)
    study.run(5, runner="local", screening=Screening("joint", 8), constraints=["macs <= 0.6"])
    frame = study.evaluations()
    assert (frame[frame["id"] != DENSE.id]["macs_rel"] <= 0.6).all() and len(frame) == 13


def test_proxies_report_judges_the_supernet(store: str, tmp_path: Path) -> None:
    study = attached(store)
    study.run(runner="local", trials=12)
    frame = study.proxies(calibrate=False, metric="loss")
    row = frame[(frame["proxy"] == "supernet-joint") & (frame["fidelity"] == study.fidelity.key)]
    evaluations = study.evaluations()
    ids = [set(evaluations[evaluations["fidelity"] == key]["id"]) - {DENSE.id} for key in evaluations["fidelity"].unique()]
    assert len(row) == 1 and row["count"].iloc[0] == len(ids[0] & ids[1]) >= 3
    assert not len(frame[(frame["proxy"] == "supernet-joint") & frame["fidelity"].str.startswith("supernet")])
    scores = study.report.scores(calibrate=False, metric="loss")
    scores = scores[scores["proxy"] == "supernet-joint"]
    known = supernet_rows(study).set_index("id")["loss"]
    assert np.allclose(scores["score"], known.loc[scores["id"]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.train_supernet("sandwhich"), "did you mean 'sandwich'"),
        (lambda s: s.train_supernet(sampling="front_guide"), "did you mean 'front_guided'"),
        (lambda s: s.train_supernet("plain", sampling="ratio"), "'plain' draws no configurations"),
        (lambda s: s.train_supernet("joint", wieght=1), "wieght: method 'joint' has weight.*did you mean 'weight'"),
        (lambda s: s.train_supernet(epochs=0), "epochs=0: must be a finite number above 0"),
        (lambda s: s.train_supernet(recalibration=-1), "recalibration=-1"),
        (lambda s: s.run(screening=Screening(count=0)), "count=0: must be a whole number, 1 or more"),
        (
            lambda s: s.run(runner="local", screening=Screening()),
            r"no supernet of this study is trained in .*ranksearch train-supernet STUDY",
        ),
    ],
)
def test_errors(call, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=message):
        call(attached(tmp_path / "s.db"))


def test_several_supernets_have_to_be_named(tmp_path: Path) -> None:
    study = attached(tmp_path / "s.db")
    first, second = study.train_supernet("joint", epochs=0.3), study.train_supernet("joint", epochs=0.3, seed=1)
    study.train_supernet("trp", epochs=0.3)
    assert study.supernets.load("trp").entry.method == "trp" and study.supernets.load(second.key[:6]).key == second.key
    for which in (True, "joint"):
        with pytest.raises(InvalidArgument, match=rf"several are trained: .*{first.key[:8]}.*name one"):
            study.supernets.load(which)
    with pytest.raises(InvalidArgument, match=r"no trained supernet is called that; did you mean 'joint'\?; this study has joint"):
        study.supernets.load("joiny")


def test_spread_front_takes_the_front_from_end_to_end() -> None:
    values = [(x / 20, (1 - x / 20) ** 2) for x in range(21)] + [(0.9, 0.9), (0.5, 0.25)]
    chosen = spread_front(values, 5)
    assert 21 not in chosen and len(set(chosen)) == 5
    shares = sorted(values[i][0] for i in chosen)
    assert shares[0] < 0.15 and shares[-1] > 0.5 and min(b - a for a, b in pairwise(shares)) > 0.05
    assert len(spread_front(values, 100)) == 21 and spread_front([], 3) == []
    assert spread_front([(1.0,), (0.5,), (0.7,)], 2) == [1]


def test_fidelities_by_name() -> None:
    names = ("supernet-joint-ab12cd34:epochs=0,recalibration=16", "supernet-trp-0012cd34:epochs=0,recalibration=4")
    keys = ["full:epochs=1,recalibration=8", *names]
    for text, index in (("full", 0), (keys[1], 1), ("trp", 2), ("ab12", 1), ("supernet-joint-ab12cd34", 1)):
        assert named_fidelity(text, map(Fidelity.parse, keys)).key == keys[index]
    with pytest.raises(InvalidArgument, match="may be supernet-joint"):
        named_fidelity("supernet", map(Fidelity.parse, keys))
    with pytest.raises(InvalidArgument, match="one is written like full"):
        Fidelity.parse("full")
