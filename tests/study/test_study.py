"""A study from end to end with the local runner, on a small real problem."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from scipy.stats import kendalltau
from torch import nn

from ranksearch.costs import COSTS
from ranksearch.decompositions import with_bits
from ranksearch.errors import InfeasibleBudget, InvalidArgument, InvalidModel, RanksearchError, StoreError
from ranksearch.evaluation import Evaluator, Fidelity, Outcome, Request
from ranksearch.proxies import PROXIES, free_proxies
from ranksearch.search.events import Announced
from ranksearch.search.starts import optima
from ranksearch.space import DENSE, SpaceSpec, mixture, named
from ranksearch.study import Finished, Planned, Study
from ranksearch.study.run import portfolio_of
from ranksearch.tasks import Classification


def make(scale: float = 1.0, **changes) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 3, 6, 6, generator=generator)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    task = Classification(train=(x[:96], y[:96]), validation=(x[96:], y[96:]), batch_size=32, learning_rate=0.05)
    torch.manual_seed(0)
    features = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    net = nn.Sequential(*features, nn.Flatten(), nn.Linear(128, 2))
    with torch.no_grad():
        net[0].weight.mul_(scale)
    return Study("small", model=net, task=task, fidelity=Fidelity(epochs=1, recalibration=1), **changes)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "small.db")


def _run(study: Study, trials: int = 40, **options) -> list:
    events: list = []
    study.run(trials, runner="local", on_event=events.append, **options)
    return events


def test_a_search_that_is_refused_leaves_the_store_as_it_was(store: str) -> None:
    """Or else the next one would find the space in it that this one was refused for."""
    study = make(store=store, space=SpaceSpec(with_bits(named("svd"), (8,))))
    with pytest.raises(InvalidArgument, match=r"weights of few bits.*--cost bytes"):
        _run(study, trials=2)
    assert not Path(store).exists()
    with pytest.raises(InvalidArgument, match=r"study\.replace"):
        make(store=store).compress(macs=0.5, space="svd_only")


def test_search_fills_the_store_and_goes_on_where_it_stopped(store: str) -> None:
    study = make(store=store)
    events = _run(study, trials=12)
    assert sum(isinstance(e, Finished) for e in events) == 12
    first = study.evaluations()
    assert len(first) == 12 and first["id"].is_unique and (first["status"] == "done").all()
    assert first["id"].iloc[0] == DENSE.id
    again = make(store=store)
    assert not any(isinstance(e, Finished) for e in _run(again, trials=12))
    more = _run(make(store=store), trials=16)
    assert sum(isinstance(e, Finished) for e in more) == 4 and Planned(16, 12) in more
    assert len(make(store=store).evaluations()) == 16


def test_a_search_begins_with_what_is_best_without_training_unless_proxies_are_named(store: str) -> None:
    study = make(store=store)
    told = [e.text for e in _run(study, trials=6) if isinstance(e, Announced)]
    assert any("answers of rules and proxies without training" in text for text in told)
    assert not any("answers of rules" in e.text for e in _run(study, trials=8, proxies=["frobenius"]) if isinstance(e, Announced))
    names = {}
    for trials in (5, 17, 60):
        portfolio = portfolio_of(study, trials)
        assert portfolio is not None and {"balf", "evbmf"} <= {rule.name for rule in portfolio.rules}
        names[trials] = [make().name for make in portfolio.proxies]
        assert portfolio.measure(study.space.dense) == pytest.approx(0, abs=1e-6)
    fits = [["activation", "fisher"] if sum(study.space.shape) <= 20 * trials else [] for trials in names]
    assert list(names.values()) == [fits[0], ["lems", *fits[1]], ["lems", "calibrated", "single_site_loss", *fits[2]]]


def test_interrupted_search_keeps_everything_finished(store: str) -> None:
    study = make(store=store)

    def stop(event) -> None:
        if isinstance(event, Finished) and event.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(runner="local", trials=12, on_event=stop)
    assert len(study.evaluations()) == 5
    assert sum(isinstance(e, Finished) for e in _run(make(store=store), trials=12)) == 7


def test_front_best_and_build(store: str) -> None:
    study = make(store=store)
    _run(study, trials=20)
    front = study.front()
    assert front["is_dense"].sum() == 1 and front["macs"].is_monotonic_increasing
    rows = front[front["on_front"]]
    for _, a in rows.iterrows():
        assert not any(
            b["accuracy"] >= a["accuracy"] and b["macs"] <= a["macs"] and b["params"] <= a["params"]
            and (b["accuracy"], b["macs"], b["params"]) != (a["accuracy"], a["macs"], a["params"])
            for _, b in rows.iterrows()
        )  # fmt: skip
    best = study.best("macs <= 0.6")
    assert best["macs_rel"] <= 0.6
    network = study.build(best["id"])
    assert sum(p.numel() for p in network.parameters()) == best["params"]
    assert study.task.measure(network)["accuracy"] == pytest.approx(best["accuracy"])
    with pytest.raises(InvalidArgument, match="no evaluated network"):
        study.best("accuracy > 2")


def test_constraints_are_never_broken(store: str) -> None:
    study = make(store=store)
    _run(study, trials=15, constraints=["macs <= 0.5 and params <= 0.7"])
    frame = study.evaluations()
    candidates = frame[frame["id"] != DENSE.id]
    assert len(candidates) == 14
    assert (candidates["macs"] <= 0.5 * study.baseline.macs).all() and (candidates["params"] <= 0.7 * study.baseline.params).all()


def test_infeasible_constraint_names_the_smallest_value_and_leaves_no_store(store: str) -> None:
    study = make()
    with pytest.raises(InfeasibleBudget, match=f"{study.space.smallest('macs'):,}"):
        _run(study, constraints=["macs <= 0.001"])
    assert not Path(store).exists()


def test_bad_arguments_are_refused_before_any_work(store: str) -> None:
    with pytest.raises(InvalidArgument, match="accuracy, loss"):
        make(objectives=("f1", "macs"))
    strange = ({"proxies": 3}, {"constraints": 3}, {"constraints": [3]}, {"retry_failed": 3})
    unknown = ({"trials": 0}, {"sampler": "magic"}, {"allocator": "greedy"}, {"proxies": ["nope"]}, {"constraints": ["accuracy > 0.5"]})
    for bad in (*strange, *unknown):
        study = make(store=store)
        with pytest.raises(InvalidArgument):
            _run(study, **bad)
        assert not study.profiled, bad
    assert not Path(store).exists()


def test_seeds_that_no_generator_takes_are_refused() -> None:
    for seed in (-1, 2**32, 0.5):
        with pytest.raises(InvalidArgument, match=r"^seed="):
            make(seed=seed)
        with pytest.raises(InvalidArgument, match=r"^seed="):
            make().train_supernet(seed=seed)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": None}, "model=None is of type NoneType"), ({"model": torch.relu}, "give a torch.nn.Module"),
        ({"fidelity": 3}, "fidelity=3 is none"), ({"fidelity": "full"}, "fidelity='full' is none"), ({"name": "a\udcff"}, "name="),
        ({"name": None}, "name=None"), ({"space": 3}, "space=3"), ({"task": None}, "NoneType.metrics"),
        ({"objectives": 3}, "objectives=3"), ({"costs": 3}, "costs=3"), ({"costs": (*COSTS, 3)}, "3 is no CostModel"),
        ({"stages": 3}, "stages=3"), ({"options": 3}, "options=3"),
    ],
)  # fmt: skip
def test_what_is_of_another_type_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(RanksearchError, match=said):
        make().replace(**wrong)


@pytest.mark.parametrize(("method", "said"), [("example", "holds no tensor with a batch"), ("fingerprint", r"fingerprint\(\) gives None")])
def test_tasks_that_say_nothing_are_refused(method: str, said: str, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make(store=store)
    monkeypatch.setattr(type(study.task), method, lambda self: None)
    with pytest.raises(RanksearchError, match=said):
        _run(study)
    assert not Path(store).exists()


def test_the_same_seed_and_one_worker_give_the_same_front_bit_for_bit(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        study = make(store=str(tmp_path / f"{number}.db")).replace(fidelity=Fidelity(epochs=0, recalibration=1))
        _run(study, 12)
        front = study.front(all=True)
        found.append(front.drop(columns=["seconds"]).sort_values("id").to_csv(index=False, float_format="%.17g"))
    assert found[0] == found[1] and found[0].count("\n") == 13


def test_one_objective_or_constraint_may_be_a_string(store: str) -> None:
    assert make(objectives="accuracy").objectives == ("accuracy",)
    study = make(store=store)
    _run(study, trials=6, constraints="macs <= 0.7")
    frame = study.evaluations()
    assert (frame["macs_rel"][frame["factorized"] > 0] <= 0.7).all() and (frame["factorized"] > 0).any()
    assert set(study.front(objectives="macs")["id"]) == set(study.front(objectives=["macs"])["id"])
    for bad in ({"constraints": ""}, {"constraints": ["macs <= 0.7", ""]}):
        with pytest.raises(InvalidArgument, match="is empty"):
            _run(study, trials=7, **bad)
    with pytest.raises(InvalidArgument, match=r"objectives=\['speed'\]"):
        study.front(objectives="speed")


def test_a_study_in_another_space_keeps_its_metric_and_builds_what_it_had(store: str) -> None:
    first = make(store=store, space=SpaceSpec(named("svd"), metric="activation", calibration=1))
    _run(first, trials=4)
    spatial = SpaceSpec(named("spatial"), include="0")
    second = first.with_space(spatial, source="mine.py:space", options={"a": 1})
    assert (second.spec.metric, second.spec.calibration) == ("activation", 1) and second.fingerprint == first.fingerprint
    assert second.space_choice == {"source": "mine.py:space", "options": {"a": 1}} and first.space_choice is None
    _run(second, trials=6)
    frame = second.evaluations()
    assert len(frame) == 6 and frame["id"].is_unique
    for row in frame.to_dict("records"):  # networks of both spaces, as they were measured
        built = second.build(row["id"])
        assert sum(p.numel() for p in built.parameters()) == row["params"]
        assert second.task.measure(built)["loss"] == pytest.approx(row["loss"], abs=1e-5)
    other = first.with_space(SpaceSpec(named("svd"), metric="fisher", calibration=1), source="fisher")
    assert other.spec.metric == "fisher" and other.fingerprint != first.fingerprint
    with pytest.raises(StoreError, match="metric of the space differ"):
        other.evaluations()


def test_store_of_other_weights_is_refused_and_unchanged(store: str) -> None:
    _run(make(store=store), trials=2)
    with pytest.raises(StoreError, match="--store"):
        _run(make(scale=2.0, store=store), trials=3)
    assert len(make(store=store).evaluations()) == 2


def test_results_without_a_store_are_a_clear_error(store: str) -> None:
    with pytest.raises(StoreError):
        make(store=store).front()
    assert not Path(store).exists()


def test_proxies_are_judged_on_what_was_measured(store: str) -> None:
    study = make(store=store)
    _run(study, trials=12)
    frame, scores = study.proxies(), study.report.scores()
    ran = [kind.name for kind in PROXIES if kind.needs == "networks"]
    assert frame["proxy"].tolist() == [kind.name for kind in PROXIES]
    assert set(frame["count"]) == {11} and set(frame["metric"]) == {"accuracy"} and set(frame["fidelity"]) == {study.fidelity.key}
    assert len(scores) == len(PROXIES) * 11 and frame.attrs["left_out"] == {} and scores["score"].notna().all()
    assert study.proxies(batches=0).attrs["left_out"].keys() == set(ran)
    measured = study.evaluations().set_index("id")["accuracy"]
    for name, rows in scores.groupby("proxy"):
        tau = kendalltau(rows["score"], -measured[rows["id"]].to_numpy()).statistic
        assert frame.set_index("proxy").loc[name, "kendall"] == pytest.approx(tau, nan_ok=True), name
    assert study.proxies(calibrate=False)["proxy"].tolist() == [proxy.name for proxy in free_proxies()]
    with pytest.raises(InvalidArgument, match="metric='macs': this task reports accuracy, loss"):
        study.proxies(metric="macs")
    with pytest.raises(InvalidArgument, match="batches=-1: must be a whole number"):
        study.proxies(batches=-1)
    empty = make(store=store + ".none")
    with pytest.raises(StoreError):
        empty.proxies()


def test_failed_evaluations_are_recorded_and_do_not_end_the_study(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Evaluator.__call__

    def fragile(self: Evaluator, request: Request) -> Outcome:
        if request.configuration != DENSE and int(request.configuration.id, 16) % 2:
            return Outcome(request, "failed", error="RuntimeError: no such luck")
        return real(self, request)

    monkeypatch.setattr(Evaluator, "__call__", fragile)
    study = make(store=store)
    _run(study, trials=14)
    frame = study.evaluations()
    assert 0 < (frame["status"] == "failed").sum() < 14 and len(frame) == 14
    assert set(frame.loc[frame["status"] == "failed", "error"]) == {"RuntimeError: no such luck"}
    assert (study.front(all=True)["id"].isin(frame.loc[frame["status"] == "done", "id"])).all()
    assert not any(isinstance(e, Finished) for e in _run(make(store=store), trials=14))


def test_a_space_smaller_than_the_trials_is_exhausted(store: str) -> None:
    study = make(store=store).replace(space=mixture().replace(include="3", max_options=4))
    _run(study, trials=100)
    assert len(study.evaluations()) == study.space.size


def test_exact_starts_fit_their_budgets() -> None:
    study = make()
    starts = list(optima(study.space, free_proxies(), {"macs": study.space.limit("macs", 0.6)}))
    assert len({s.candidate.configuration for s in starts}) == len(starts) > 4
    assert all(s.candidate.cost.macs <= 0.6 * study.baseline.macs for s in starts)


def test_the_absolute_error_starts_first_where_it_is_good() -> None:
    """Optima that came before are left out, so that a cost may have none of its own."""
    spec = SpaceSpec(named("svd", "svd_in", "spatial", "spatial_t", "tucker2"))

    def starts(metric: Literal["fisher", "weight"]) -> list[str]:
        found = optima(make(space=spec.replace(metric=metric)).space, free_proxies(), {})
        return [start.origin.split(":", 1)[1].split("<=")[0] for start in found]

    def place(origin: str) -> int:
        return ["energy:params", "energy:macs"].index(origin) if origin.startswith("energy:") else 2

    fisher, weight = starts("fisher"), starts("weight")
    assert fisher[0] == weight[0] == "energy:params" and list(map(place, fisher)) == sorted(map(place, fisher))
    assert weight == sorted(weight, key="energy:macs".__eq__)


def test_other_objectives_and_seeds_share_the_store(store: str) -> None:
    study = make(store=store)
    _run(study, trials=4)
    assert not any(isinstance(e, Finished) for e in _run(make(store=store, objectives=["loss", "params"]), trials=4))
    assert sum(isinstance(e, Finished) for e in _run(make(store=store, seed=9), trials=2)) == 2
    frame = study.evaluations()
    assert set(frame["seed"]) == {0, 9}


def test_a_study_asks_its_task_which_dimension_is_the_batch() -> None:
    class SequenceFirst(Classification):
        batch_dim = 1

        def example(self) -> torch.Tensor:
            return torch.randn(20, 1, 16)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.head = nn.TransformerEncoderLayer(16, 2, 32), nn.Linear(16, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.encode(x).mean(0))

    x, y = torch.randn(4, 20, 16), torch.arange(4) % 2
    task = SequenceFirst(train=(x, y), validation=(x, y), learning_rate=0.1)
    assert Study("long", model=Net(), task=task).baseline.macs == 20 * (4 * 256 + 2 * 512) + 2 * 400 * 16 + 32


def test_a_compiled_or_parallel_model_is_the_network_inside() -> None:
    study = make()
    for wrapped in (torch.compile(study.model, backend="eager"), nn.DataParallel(study.model)):
        other = Study("small", model=wrapped, task=study.task)
        assert other.model is study.model and other.fingerprint == study.fingerprint
        assert [s.name for s in other.sites] == ["0", "3", "6"]


def test_a_model_whose_copies_run_the_original_is_refused_before_anything_is_stored(store: str) -> None:
    study = make(store=store)
    original = study.model.forward
    study.model.forward = lambda x: original(x) * 1.0
    with pytest.raises(InvalidModel, match="forward"):
        _run(study, trials=3)
    assert not Path(store).exists() and all(p.grad is None for p in study.model.parameters())
