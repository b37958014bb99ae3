"""Costs that a study adds: a cost model is one class, and its column appears wherever params and MACs do."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ranksearch.allocators import ALLOCATORS, Additive, Problem
from ranksearch.cli.results import front_table
from ranksearch.costs import COSTS, Bytes, CostModel, DenseNetwork, LayerOptions, network_cost
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.networks.export import read_manifest
from ranksearch.networks.surgery import build
from ranksearch.proxies import free_proxies
from ranksearch.search.local_search import polish
from ranksearch.search.starts import optima
from ranksearch.sites import Cost, find_sites
from ranksearch.space import DENSE, Configuration, SearchSpace, build_space, mixture, named
from ranksearch.space.spectra import Spectra
from ranksearch.store import Store
from ranksearch.study import Study
from ranksearch.tasks import Classification

NORM = 2 * 8 * 4 + 8  # bytes that the network's batch norm stores besides parameters: statistics and a counter


class Milliseconds(CostModel):
    """Of a made-up machine: no whole numbers, and another order of options than MACs give."""

    name, label, unit = "milliseconds", "ms", "milliseconds per example"

    def options(self, layer: LayerOptions) -> np.ndarray:
        return np.sqrt(layer.macs) / 7.3 + 0.1 * layer.ranks.shape[1] + layer.params / 9e3

    def rest(self, network: DenseNetwork) -> float:
        return 0.7


def network() -> nn.Sequential:
    torch.manual_seed(0)
    features = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(128, 2))


def make(store: Path | str, **changes) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 3, 6, 6, generator=generator)
    y = (x.mean(dim=(1, 2, 3)) > 0).long()
    task = Classification(train=(x[:64], y[:64]), validation=(x[64:], y[64:]), batch_size=32, learning_rate=0.05)
    return Study("small", model=network(), task=task, fidelity=Fidelity(epochs=0, recalibration=1), store=store, **changes)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def spectra() -> Spectra:
    net = network()
    net[0].double()  # its parameters take twice the bytes
    example = torch.zeros(1, 3, 6, 6)
    sites = find_sites(network(), example)
    return Spectra(net, sites, mixture(cp=False).decompositions)


@pytest.fixture(scope="module")
def space(spectra: Spectra) -> SearchSpace:
    return build_space(spectra, max_options=4, costs=(*COSTS, Bytes(), Milliseconds()))


# -- the vector ------------------------------------------------------------------------------------------------------


def test_a_cost_is_a_vector_with_names() -> None:
    one, two = Cost(params=3, macs=2**70), Cost({"params": 1, "macs": 1})
    assert one + two == Cost(params=4, macs=2**70 + 1) and (one - two).macs == 2**70 - 1 and one.params == 3
    assert dict(one) == {"params": 3, "macs": 2**70} and one["macs"] == one.macs and len(one) == 2
    assert hash(one) == hash(Cost(params=3, macs=2**70)) and one != two and one != Cost(params=3, macs=2**70, bytes=12)
    assert one.share("params", Cost(params=12, macs=1)) == 0.25 and math.isnan(one.share("params", {"params": 0}))
    with pytest.raises(InvalidArgument, match="params, macs and of params cannot be added"):
        _ = one + Cost(params=1)
    with pytest.raises(KeyError):
        _ = one["seconds"]


# -- spaces ------------------------------------------------------------------------------------------------------------


def test_every_cost_of_a_configuration_is_that_of_the_built_network(spectra: Spectra, space: SearchSpace) -> None:
    assert space.costs == ("params", "macs", "bytes", "milliseconds")
    for indices in (space.dense, *space.sample(12, seed=0)):
        candidate = space.candidate(indices)
        model = build(spectra, candidate.configuration)
        assert candidate.cost["bytes"] == sum(t.numel() * t.itemsize for t in model.state_dict().values())
        assert candidate.cost.params == sum(p.numel() for p in model.parameters())
        assert isinstance(candidate.cost["bytes"], int) and isinstance(candidate.cost["milliseconds"], float)
        assert candidate.configuration == space.configuration(indices) and np.array_equal(candidate.indices, indices)
        found = network_cost((*COSTS, Bytes(), Milliseconds()), DenseNetwork(spectra.model, spectra.sites), candidate.configuration.choices)
        assert dict(found) == pytest.approx(dict(candidate.cost))
        assert {name: float(table.score(indices)) for name, table in space.cost_tables.items()} == pytest.approx(dict(candidate.cost))


def test_a_candidate_does_not_change_with_the_array_it_was_made_of(space: SearchSpace) -> None:
    indices = space.dense.copy()
    candidate = space.candidate(indices)
    indices[:] = 0
    assert np.array_equal(candidate.indices, space.dense) and candidate.configuration == DENSE
    assert candidate.cost == space.baseline
    with pytest.raises(InvalidArgument, match="do not fit the space"):
        space.candidate([0])


def test_ladders_hold_what_nothing_beats_in_any_cost(spectra: Spectra) -> None:
    for costs in (COSTS, (*COSTS, Milliseconds())):
        for ladder in build_space(spectra, costs=costs).ladders:
            columns = np.stack([*ladder.costs.values(), ladder.column("frobenius")], axis=1)
            for row in columns:
                no_worse = (columns <= row).all(axis=1)
                assert not (no_worse & (columns < row).any(axis=1)).any()


def test_a_cost_that_another_one_decides_changes_no_options(spectra: Spectra) -> None:
    plain, more = build_space(spectra), build_space(spectra, costs=(*COSTS, Milliseconds()))
    for ladder, wider in zip(plain.ladders, more.ladders, strict=True):
        own = {ladder.choice(i) for i in range(len(ladder))}
        assert own <= {wider.choice(i) for i in range(len(wider))}
    single = build_space(spectra, costs=(*COSTS, Bytes()))
    for ladder, counted in zip(plain.ladders, single.ladders, strict=True):
        assert {ladder.choice(i) for i in range(len(ladder))} == {counted.choice(i) for i in range(len(counted))}


# -- budgets -----------------------------------------------------------------------------------------------------------

BUDGETS = [{"bytes": 0.5}, {"milliseconds": 0.6}, {"bytes": 0.7, "milliseconds": 0.7}, {"macs": 0.6, "milliseconds": 0.8}]


@pytest.mark.parametrize("budgets", BUDGETS)
def test_additive_allocation_is_brute_force(space: SearchSpace, budgets: dict[str, float]) -> None:
    table = space.table("frobenius")
    every = np.array(list(itertools.product(*(range(n) for n in space.shape))))
    totals = np.stack([space.cost_tables[name].score(every) for name in budgets], axis=1)
    # each of them exactly affordable, and one less
    for target in totals[table.score(every).argsort()[:: max(len(every) // 15, 1)]]:
        for factor in (1.0, 1 - 1e-6):
            given = {name: float(value) * factor for name, value in zip(budgets, target, strict=True)}
            limits = [space.limit(name, value) for name, value in given.items()]
            fits = (totals <= np.array(limits) * (1 + 1e-9)).all(axis=1)
            if not fits.any():
                with pytest.raises(InfeasibleBudget):
                    Additive().allocate(Problem(space, table, given))
                continue
            found = Additive().allocate(Problem(space, table, given))
            assert found.value == pytest.approx(table.score(every[fits]).min(), abs=1e-12) and found.gap == 0
            assert all(found.cost[name] <= limit * (1 + 1e-9) for name, limit in zip(given, limits, strict=True))


@pytest.mark.parametrize("budgets", BUDGETS)
@pytest.mark.parametrize("allocator", ALLOCATORS, ids=lambda a: a.name)
def test_every_allocator_keeps_budgets_on_added_costs(allocator, space: SearchSpace, budgets: dict[str, float]) -> None:
    problem = Problem(space, space.table("frobenius", allocator.reduction or "sum"), budgets)
    found = allocator.allocate(problem)
    assert found.cost == space.cost(found.indices)
    assert all(found.cost[name] <= space.limit(name, share) * (1 + 1e-9) for name, share in budgets.items())


def test_the_smallest_amount_is_feasible_and_less_is_refused(space: SearchSpace) -> None:
    least, dense = space.smallest("milliseconds"), space.baseline["milliseconds"]
    table = space.table("frobenius")
    assert Additive().allocate(Problem(space, table, {"milliseconds": least})).cost["milliseconds"] == pytest.approx(least)
    dear = Additive().allocate(Problem(space, table, {"milliseconds": 1.0}))
    assert dear.value == 0 and dear.cost == space.baseline
    smallest = rf"the smallest this space reaches is {least:.6g} \({least / dense:.4f}"
    with pytest.raises(InfeasibleBudget, match=f"milliseconds <= .*: {smallest}"):
        Additive().allocate(Problem(space, table, {"milliseconds": 0.99 * least}))
    assert space.limit("bytes", 0.5) == space.baseline["bytes"] // 2 and isinstance(space.limit("milliseconds", 0.5), float)


class Seconds(Milliseconds):
    """Less than 1 for the whole network, so that amounts look like shares."""

    name, label, unit = "seconds", "s", "seconds per example"

    def options(self, layer: LayerOptions) -> np.ndarray:
        return super().options(layer) / 1e3

    def rest(self, network: DenseNetwork) -> float:
        return super().rest(network) / 1e3


def test_searches_start_at_exact_optima_of_amounts_below_one(spectra: Spectra) -> None:
    space = build_space(spectra, max_options=4, costs=(*COSTS, Seconds()))
    limit = space.limit("seconds", 0.8)
    assert limit < 1
    for name in ("seconds", "macs"):
        starts = list(optima(space, free_proxies(), {"seconds": limit}, costs=[name]))
        assert starts and all(f":{name}<=" in start.origin for start in starts)
        assert all(start.candidate.cost["seconds"] <= limit * (1 + 1e-9) for start in starts)


def test_an_amount_below_one_is_no_share(space: SearchSpace) -> None:
    assert space.budget("milliseconds", 0.25) == pytest.approx(0.25 / space.baseline["milliseconds"])
    assert space.limit("milliseconds", space.budget("milliseconds", 0.25)) == pytest.approx(0.25)
    assert space.budget("macs", 5000) == 5000 and space.limit("macs", space.budget("macs", 1)) == 1


def test_searches_start_at_exact_optima_of_every_cost(space: SearchSpace) -> None:
    limits = {"bytes": space.limit("bytes", 0.9), "milliseconds": space.limit("milliseconds", 0.9)}
    starts = list(optima(space, free_proxies(), limits))
    assert any(":milliseconds<=" in start.origin for start in starts)
    for start in starts:
        assert all(start.candidate.cost[name] <= limit * (1 + 1e-9) for name, limit in limits.items())


def test_local_search_keeps_budgets_on_added_costs(space: SearchSpace) -> None:
    budgets = {"bytes": 0.7, "milliseconds": 0.7}
    start = Additive().allocate(Problem(space, space.table("operator", "sum"), budgets)).indices
    table = space.table("frobenius")
    found = polish(space, start, lambda indices: float(table.score(indices)), budgets, evaluations=60)
    assert found.value <= found.start
    assert all(space.cost(found.indices)[name] <= space.limit(name, share) * (1 + 1e-9) for name, share in budgets.items())


# -- a study -----------------------------------------------------------------------------------------------------------


def test_an_added_cost_is_everywhere_in_a_study(tmp_path: Path) -> None:
    options = {"space": mixture(cp=False), "objectives": ("accuracy", "bytes")}
    study = make(tmp_path / "s.db", costs=(*COSTS, Bytes(), Milliseconds()), **options)
    study.run(10, runner="local", constraints=["bytes <= 0.5 and milliseconds < 0.9"])
    frame = study.evaluations()
    assert frame["bytes"].dtype == "Int64" and frame["milliseconds"].dtype == np.float64
    assert (frame["bytes"] == 4 * frame["params"] + NORM).all() and frame["bytes_rel"].max() == 1.0
    chosen = frame[frame["factorized"] > 0]
    assert len(chosen) == 9 and (chosen["bytes_rel"] <= 0.5).all() and (chosen["milliseconds_rel"] < 0.9).all()
    for row in frame.to_dict("records"):
        cost = study.space.cost(study.space.indices(study.results.configuration(row["id"])))
        assert {name: row[name] for name in cost} == pytest.approx(dict(cost))
    front = study.front("bytes < 0.4")
    assert (front.loc[front["on_front"], "bytes_rel"] < 0.4).all() and front["is_dense"].sum() == 1
    whole = study.front()
    assert study.best(objective="bytes")["bytes"] == whole.loc[whole["on_front"], "bytes"].min()
    shown = front_table(study, front)
    assert re.search(r"% ms +% bytes +% MACs +% params +ms +bytes +MACs +params", shown)
    with Store.open(tmp_path / "s.db", create=False) as store:  # without the study: what was written
        assert all(set(record.costs) == {"params", "macs", "bytes", "milliseconds"} for record in store.records())
        assert store.details["baseline"] == pytest.approx(dict(study.baseline))
    report = study.proxies(calibrate=False)
    assert report["pairs_milliseconds"].dtype == np.int64 and "regret_milliseconds" in report
    every = itertools.combinations(chosen[["bytes", "accuracy"]].to_numpy(float).tolist(), 2)
    near = sum(abs(one - other) <= 0.05 * max(one, other) for (one, right), (other, wrong) in every if right != wrong)
    assert set(report.loc[report["metric"] == "accuracy", "pairs_bytes"]) == {near}
    assert {"bytes_rel", "milliseconds_rel"} <= {*study.report.scores(calibrate=False).columns}
    target = study.export(chosen["id"].iloc[0], tmp_path / "net")
    manifest = read_manifest(target)
    assert manifest["bytes"] == chosen["bytes"].iloc[0] and manifest["baseline"] == pytest.approx(dict(study.baseline))


def test_a_study_may_gain_a_cost(tmp_path: Path) -> None:
    make(tmp_path / "s.db", space=mixture(cp=False)).run(4, runner="local")
    study = make(tmp_path / "s.db", space=mixture(cp=False), costs=(*COSTS, Bytes()), objectives=("accuracy", "bytes"))
    assert (study.evaluations()["bytes"] == 4 * study.evaluations()["params"] + NORM).all()
    study.run(6, runner="local")
    frame = study.evaluations()
    assert len(frame) == 6 and (frame["bytes"] == 4 * frame["params"] + NORM).all() and frame["bytes"].dtype == "Int64"
    plain = make(tmp_path / "s.db", space=mixture(cp=False)).evaluations()  # and lose it again
    assert "bytes" not in plain.columns
    pd.testing.assert_frame_equal(plain, frame.drop(columns=["bytes", "bytes_rel"]))


def test_constraints_below_what_is_reached_are_refused(tmp_path: Path) -> None:
    study = make(tmp_path / "s.db", space=mixture(cp=False), costs=(*COSTS, Bytes()))
    with pytest.raises(InfeasibleBudget, match=f"bytes <= .*{study.space.smallest('bytes'):,}"):
        study.run(4, runner="local", constraints=["bytes <= 0.0001"])
    with pytest.raises(InvalidArgument, match="'seconds < 1' is not an upper bound on a cost"):
        study.run(4, runner="local", constraints=["seconds < 1"])


class Named(Milliseconds):
    def __init__(self, name: str) -> None:
        self.name = name


@pytest.mark.parametrize("name", ["accuracy", "id", "params", "macs_rel", "two words", "on_front", "baseline"])
def test_names_that_are_taken_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"costs: '{name}': .*rename"):
        make(tmp_path / "s.db", costs=(*COSTS, Named(name)))
    with pytest.raises(InvalidArgument, match="macs is missing"):
        make(tmp_path / "s.db", costs=(COSTS[0], Bytes()))


def test_the_page_about_costs_runs_and_tells_the_truth(spectra: Spectra) -> None:
    text = (Path(__file__).parents[2] / "docs" / "costs.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict = {}
    exec(code, names)
    dense = DenseNetwork(spectra.model, spectra.sites)
    choices = build_space(spectra).configuration([0, 0, 0]).choices
    found, plain = network_cost(names["costs"], dense, choices), network_cost((*COSTS, Bytes()), dense, choices)
    norm = spectra.model.get_submodule("1")
    assert found["traffic"] == plain["bytes"] - NORM - 4 * sum(p.numel() for p in norm.parameters())  # each layer is called once
    assert build_space(spectra, costs=names["costs"]).baseline["traffic"] > found["traffic"]


def test_bytes_are_those_of_the_file(spectra: Spectra, tmp_path: Path) -> None:
    dense = DenseNetwork(spectra.model, spectra.sites)
    half = Bytes(dtype="bfloat16")
    for choices in ((), build_space(spectra).configuration([0, 0, 0]).choices):
        model = build(spectra, Configuration(choices))
        every = sum(t.numel() * t.itemsize for t in model.state_dict().values())
        assert network_cost((Bytes(),), dense, choices)["bytes"] == every
        small = model.to(torch.bfloat16).state_dict()
        assert network_cost((half,), dense, choices)["bytes"] == sum(t.numel() * t.itemsize for t in small.values())
    assert Bytes().record() == {"settings": {}, "id": "as it is"} and Bytes(**(half.record() or {})["settings"]) == half


def test_what_shares_memory_is_stored_once() -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    net[1].weight = net[0].weight
    net.register_buffer("view", net[0].weight.detach()[:3])
    net.register_buffer("scratch", torch.zeros(1000), persistent=False)
    sites = find_sites(net, torch.zeros(1, 2, dtype=torch.long), check=False)
    assert network_cost((Bytes(),), DenseNetwork(net, sites))["bytes"] == 160


@pytest.mark.parametrize("dtype", ["float17", "int8", "nn", ""])
def test_types_that_store_no_weights_are_refused(dtype: str) -> None:
    with pytest.raises(InvalidArgument, match=f"dtype='{dtype}' is no floating-point type"):
        Bytes(dtype=dtype)


class Wrong(CostModel):
    name, label, unit = "wrong", "wrong", "nothing"

    def __init__(self, amounts) -> None:
        self.amounts = amounts

    def options(self, layer: LayerOptions) -> np.ndarray:
        return self.amounts(len(layer.ranks))

    def rest(self, network: DenseNetwork) -> int:
        return 0


@pytest.mark.parametrize(
    ("amounts", "message"),
    [
        (lambda n: np.ones(n + 1), "give one number for each"),
        (lambda n: np.full(n, "a"), "give one number for each"),
        (lambda n: -np.ones(n), "negative or not finite"),
        (lambda n: np.full(n, np.nan), "negative or not finite"),
    ],
)
def test_amounts_that_are_none_are_refused(amounts, message: str, spectra: Spectra) -> None:
    with pytest.raises(InvalidArgument, match=message):
        build_space(spectra, costs=(*COSTS, Wrong(amounts)))


def test_a_network_of_other_types_is_costed_by_them(spectra: Spectra) -> None:
    dense = DenseNetwork(spectra.model, spectra.sites)
    with pytest.raises(InvalidArgument, match="decomposition='cp' is none of dense, svd"):
        network_cost(COSTS, dense, [("0", "cp", (2,))], (spectra.decomposition("dense"), *named("svd")))
    assert network_cost(COSTS, dense) == spectra.sites.total
