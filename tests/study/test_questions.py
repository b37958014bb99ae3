"""Answers of a study, against a search through all its evaluations by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.results.pareto import knee
from ranksearch.space import DENSE, Configuration, SearchSpace
from ranksearch.store import Record
from ranksearch.study import Study
from ranksearch.tasks import Classification

FIDELITY = Fidelity(epochs=0, recalibration=0)


def make(store: Path, **changes: Any) -> Study:
    x, y = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 2
    task = Classification(train=(x[:16], y[:16]), validation=(x[16:], y[16:]), batch_size=16, learning_rate=0.05)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    return Study("asked", model=net, task=task, store=store, fidelity=FIDELITY, **changes)


def fill(study: Study, accuracies: dict[Configuration, float], seed: int = 0) -> Study:
    """What was measured, made up; costs are those of the networks."""
    with study.open_store(write=True) as store:
        for configuration, accuracy in accuracies.items():
            cost = study.space.cost(study.space.indices(configuration))
            metrics = {"accuracy": accuracy, "loss": 1 - accuracy}
            store.add(Record(configuration.id, configuration.to_json(), FIDELITY.key, seed, "done", metrics, cost, origin="made"))
    return study


def option(space: SearchSpace, **shares: float) -> Configuration:
    """At every named site, the option of about that share of the dense MACs."""
    chosen = {}
    for name, share in shares.items():
        ladder = next(ladder for ladder in space.ladders if ladder.site.name == name.strip("_"))
        macs = ladder.costs["macs"]
        place = int(abs(macs[:-1] - share * macs[-1]).argmin())
        chosen[ladder.site.name] = ladder.choice(place)
    return Configuration(chosen)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, Configuration]]:
    study = make(tmp_path_factory.mktemp("asked") / "s.db")
    named = {
        "dense": DENSE, "large": option(study.space, _2=0.7), "middle": option(study.space, _2=0.4),
        "small": option(study.space, _2=0.1, _5=0.4), "poor": option(study.space, _2=0.7, _5=0.4),
    }  # fmt: skip
    accuracies = {"dense": 0.9, "large": 0.893, "middle": 0.88, "small": 0.5, "poor": 0.4}
    assert len({c.id for c in named.values()}) == 5
    return fill(study, {named[name]: accuracy for name, accuracy in accuracies.items()}), named


def rel(study: Study, configuration: Configuration) -> float:
    return study.space.cost(study.space.indices(configuration)).share("macs", study.baseline)


def test_best_cheapest_and_knee(asked: tuple[Study, dict[str, Configuration]]) -> None:
    study, named = asked
    assert study.best()["id"] == DENSE.id and study.best(objective="macs")["id"] == named["small"].id
    assert study.best(f"macs < {rel(study, named['large'])}")["id"] == named["middle"].id
    assert study.cheapest(0.01)["id"] == named["large"].id  # 0.893 >= 0.99 * 0.9
    assert study.cheapest(0.03)["id"] == named["middle"].id and study.cheapest(0)["id"] == DENSE.id
    assert study.cheapest(0.5, cost="params", metric="accuracy", where="macs > 0.9")["id"] == DENSE.id
    assert study.cheapest(10, metric="loss")["id"] == named["small"].id  # less is better
    front = study.front()
    rows = front[front["on_front"]].reset_index(drop=True)
    at = knee(rows[["accuracy", "macs"]].to_numpy(float), ["max", "min"])
    assert study.knee(objectives=["accuracy", "macs"])["id"] == rows["id"].iloc[at]


def test_feasible_takes_metrics_and_costs_at_once(asked: tuple[Study, dict[str, Configuration]]) -> None:
    study, named = asked
    found = study.feasible("macs <= 0.99 and accuracy >= baseline - 0.41")
    assert found["id"].tolist() == [named["large"].id, named["middle"].id, named["small"].id]
    by_cost = study.feasible(["macs <= 0.99", "accuracy >= baseline - 0.41"], "macs")["id"].tolist()
    assert by_cost == found["id"].tolist()[::-1]
    assert len(study.feasible("accuracy > 2")) == 0 and len(study.feasible()) == 5


def test_sweep(asked: tuple[Study, dict[str, Configuration]]) -> None:
    study, named = asked
    middle, small = rel(study, named["middle"]), rel(study, named["small"])
    amount = int(study.space.cost(study.space.indices(named["large"])).params)
    found = study.sweep(macs=[1.0, middle, small, small / 2], params=amount)
    assert found["id"].astype(object).where(found["id"].notna(), None).tolist() == [
        DENSE.id, named["middle"].id, named["small"].id, None, study.best(f"params <= {amount}")["id"],
    ]  # fmt: skip
    assert found["cost"].tolist() == ["macs"] * 4 + ["params"] and found["budget"].tolist()[-1] == amount
    assert pd.isna(found["macs"].iloc[3]) and math.isnan(found["accuracy"].iloc[3]) and found["accuracy"].iloc[1] == 0.88
    of_numpy = study.sweep(macs=np.array([1.0, middle, small, small / 2]), params=np.int64(amount))
    pd.testing.assert_frame_equal(of_numpy, found)
    nothing = study.sweep(where="accuracy > 2", macs=0.5)
    assert nothing["id"].isna().all() and list(nothing.columns) == list(found.columns)
    assert nothing.dtypes.astype(str).tolist() == found.dtypes.astype(str).tolist()


def test_diff(asked: tuple[Study, dict[str, Configuration]]) -> None:
    study, named = asked
    found = study.diff(DENSE.id, named["small"].id[:6])
    assert found["site"].tolist() == ["2", "5"] and found["decomposition_before"].tolist() == ["dense", "dense"]
    every = study.diff(named["small"].id, named["large"].id, all=True)
    assert every["site"].tolist() == ["0", "2", "5"] and every["changed"].tolist() == [False, True, True]
    costs = [study.space.cost(study.space.indices(named[name])).macs for name in ("small", "large")]
    assert every["macs_change"].sum() == costs[1] - costs[0]
    assert (every["macs_after"] - every["macs_before"]).tolist() == every["macs_change"].tolist()
    assert every["relative_error_after"].tolist()[2] == 0 < every["relative_error_before"].tolist()[2]
    assert len(study.diff(DENSE.id, DENSE.id)) == 0


def test_spared(asked: tuple[Study, dict[str, Configuration]]) -> None:
    study, named = asked
    found = study.spared().set_index("site")
    assert found["networks"].tolist() == [3, 3, 3]  # large, middle, small; dense does not count, poor is beaten
    assert found["spared"].tolist() == pytest.approx([1, 0, 2 / 3]) and found["always"].tolist() == [True, False, False]
    assert found["decomposition"].isna().tolist() == [True, False, False] and found["macs_rel"].iloc[0] == 1
    assert found["decomposition"].iloc[2] == named["small"]["5"][0]
    with pytest.raises(InvalidArgument, match="no evaluated network satisfies"):
        study.spared("macs >= 1")


def test_compare(asked: tuple[Study, dict[str, Configuration]], tmp_path: Path) -> None:
    study, named = asked
    other = fill(make(tmp_path / "other.db"), {DENSE: 0.9, named["middle"]: 0.7})
    for seed in (1, 2):
        fill(other, {DENSE: 0.9, named["middle"]: 0.7 + seed / 100}, seed)
    found = study.compare(other, budgets=[rel(study, named["middle"]), 1e-6])
    rows = {row["measure"]: row for row in found.to_dict("records")}
    at_budget = found[found["budget"] > 1e-6].iloc[0]
    assert (at_budget["a"], at_budget["b"]) == (0.88, pytest.approx(0.71)) and at_budget["seeds_b"] == 3
    assert rows["coverage"]["a"] == 1.0 and rows["hypervolume"]["difference"] > 0
    mine = other.compare(study, budgets=[0.5])
    assert mine["difference"].iloc[0] == pytest.approx(-rows["hypervolume"]["difference"])
    assert study.compare(study)["difference"].dropna().eq(0).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.best("accuracy > 2"), "no evaluated network satisfies"),
        (lambda s: s.knee("accuracy > 2"), "no evaluated network satisfies"),
        (lambda s: s.cheapest(-0.1), "within"),
        (lambda s: s.cheapest(metric="macs"), "this task reports accuracy, loss"),
        (lambda s: s.cheapest(cost="accuracy"), "this study counts params, macs"),
        (lambda s: s.cheapest(where="accuracy > 2"), "no evaluated network satisfies"),
        (lambda s: s.sweep(), "give them by cost"),
        (lambda s: s.sweep(speed=[0.5]), "costs are: params, macs"),
        (lambda s: s.sweep(macs=[0]), "macs"),
        (lambda s: s.feasible("speed < 1"), "unknown speed"),
        (lambda s: s.diff("dense", "x"), "no evaluated configuration"),
        (lambda s: s.compare(s.replace(objectives=("loss", "macs")), metric="f1"), "this task reports"),
        (lambda s: s.best("macs <"), "write for example"),
    ],
)
def test_questions_that_cannot_be_answered(asked: tuple[Study, Any], ask: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ask(asked[0])
