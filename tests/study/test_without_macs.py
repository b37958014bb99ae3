"""Networks of which no operation is counted (matrix factorization): params are an objective of their own, and there are no shares
of MACs anywhere."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ranksearch.allocators import ALLOCATORS, Problem
from ranksearch.cli import results as shown
from ranksearch.errors import EmptySpace, InfeasibleBudget, InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.results.pareto import relative_hypervolume
from ranksearch.results.plots import plot_front, plot_proxies
from ranksearch.study import Screening, Study
from ranksearch.supernet.sampling import FrontGuided, UniformCost
from ranksearch.tasks import Classification


class Factorization(nn.Module):
    """Two embeddings and a sum of products, which is no product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 8), nn.Embedding(40, 8)

    def forward(self, pairs: Tensor) -> Tensor:  # shape: (n, 2) -> (n, 2)
        score = (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1)
        return torch.stack([-score, score], 1)


def _study(**options) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.randint(0, n, (120,), generator=generator) for n in (50, 40)], 1)
    y = torch.randint(0, 2, (120,), generator=generator)
    torch.manual_seed(0)
    task = Classification(train=(x[:80], y[:80]), validation=(x[80:], y[80:]), learning_rate=0.01, batch_size=40)
    options = {"fidelity": Fidelity(epochs=0, recalibration=0), **options}
    return Study("factorization", model=Factorization().eval(), task=task, **options)


@pytest.fixture(autouse=True)
def _strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's divisions by zero
        yield


@pytest.mark.parametrize("objectives", [("accuracy", "params"), ("accuracy", "macs", "params"), ("loss", "macs")])
def test_a_search_starts_from_budgets_of_params_and_ends_with_a_front(objectives: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    study = _study(objectives=objectives)
    assert study.baseline.macs == 0 and len(study.sites) == 2
    study.run(trials=8, runner="local")
    every = study.evaluations()
    assert len(every) == 8 and (every["status"] == "done").all()
    assert every["macs_rel"].isna().all() and every["params_rel"].between(0, 1).all()
    assert any("params<=" in origin for origin in every["origin"]) and not any("macs<=" in origin for origin in every["origin"])
    front = study.front()
    assert front["is_dense"].any() and (front.loc[front["is_dense"], "macs"] == 0).all()
    assert len(study.front("params <= 0.5 and macs > 0")) and study.best("params <= 0.9") is not None
    shown.profile(study, "table")
    shown.searched(study, lambda name: name, None, 8)
    printed = capsys.readouterr().out
    assert "nan" not in printed and "inf" not in printed and '--where "params < 0.5' in printed


def test_bounds_on_what_the_dense_network_has_none_of_are_amounts() -> None:
    study = _study()
    with pytest.raises(InvalidArgument, match=r"no macs.*0\.5"):
        study.run(trials=4, runner="local", constraints="macs <= 0.5")
    with pytest.raises(InfeasibleBudget, match="macs <= -1"):
        study.run(trials=4, runner="local", constraints="macs < 0.5 * baseline")
    study.run(trials=6, runner="local", constraints=["macs <= 30", "params <= 0.9"])
    small = study.evaluations().query("factorized > 0")
    assert len(small) and (small["macs"] <= 30).all() and (small["params_rel"] <= 0.9).all()
    with pytest.raises(InvalidArgument, match="no macs"):
        study.front("macs < 0.5")
    assert set(study.front("macs <= baseline")["factorized"]) == {0}
    assert study.space.limit("macs", 0) == 0 and study.space.limit("macs", study.space.budget("macs", 1)) == 1
    with pytest.raises(InvalidArgument, match="macs"):
        study.space.limit("macs", -1)


@pytest.mark.parametrize("allocator", ALLOCATORS, ids=lambda allocator: allocator.name)
@pytest.mark.parametrize("budgets", [{"params": 0.5}, {"macs": 300}, {"macs": 300, "params": 0.7}, {"macs": 0}], ids=str)
def test_every_allocator_keeps_the_budgets(allocator, budgets: dict[str, float]) -> None:
    space = _study().space
    table = space.table("frobenius", "max" if allocator.reduction == "max" else "sum")
    found = allocator.allocate(Problem(space, table, budgets))
    assert all(found.cost[name] <= space.limit(name, value) for name, value in budgets.items())
    assert np.isfinite(found.value)


def test_proxies_pictures_supernets_and_screening_work(tmp_path: Path) -> None:
    study = _study()
    study.run(trials=8, runner="local", sampler="nsga2", proxies=["energy", "frobenius", "operator_norm"])
    agreements = study.proxies()
    assert len(agreements) and {"kendall_params", "kendall_macs"} <= {*agreements}
    scores = study.report.scores()
    assert scores["macs_rel"].isna().all()
    plot_front(study.front(all=True), metric="accuracy", title="t", path=tmp_path / "front.png")
    plot_proxies(agreements, scores, title="t", path=tmp_path / "proxies.png")
    assert (tmp_path / "front.png").stat().st_size > 3000 and (tmp_path / "proxies.png").stat().st_size > 3000
    with pytest.raises(InvalidArgument, match="no row"):
        plot_front(study.front(all=True).iloc[:0], metric="accuracy", title="t", path=tmp_path / "front.png")
    assert UniformCost(study.space).cost == FrontGuided(study.space).cost == "params"
    study.train_supernet("sandwich", epochs=1)
    study.run(trials=10, runner="local", screening=Screening(count=4))
    assert (study.evaluations()["status"] == "done").all()


def test_no_share_of_nothing_and_no_part_in_the_hypervolume() -> None:
    study = _study()
    assert math.isnan(study.baseline.share("macs", study.baseline))
    with_macs = relative_hypervolume([[0.9, 5.0, 70.0]], [0.9, 10.0, 0.0], ["max", "min", "min"], [False, True, True])
    assert with_macs == relative_hypervolume([[0.9, 5.0]], [0.9, 10.0], ["max", "min"], [False, True]) > 0
    assert relative_hypervolume([[3.0]], [0.0], ["min"], [True]) == 0.0


def test_a_network_without_parameters_has_nothing_to_search() -> None:
    study = _study().replace(model=nn.Sequential(nn.Flatten()))
    assert dict(study.baseline) == {"params": 0, "macs": 0}
    with pytest.raises(EmptySpace, match="site"):
        study.run(trials=3, runner="local")
