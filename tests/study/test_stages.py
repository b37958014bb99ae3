"""A study in stages, with an evaluator that costs nothing: what each stage evaluates, and that it goes on wherever it was cut short."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import ranksearch as rs
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Evaluator, Fidelity, Outcome, Request
from ranksearch.results.pareto import non_dominated
from ranksearch.schedulers import ParetoASHA
from ranksearch.search import events
from ranksearch.space import DENSE, Configuration, svd_only
from ranksearch.study import Planned, Screening, Study
from ranksearch.study.stages import Stage
from ranksearch.tasks import Classification

NONE, SHORT, LONG = Fidelity(epochs=0, recalibration=0), Fidelity(epochs=1, recalibration=0), Fidelity(epochs=4, recalibration=0)
STAGES = [Stage(NONE, 14), Stage(SHORT, 7), Stage(LONG, 4)]


class Fake:
    """In the place of `Evaluator.__call__`: a loss that depends on configuration and epochs; counts, and is cut short at a number."""

    def __init__(self) -> None:
        self.made: list[Request] = []
        self.cut = -1

    def __call__(self, request: Request) -> Outcome:
        if len(self.made) == self.cut:
            self.cut = -1
            raise KeyboardInterrupt
        self.made.append(request)
        number = int(request.configuration.id, 16) % 1000 / 1000
        metrics = {"accuracy": number, "loss": number / (1 + request.fidelity.epochs)}
        return Outcome(request, "done", metrics, seconds=1.0)

    def of(self, fidelity: Fidelity) -> list[Configuration]:
        return [one.configuration for one in self.made if one.fidelity == fidelity]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(Evaluator, "__call__", lambda self, request: made(request))
    return made


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))
    return tmp_path / "s.db"


def make(store: Path, stages=STAGES, channels: int = 8, **changes: Any) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, 4, 4, generator=generator)
    y = torch.arange(32) % 4
    task = Classification(train=(x[:16], y[:16]), validation=(x[16:], y[16:]), batch_size=8, learning_rate=0.05)
    torch.manual_seed(0)
    convolutions = nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, channels, 2)
    net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))
    options = {"space": svd_only(), "store": store, "objectives": ("loss", "macs"), "stages": stages}
    return Study("staged", model=net, task=task, **(options | changes))


def search(study: Study, **options: Any) -> list[events.SearchEvent]:
    told: list[events.SearchEvent] = []
    study.run(runner="local", sampler="random", on_event=told.append, **options)
    return told


def stages_told(told: list[events.SearchEvent]) -> list[str]:
    return [one.text for one in told if isinstance(one, events.Announced) and one.text.startswith("stage ")]


def best(study: Study, fidelity: Fidelity, count: int) -> list[set[str]]:
    """The fronts of a stage, one behind the other, until there are so many candidates."""
    frame: Any = study.results.evaluations(fidelity=fidelity.key)
    frame = frame[frame["id"] != DENSE.id]
    found: list[set[str]] = []
    while len(frame) and sum(map(len, found)) < count:
        front = non_dominated(frame[["loss", "macs"]].to_numpy(dtype=float), ["min", "min"])
        found.append(set(frame["id"][front]))
        frame = frame[~front]
    return found


def test_every_stage_takes_the_best_of_the_one_before(store: Path, fake: Fake) -> None:
    study = make(store)
    told = search(study)
    assert stages_told(told) == [f"stage {n} of 3: {stage.text}" for n, stage in enumerate(STAGES, start=1)]
    assert Counter(one.fidelity for one in fake.made) == {NONE: 14, SHORT: 7, LONG: 4}
    assert [one.fidelity for one in fake.made] == [NONE] * 14 + [SHORT] * 7 + [LONG] * 4, "one after the other"
    assert all(fake.of(fidelity)[0] == DENSE for fidelity in (NONE, SHORT, LONG)), "each has a baseline of its own"
    for before, fidelity, count in ((NONE, SHORT, 6), (SHORT, LONG, 3)):
        fronts, chosen = best(study, before, count), {one.id for one in fake.of(fidelity)[1:]}
        whole, last = set().union(*fronts[:-1]), fronts[-1]
        assert whole <= chosen <= whole | last and len(chosen) == count
    assert study.fidelity == LONG and set(study.front(all=True)["id"]) == {one.id for one in fake.of(LONG)}
    origins = study.results.evaluations(fidelity=LONG.key)["origin"]
    assert set(origins) == {"dense", SHORT.name}


def test_the_same_command_goes_on_wherever_it_was_cut_short(store: Path, fake: Fake) -> None:
    for cut in (1, 9, 16, 22):
        fake.cut = cut
        with pytest.raises(KeyboardInterrupt):
            search(make(store))
        assert len(fake.made) == cut and len(make(store).evaluations()) == cut
    told = search(make(store))
    assert len(fake.made) == 25 == len({(one.configuration.id, one.fidelity) for one in fake.made}), "nothing is made twice"
    again = make(store).evaluations()
    assert Counter(again["fidelity"]) == {NONE.key: 14, SHORT.key: 7, LONG.key: 4}
    assert [one.done for one in told if isinstance(one, Planned)] == [14, 7, 1], "finished stages are not begun again"
    fake.made.clear()
    assert search(make(store)) and fake.made == [], "a study that is finished has nothing to do"
    pd.testing.assert_frame_equal(make(store).evaluations(), again)


def test_a_larger_stage_adds_to_what_is_there(store: Path, fake: Fake) -> None:
    search(make(store))
    fake.made.clear()
    search(make(store, [Stage(NONE, 14), Stage(SHORT, 9), Stage(LONG, 4)]))
    assert len(fake.of(SHORT)) == 2 and not fake.of(NONE)
    fake.made.clear()
    make(store).run(6, runner="local", sampler="random", proxies=["frobenius"])
    assert {one.fidelity for one in fake.made} == {LONG}, "a number is one search"
    assert len(make(store).results.evaluations(fidelity=LONG.key)) == 6


def test_proxies_choose_and_a_supernet_that_is_not_trained_is_left_out(store: Path, fake: Fake) -> None:
    stages = [Stage("proxies", 20), Stage("supernet", 30), Stage(SHORT, 4, explore=False), Stage(LONG, 3)]
    study = make(store, stages, channels=32)  # enough answers that no other beats
    told = search(study)
    assert any("no supernet is trained" in one.text for one in told if isinstance(one, events.Announced))
    assert len(fake.of(SHORT)) == 4 and len(fake.of(LONG)) == 3
    origins = study.results.evaluations(fidelity=SHORT.key)["origin"].tolist()
    assert origins[0] == "dense" and all("<=" in origin for origin in origins[1:]), "answers of rules and proxies, by their budgets"
    exploring = make(store.with_name("e.db"), [Stage("proxies", 2), Stage(SHORT, 8)])
    search(exploring)
    origins = exploring.evaluations()["origin"].tolist()
    assert len(origins) == 8 and sum("<=" in origin for origin in origins) <= 2 and origins.count("random") >= 5


def test_a_supernet_that_is_trained_screens(store: Path, fake: Fake) -> None:
    study = make(store, [Stage("supernet", 6), Stage(SHORT, 4)])
    trained = study.train_supernet(epochs=0.5)
    told = search(study)
    assert [one.total for one in told if isinstance(one, Planned)] == [6, 4] and len(fake.of(SHORT)) == 4
    chosen = {one.id for one in fake.of(SHORT)[1:]}
    assert chosen <= set(study.results.evaluations(fidelity="supernet")["id"]) and trained.fidelity.kind == "supernet"


def test_what_is_enqueued_at_a_stage_and_constraints_are_kept(store: Path, fake: Fake) -> None:
    wanted = {"0": ("svd", (1,))}
    kept = make(store).replace(fidelity=SHORT).enqueue(wanted)
    search(make(store), constraints="macs <= 0.8")
    assert kept in fake.of(SHORT) and len(fake.of(SHORT)) in (7, 8)
    frame: Any = make(store).evaluations()
    assert (frame.loc[frame["id"] != DENSE.id, "macs_rel"] <= 0.8 + 1e-9).all()


def test_a_scheduler_works_where_a_stage_is_long_enough(store: Path) -> None:
    study = make(store, [Stage(NONE, 6), Stage(SHORT, 4), Stage(LONG, 4)])
    search(study, scheduler=ParetoASHA(eta=2))
    curves = study.results.curves()
    assert set(curves["fidelity"].astype(str)) == {LONG.key} and set(curves["epochs"]) == {1.0, 2.0}
    with pytest.raises(InvalidArgument, match="no evaluation of 1 epochs"):
        search(make(store, [Stage(NONE, 6), Stage(SHORT, 4)]), scheduler="asha")


def test_a_study_knows_its_stages(store: Path) -> None:
    study = make(store)
    assert rs.Stage is Stage and study.stages == tuple(STAGES) and study.fidelity == LONG
    assert study.replace(seed=3).stages == study.stages and study.replace(fidelity=SHORT).stages == ()
    assert study.replace(stages=[Stage(SHORT, 3)]).fidelity == SHORT and study.replace(stages=()).fidelity == LONG
    with pytest.raises(InvalidArgument, match="has stages"):
        study.run(screening=Screening())


@pytest.mark.parametrize(
    ("stages", "options", "said"),
    [
        ([Stage(SHORT, 3), Stage(SHORT, 4)], {}, "comes twice"),
        ([Stage(SHORT, 3), Stage("proxies", 4), Stage(LONG, 2)], {}, "must be the first"),
        ([Stage(SHORT, 3), Stage("supernet", 4)], {}, "the last is 'supernet'"),
        ([Stage(SHORT, 3)], {"fidelity": LONG}, "the last stage has"),
        ([SHORT], {}, "is no Stage"),
    ],
)
def test_stages_that_do_not_fit_are_refused(store: Path, stages: list, options: dict, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        make(store, stages, **options)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("full", 3), "fidelity='full'"), ((SHORT, 0), "trials=0"), (("proxies", 3, True), "explore=True"),
        ((Fidelity(kind="supernet", source="joint-1"), 3), "the word 'supernet'"),
    ],
)  # fmt: skip
def test_a_stage_that_is_none_is_refused(wrong: tuple, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        Stage(*wrong)
