"""A search that stops evaluations early: what is stopped is stored as censored, never as a result, and made again on request alone."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Evaluator, Fidelity, Request, Stepwise
from ranksearch.schedulers import ParetoASHA, Scheduler
from ranksearch.search.halting import Halting
from ranksearch.space import DENSE, Configuration, svd_only
from ranksearch.store import Record
from ranksearch.study import Finished, Study
from ranksearch.tasks import Classification, FineTuning, Task


def make(store: Path, task: type[Classification] = Classification, **changes) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, 4, 4, generator=generator)
    y = torch.arange(32) % 4
    data = task(train=(x[:16], y[:16]), validation=(x[16:], y[16:]), batch_size=8, learning_rate=0.05)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    options = {"space": svd_only(), "fidelity": Fidelity(epochs=4, recalibration=0), "store": store, "objectives": ("loss", "macs")}
    return Study("stopping", model=net, task=data, **(options | changes))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))
    return tmp_path / "s.db"


def configuration_of(study: Study, id: str) -> Configuration:
    with study.open_store(write=False) as opened:
        return Configuration.from_json(opened.configuration(id))


class Listed(Scheduler):
    """Stops what it is told to stop, and remembers what it was asked about and told."""

    name = "listed"

    def __init__(self, *stops: int) -> None:
        self.stops, self.asked, self.values = stops, [], []  # arrivals at the first rung that are stopped

    def rungs(self, length: float) -> tuple[float, ...]:
        return tuple(rung for rung in (1.0, 2.0) if rung < length)

    def _goes_on(self, values) -> bool:
        self.asked.append(len(values))
        self.values.append(values[-1].tolist())
        return len(values) not in self.stops


def search(study: Study, trials: int = 8, **options) -> list[Request]:
    found: list[Request] = []

    def note(event: object) -> None:
        if isinstance(event, Finished):
            found.append(event.outcome.request)

    study.run(trials, runner="local", proxies=["frobenius"], on_event=note, **options)
    return found


def test_what_is_stopped_is_censored(store: Path) -> None:
    study, scheduler = make(store), Listed(2, 4)
    made = search(study, scheduler=scheduler)
    frame = study.evaluations()
    stopped = frame[frame["status"] == "stopped"]
    assert len(made) == len(frame) == 8 and len(stopped) >= 2, "what is stopped counts among the trials"
    assert stopped["loss"].isna().all() and stopped["error_kind"].isna().all()
    assert set(stopped["error"]) <= {"stopped early, after 1 of 4 epochs", "stopped early, after 2 of 4 epochs"}
    assert len(study.results.failures()) == 0, "it is no failure"
    assert not set(stopped["id"]) & set(study.front(all=True)["id"]) and study.front()["on_front"].any()
    curves = study.results.curves()
    assert list(curves.columns) == ["id", "fidelity", "seed", "status", "epochs", "accuracy", "loss"]
    assert set(curves["id"]) == set(frame["id"]) - {DENSE.id} and curves[curves["status"] == "stopped"].groupby("id").size().le(2).all()
    first = curves[curves["epochs"] == 1.0]
    assert scheduler.asked and sorted(loss for loss, _ in scheduler.values if loss in set(first["loss"])) == sorted(first["loss"])
    shares = dict(zip(frame["id"], frame["macs_rel"], strict=True))
    assert {macs for _, macs in scheduler.values} == {shares[id] for id in curves["id"]}, "it judges by the study's objectives"
    history = study.results.history()
    assert history.loc[history["status"] == "stopped", "gain"].fillna(0).eq(0).all()
    with pytest.raises(InvalidArgument, match=r"stopped early.*enqueue"):
        study.results.replay(stopped["id"].iloc[0])
    assert not list(store.parent.glob("*.spool/*")), "no checkpoint is left"


def test_it_is_made_again_when_it_is_asked_for_alone(store: Path) -> None:
    study = make(store)
    search(study, scheduler=Listed(2, 3))
    frame = study.evaluations()
    first, second = frame.loc[frame["status"] == "stopped", "id"].tolist()[:2]
    assert search(make(store), retry_failed=True) == [] and search(make(store), scheduler=Listed(1, 2, 3, 4)) == []
    wanted = make(store).enqueue(configuration_of(study, first))
    made = search(make(store), scheduler=Listed(*range(1, 30)))
    assert [one.configuration for one in made] == [wanted], "and then it is never stopped"
    assert make(store).evaluate(configuration_of(study, second)).status == "done"
    after = make(store).evaluations().set_index("id")["status"]
    assert after[first] == after[second] == "done" and (after == "stopped").sum() == (frame["status"] == "stopped").sum() - 2


def test_a_run_that_goes_on_compares_with_those_before_and_continues_what_was_cut(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(store.with_name("whole.db"))
    search(whole, scheduler=ParetoASHA(eta=2))
    steps: list[int] = []

    class Counting(FineTuning):
        def advance(self, epochs: float) -> None:
            before = self.done
            super().advance(epochs)
            steps.append(self.done - before)
            if len(steps) == cut:
                raise KeyboardInterrupt

    monkeypatch.setattr("ranksearch.evaluation.evaluator.FineTuning", Counting)
    cut = 10**9
    search(make(store.with_name("counted.db")), scheduler=ParetoASHA(eta=2))
    expected = sum(steps)
    steps.clear()
    cut = 6
    with contextlib.suppress(KeyboardInterrupt):
        search(make(store), scheduler=ParetoASHA(eta=2))
    done, before = len(make(store).evaluations()), sum(steps)
    lost, cut = steps[-1], 10**9
    assert 1 <= done < 8
    search(make(store), scheduler=ParetoASHA(eta=2))
    assert sum(steps) - before <= expected - before + lost, "nothing is trained again but what came after the last checkpoint"
    columns = ["id", "status", "loss"]
    pd.testing.assert_frame_equal(make(store).evaluations()[columns], whole.evaluations()[columns])
    assert make(store).results.curves()["loss"].tolist() == whole.results.curves()["loss"].tolist()


def test_what_cannot_be_stopped_is_refused_before_any_work(store: Path) -> None:
    class Whole(Classification):  # type: ignore[misc]
        training = Task.training

    short = {"fidelity": Fidelity(epochs=0.5, recalibration=0)}
    for study, scheduler, said in (
        (make(store, **short), "pareto_asha", "no evaluation of 0.5 epochs"),
        (make(store), "pareto_ahsa", "did you mean 'pareto_asha'"),
        (make(store, objectives=("macs", "params")), "asha", "no objective changes"),
        (make(store, Whole), "asha", "task=Whole"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            study.run(4, runner="local", scheduler=scheduler)
    assert not store.exists()


def test_points_of_other_rungs_are_told_and_not_asked_about() -> None:
    """A checkpoint may be of a search with another scheduler."""
    from ranksearch.evaluation import Point, Progress

    scheduler = ParetoASHA(eta=2).start([False])
    halting = Halting(scheduler, (1.0, 2.0), lambda metrics, cost: [metrics["loss"]], lambda request: {}, spared={"x"})
    request = Request(DENSE, Fidelity(epochs=4), 0)
    for k in range(4):
        scheduler.observe(f"t{k}", 2.0, [0.0])
        scheduler.observe(f"t{k}", 1.0, [0.0])
    assert halting.goes_on(Progress(request, (Point(1.5, {"loss": 9.0}),)))
    assert not halting.goes_on(Progress(request, (Point(1.0, {"loss": 9.0}), Point(2.0, {"loss": 9.0}))))
    assert scheduler.goes_on(DENSE.id, 1.0, [9.0]), "the earlier point was told"


def test_curves_that_lack_an_objective_are_not_compared_with() -> None:
    """The task reports more than it did when they were measured."""
    scheduler = ParetoASHA(eta=2).start([False])
    halting = Halting(scheduler, (1.0,), lambda metrics, cost: [metrics["loss"]], lambda request: {})
    costs = {"params": 1, "macs": 1}
    halting.learn(
        Record(f"{k}", "{}", "full", 0, "stopped", {}, costs, curve=[(1.0, {"accuracy": 0.5}), (2.0, {"loss": 0.0})]) for k in range(3)
    )
    assert scheduler.goes_on("late", 1.0, [9.0]), "there is nobody at the rung"
    halting.learn([Record("3", "{}", "full", 0, "done", {"loss": 0.0}, costs, curve=[(1.0, {"loss": 0.0})])])
    assert not scheduler.goes_on("later", 1.0, [10.0])


def test_evaluations_in_parts_are_those_at_once(store: Path) -> None:
    study = make(store)
    search(study, 4, scheduler=Listed())
    frame = study.evaluations()
    for id, loss in zip(frame["id"], frame["loss"], strict=True):
        outcome = Evaluator(study.spectra, study.task)(Request(configuration_of(study, id), study.fidelity, study.seed))
        assert outcome.metrics["loss"] == loss
    assert Stepwise(study.evaluator, ()).rungs == ()
