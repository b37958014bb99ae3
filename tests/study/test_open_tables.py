"""Samplers, proxies, allocators, runners and training methods of a user's own, given to a study as instances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.allocators import Additive, Allocation, Allocator, Problem
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.proxies import Frobenius, LastFeature, TableProxy, free_proxies
from ranksearch.runners import LocalRunner
from ranksearch.samplers import NSGA2, Random, Sampler
from ranksearch.space import SearchSpace, svd_only
from ranksearch.space.table import Table
from ranksearch.study import Finished, Study
from ranksearch.supernet.methods import Joint, Method, Plain
from ranksearch.tasks import Classification


def make(store: Path | str, **changes) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 8, generator=generator)
    y = (x.mean(dim=1) > 0).long()
    task = Classification(train=(x[:64], y[:64]), validation=(x[64:], y[64:]), batch_size=32, learning_rate=0.05)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 2))
    given = {"space": svd_only(), "fidelity": Fidelity(epochs=0, recalibration=0), "store": store} | changes
    return Study("open", model=net, task=task, **given)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))


class Cheapest(Sampler):
    """From the cheapest configuration up, by one step at one site."""

    name = "cheapest"

    def _begin(self, seed: int) -> None:
        self.told = 0

    def _candidate(self) -> np.ndarray:
        indices = np.zeros(len(self.shape), dtype=np.int64)
        indices[self.told % len(indices)] = min(self.told, self.shape[self.told % len(indices)] - 1)
        return indices

    def _learn(self, indices: np.ndarray, values: list[float] | None) -> None:
        self.told += 1


class Sparing(Allocator):
    """The exact optimum at nine tenths of every budget."""

    name = "sparing"
    reduction = "sum"

    def allocate(self, problem: Problem) -> Allocation:
        tighter = {name: 0.9 * problem.space.limit(name, value) for name, value in problem.budgets.items()}
        return Additive().allocate(Problem(problem.space, problem.table, tighter))


class CountedSites(TableProxy):
    """How many sites are factorized."""

    name = "counted_sites"

    def table(self, space: SearchSpace) -> Table:
        return Table(tuple(np.append(np.ones(n - 1), 0.0) for n in space.shape), "sum")


def origins(study: Study, trials: int, **options) -> list[str]:
    events: list = []
    study.run(trials, runner="local", on_event=events.append, **options)
    return [event.outcome.request.origin for event in events if isinstance(event, Finished)]


def test_what_a_user_writes_takes_part_in_the_search(tmp_path: Path) -> None:
    study = make(tmp_path / "s.db")
    found = origins(study, 12, sampler=Cheapest(), allocator=Sparing(), proxies=[CountedSites(), "frobenius", "operator_norm"])
    assert found[0] == "dense" and {"cheapest", "sparing"} <= {origin.split(":")[0] for origin in found[1:]}
    assert found[1].startswith("sparing:counted_sites:")
    frame = study.proxies(calibrate=False, extra=[CountedSites()])
    assert frame["proxy"].tolist() == [*(proxy.name for proxy in free_proxies()), "counted_sites"]
    scores = study.report.scores(calibrate=False, extra=[CountedSites()])
    counted = scores[scores["proxy"] == "counted_sites"].set_index("id")["score"]
    factorized = study.evaluations().set_index("id")["factorized"]
    assert (counted == factorized[counted.index]).all()


def test_names_and_instances_are_the_same(tmp_path: Path) -> None:
    named = origins(make(tmp_path / "a.db"), 10, sampler="random", allocator="uniform", proxies=["fisher", "frobenius"])
    from ranksearch.allocators import Uniform

    study = make(tmp_path / "b.db")
    given = origins(study, 10, sampler=Random(), allocator=Uniform(), proxies=["fisher", Frobenius()])
    assert named == given and named[1].startswith("uniform:fisher:")
    ids = [make(tmp_path / f"{name}.db").evaluations()["id"].tolist() for name in "ab"]
    assert ids[0] == ids[1]


def test_one_instance_serves_several_searches(tmp_path: Path) -> None:
    sampler, runner = NSGA2(population=4), LocalRunner()
    for name in "ab":
        make(tmp_path / f"{name}.db").run(14, sampler=sampler, runner=runner)
    one, two = (make(tmp_path / f"{name}.db").evaluations() for name in "ab")
    assert one["id"].tolist() == two["id"].tolist() and (one["origin"] == "nsga2").sum() >= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "nsga"}, "sampler='nsga' is none of surrogate, nsga2, nsga3, tpe, gp, random; did you mean 'nsga3'"),
        ({"sampler": NSGA2}, "nor an instance of Sampler"),
        ({"allocator": "additiv"}, "did you mean 'additive'"),
        ({"allocator": Additive}, "nor an instance of Allocator"),
        ({"proxies": ["energie"]}, "did you mean 'energy'"),
        ({"proxies": ["last_feature"]}, "proxies='last_feature' is none of energy"),
        ({"proxies": [LastFeature]}, "nor an instance of TableProxy"),
        ({"runner": "cloud"}, "runner='cloud' is none of ray_tune, local"),
        ({"trials": 0}, "trials=0"),
    ],
)
def test_what_is_in_no_table_is_refused_before_any_work(tmp_path: Path, options: dict, message: str) -> None:
    study = make(tmp_path / "s.db")
    with pytest.raises(InvalidArgument, match=message):
        study.run(**options)
    assert not (tmp_path / "s.db").exists() and not study.profiled


def test_a_training_method_is_given_as_an_instance(tmp_path: Path) -> None:
    class Halved(Plain):
        """The loss of the dense network, halved."""

        name = "halved"

        def __init__(self, *arguments, scale: float = 0.5, **options) -> None:
            super().__init__(*arguments, **options)
            self.scale = scale

        def loss(self, batch):
            return self.scale * self.dense(batch)

    study = make(tmp_path / "s.db")
    trained = study.train_supernet(Halved(study.supernets.untrained(), study.task.loss), epochs=2)
    assert trained.entry.method == "halved" and trained.entry.options == {"scale": "0.5"}
    assert study.supernets.load("halved").key == trained.key
    other = study.train_supernet(Halved(study.supernets.untrained(), study.task.loss, scale=0.25), epochs=2)
    assert other.key != trained.key
    again = study.train_supernet(Halved(study.supernets.untrained(), study.task.loss), epochs=2)
    for name, value in trained.supernet.state_dict().items():
        assert torch.equal(value, again.supernet.state_dict()[name]), name


def joint(study: Study) -> Method:
    return Joint(study.supernets.untrained(), study.task.loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.train_supernet(joint(s), weight=0.5), "weight: method is an instance of Joint: give this to its constructor"),
        (lambda s: s.train_supernet(joint(s), sampling="ratio"), "sampling: method is an instance of Joint"),
        (lambda s: s.train_supernet(joint(s.replace(space=svd_only(round_to=2)))), "another space"),
    ],
)
def test_an_instance_brings_its_own_options_and_supernet(call: Callable[[Study], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=message):
        call(make(tmp_path / "s.db"))


def test_a_replaced_study_keeps_what_still_holds(tmp_path: Path) -> None:
    study = make(tmp_path / "s.db", options={"x": 1})
    space, fingerprint = study.space, study.fingerprint
    other = study.replace(store=tmp_path / "t.db", seed=5, objectives=("loss", "macs"))
    assert other.profiled and other.space is space and other.fingerprint == fingerprint and other.options == {"x": 1}
    assert (study.seed, study.objectives[0], study.store_url) == (0, "accuracy", str(tmp_path / "s.db"))
    assert (other.seed, other.objectives, other.store_url) == (5, ("loss", "macs"), str(tmp_path / "t.db"))
    assert other.report is not study.report

    class Named(Study):
        def __init__(self, text: str) -> None:
            super().__init__(text, model=study.model, task=study.task, space=study.spec)
            self.text = text

    mine = Named("mine").replace(seed=3)
    assert isinstance(mine, Named) and (mine.text, mine.name, mine.seed) == ("mine", "mine", 3)
    narrower = study.replace(space=svd_only(round_to=2))
    assert not narrower.profiled and narrower.space.size < space.size
    with pytest.raises(InvalidArgument, match="objectives="):
        study.replace(objectives=("beauty",))
