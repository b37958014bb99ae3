"""Latency as a cost, measured on a machine that is made up: what is measured, what is predicted, what is kept, what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from latency_cases import Machine, dense_network, latency, network, space
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.costs import COSTS, DenseNetwork, LayerOptions
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.home import home
from ranksearch.latency import Latency, TableLatency, break_even
from ranksearch.latency.bench import Bench, spread
from ranksearch.latency.cache import MeasurementCache
from ranksearch.latency.correction import fitted
from ranksearch.latency.inputs import batched, layer_calls
from ranksearch.latency.layers import stand_in
from ranksearch.latency.timing import Interval, Precision
from ranksearch.networks.surgery import build
from ranksearch.sites import find_sites
from ranksearch.space import SearchSpace, build_space
from ranksearch.space.spectra import Spectra

TYPES = {d.name: d for d in DECOMPOSITIONS}


def measured(machine: Machine, dense: DenseNetwork | None = None, **changes) -> tuple[TableLatency, DenseNetwork]:
    dense = dense or dense_network()
    return latency(machine, **changes).of(dense), dense


def options(cost: TableLatency, dense: DenseNetwork, site: str, name: str) -> tuple[np.ndarray, np.ndarray, LayerOptions]:
    """Ranks and predicted nanoseconds of a type at a site."""
    kind, place = TYPES[name], dense.sites[site]
    ranks = kind.options(place)
    layer = LayerOptions(dense, place, kind, ranks, *kind.costs(place, ranks))
    return ranks, cost.options(layer), layer


def small_space(machine: Machine, **changes) -> tuple[SearchSpace, Spectra]:
    dense = dense_network()
    spectra = Spectra(dense.model, dense.sites, space().decompositions)
    costs = (*COSTS, latency(machine, **changes).of(dense))
    return build_space(spectra, costs=costs, example=dense.example, max_options=4), spectra


# -- what is predicted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["svd", "tucker2", "cp", "svd_in"])
def test_predictions_of_a_layer_are_what_the_machine_takes(name: str) -> None:
    machine = Machine()
    cost, dense = measured(machine)
    ranks, amounts, _ = options(cost, dense, "2", name)
    for rank, amount in zip(ranks.tolist(), amounts.tolist(), strict=True):
        truth = machine.seconds(stand_in(dense.model, dense.sites["2"], TYPES[name], tuple(rank)))
        assert amount == pytest.approx(1e9 * truth, rel=0.03)  # parameters of tucker2 are no product of the two ranks alone
    assert amounts.dtype == np.int64


def test_the_latency_of_a_network_is_that_of_the_built_network() -> None:
    machine = Machine(inside=1.3)
    found, spectra = small_space(machine)
    assert found.costs == ("params", "macs", "latency") and isinstance(found.baseline["latency"], int)
    for indices in (found.dense, *found.sample(10, seed=0)):
        candidate = found.candidate(indices)
        truth = 1.3e9 * machine.seconds(build(spectra, candidate.configuration))
        assert candidate.cost["latency"] == pytest.approx(truth, rel=0.02)


def test_the_correction_finds_what_layers_take_inside_a_network() -> None:
    cost, dense = measured(Machine(inside=1.5))
    found = cost.table.correction
    assert found.networks >= 5 and found.scale == pytest.approx(1.5, rel=0.02)
    other = 1e9 * 1.5 * 1e-5 * 4  # the layers that are no sites: ReLU and Flatten
    assert found.rest == pytest.approx(other, rel=0.1)
    assert found.deviation is not None and found.worst is not None and found.deviation <= found.worst < 0.01
    plain, _ = measured(Machine(inside=1.5), dense, networks=0, cache=False)
    assert plain.table.correction.scale == 1.0 and plain.table.correction.deviation is None


def test_the_fit_is_least_relative_squares_and_nothing_in_it_is_negative() -> None:
    generator = np.random.default_rng(0)
    sums = generator.uniform(1e6, 1e7, size=30)
    noise = generator.uniform(0.95, 1.05, size=30)
    found = fitted(sums, (2e6 + 1.2 * sums) * noise)
    assert found.rest == pytest.approx(2e6, rel=0.15) and found.scale == pytest.approx(1.2, rel=0.05)
    assert 0.005 < (found.deviation or 0) < 0.05 and (found.worst or 0) < 0.12
    falling = fitted(sums, 0.8 * sums - 3e5)  # would need a negative rest
    assert falling.rest == 0 and 0 < falling.scale < 0.8


def test_the_deviation_is_of_networks_that_the_fit_did_not_see() -> None:
    sums, measured_times = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 8.0])
    found = fitted(sums, measured_times)
    assert found.worst == pytest.approx(0.5)  # the line through the first three gives 4 for 8


def test_configurations_measured_as_a_whole_span_the_range() -> None:
    cost, dense = measured(Machine(per_layer=1e-6))
    ladders = {
        site.name: [(TYPES[n], *_predicted(cost, dense, site.name, n)) for n in ("svd", "tucker2") if TYPES[n].undefined(site) is None]
        for site in dense.sites
    }
    configurations = spread(ladders, 12)
    sizes = [sum(dense.sites[s].cost.params - d.cost(dense.sites[s], r).params for s, d, r in c) for c in configurations]
    whole = sum(site.cost.params for site in dense.sites)
    assert len(configurations) == 12 and min(sizes) < 0.3 * whole and max(sizes) > 0.7 * whole
    assert len({d.name for c in configurations for _, d, _ in c}) == 2


def _predicted(cost: TableLatency, dense: DenseNetwork, site: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    ranks, _, layer = options(cost, dense, site, name)
    return ranks, cost.ratios(layer)


# -- ladders and budgets -----------------------------------------------------------------------------------------------


def test_no_option_slower_than_dense_is_on_a_ladder() -> None:
    found, spectra = small_space(Machine(per_layer=5e-5))  # many thin layers do not pay
    plain = build_space(spectra, max_options=4)
    slower = 0
    for ladder in found.ladders:
        dense = ladder.costs["latency"][-1]
        assert (ladder.costs["latency"] <= dense).all()
    cost, dense = measured(Machine(per_layer=5e-5))
    for ladder in build_space(spectra).ladders:
        for i in range(len(ladder) - 1):
            kind, rank = ladder.choice(i)
            one = np.array([rank])
            layer = LayerOptions(dense, ladder.site, TYPES[kind], one, *TYPES[kind].costs(ladder.site, one))
            slower += not cost.offered(layer)[0]
    assert slower > 0 and len(plain.ladders) == len(found.ladders)


@pytest.mark.parametrize("budgets", [{"latency": 0.7}, {"latency": 0.8, "params": 0.6}])
def test_allocation_within_latency_is_brute_force(budgets: dict[str, float]) -> None:
    found, _ = small_space(Machine())
    table = found.table("frobenius")
    every = np.array(list(itertools.product(*(range(n) for n in found.shape))))
    totals = np.stack([found.cost_tables[name].score(every) for name in budgets], axis=1)
    for factor in (0.8, 1.0, 1.2):
        given = {name: share * factor for name, share in budgets.items()}
        fits = (totals <= [found.limit(name, share) for name, share in given.items()]).all(axis=1)
        if not fits.any():
            with pytest.raises(InfeasibleBudget):
                Additive().allocate(Problem(found, table, given))
            continue
        best = Additive().allocate(Problem(found, table, given))
        assert best.gap == 0 and best.value == pytest.approx(table.score(every[fits]).min(), abs=1e-12)
        assert best.cost["latency"] <= found.limit("latency", given["latency"])


def test_break_even_is_the_largest_rank_that_is_really_faster() -> None:
    machine = Machine(per_layer=2e-5)
    cost, dense = measured(machine)
    rows = {(row.site, row.decomposition): row for row in break_even(cost, dense, dense.decompositions)}
    row = rows["2", "svd"]
    site = dense.sites["2"]
    truth = 1e9 * machine.seconds(dense.model.get_submodule("2"))
    ranks, amounts, _ = options(cost, dense, "2", "svd")
    below = [tuple(r) for r, a in zip(ranks.tolist(), amounts.tolist(), strict=True) if a < cost.table.correction.scale * truth * 0.999]
    assert row.rank == below[-1] and row.faster == len(below) < row.options
    assert row.ratio < 1 and row.macs == pytest.approx(TYPES["svd"].cost(site, row.rank).macs / site.cost.macs)
    assert row.identical == ("4",) and ("4", "svd") not in rows  # the same layer
    never = {row.rank for row in break_even(*_with(Machine(per_layer=1.0)))}
    assert never == {None}


def _with(machine: Machine):
    cost, dense = measured(machine, cache=False)
    return cost, dense, dense.decompositions


def test_break_even_trusts_the_whole_interval() -> None:
    cost, dense = measured(Machine())
    vague = {rank: Interval(i.value, i.low, max(i.high, 1.0)) for rank, i in cost.table.layer("2").types["svd"].items()}
    cost = TableLatency(cost.table.with_points("2", "svd", vague))
    row = next(row for row in break_even(cost, dense, [TYPES["svd"]]) if row.site == "2")
    assert row.rank is None and row.faster == 0


# -- what is measured --------------------------------------------------------------------------------------------------


def test_identical_layers_are_measured_once() -> None:
    cost, _ = measured(Machine())
    assert cost.table.sites["2"] == cost.table.sites["4"] != cost.table.sites["0"] and len(cost.table.layers) == 3


def test_layers_get_the_inputs_of_the_batch() -> None:
    machine = Machine()
    cost, _ = measured(machine, batch=4, networks=0)
    assert cost.table.batch == 4 and (4, 3, 6, 6) in machine.shapes and [(4, 12, 6, 6)] in machine.shapes
    assert measured(Machine(), networks=0)[0].table.batch == 1  # as the example
    with pytest.raises(InvalidArgument, match="batch=3: the example holds 2"):
        latency(Machine(), batch=3).of(dense_network(example=torch.zeros(2, 3, 6, 6)))
    with pytest.raises(InvalidArgument, match="has no batch"):
        latency(Machine(), batch=3).of(dense_network(batch_dim=None))


def test_batches_are_repeated_where_there_is_one() -> None:
    example = {"ids": torch.arange(6).reshape(1, 6), "positions": torch.arange(6)[None], "scale": torch.tensor(2.0)}
    found = batched(example, 3, {"ids": 0})
    assert found["ids"].shape == (3, 6) and found["positions"].shape == (1, 6) and found["scale"] == 2.0
    assert torch.equal(found["ids"][2], example["ids"][0])
    assert batched((torch.zeros(5, 1, 2),), 2, 1)[0].shape == (5, 2, 2)
    assert batched(example, None, 0) is example


class Shared(nn.Module):
    """One layer called twice, under two paths, and an embedding with a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.first = nn.Linear(8, 8)
        self.second = self.first
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids)
        return self.head(self.second(self.first(x)[:, :2]))


def test_every_call_of_a_layer_counts_once() -> None:
    model = Shared().eval()
    example = torch.randint(0, 11, (1, 5))
    sites = find_sites(model, example)
    calls = layer_calls(model, sites, example)
    assert [tuple(x.shape) for x in calls["first"].own] == [(1, 5, 8), (1, 2, 8)]
    assert [tuple(x.shape) for x in calls["table"].own] == [(1, 5)] and [tuple(x.shape) for x in calls["table"].head] == [(1, 2, 8)]
    dense = DenseNetwork(model, sites, example, decompositions=(TYPES["svd"],))
    machine = Machine()
    cost = latency(machine).of(dense)
    taken = {name: cost.table.layer(name).dense for name in cost.table.sites}
    assert taken["table"] > 1e9 * machine.seconds(model.table)  # with its head
    small = options(cost, dense, "table", "svd")[1]
    assert (np.diff(small) > 0).all()


def test_measurements_are_kept_by_device_runtime_and_layer() -> None:
    first, again, other = Machine(), Machine(), Machine(label="2")
    cost, _ = measured(first, networks=0)
    same, _ = measured(again, networks=0)
    assert same.table.layer("2").types == cost.table.layer("2").types
    assert again.prepared == 4 < first.prepared  # the network and its three layers, for what they take beside each other
    measured(other, networks=0)
    assert other.prepared == first.prepared
    third = Machine()
    measured(third, networks=0, batch=2)
    assert third.prepared == first.prepared
    fourth = Machine()
    measured(fourth, networks=0, cache=False)
    assert fourth.prepared == first.prepared


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": 1}', "[-1]", "other"])
def test_damaged_measurements_count_as_absent(damage: str) -> None:
    first, again = Machine(), Machine()
    measured(first, networks=0)
    files = sorted((home() / "cache" / "latency").glob("*.json"))
    assert len(files) == 3
    for file in files:
        data = json.loads(file.read_text())
        if damage == "[-1]":  # a negative time
            data["types"] = {name: [[rank, -v, low, high] for rank, v, low, high in rows] for name, rows in data["types"].items()}
        elif damage == "other":  # of another layer
            data["layer"] = "another"
        file.write_text(json.dumps(data) if damage in ("[-1]", "other") else damage)
    measured(again, networks=0)
    assert again.prepared == first.prepared
    assert all(json.loads(file.read_text())["types"] for file in files)


def test_what_cannot_be_kept_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    machine = Machine()
    cache = MeasurementCache(tmp_path / "file" / "folder")
    bench = Bench(dense_network(), machine, batch=None, precision=Precision(least=3, most=3), cache=cache, clock=machine.clock)
    with pytest.warns(UserWarning, match="cannot cache in"):
        bench.points(bench.network.sites["2"], TYPES["svd"], [(2,)])


def test_stand_ins_have_the_shape_of_options_and_the_size_of_weights() -> None:
    dense = dense_network(network().to(memory_format=torch.channels_last))
    site = dense.sites["2"]
    for kind in (TYPES["svd"], TYPES["tucker2"], TYPES["cp"]):
        rank = tuple(kind.options(site)[-1].tolist())
        layer = stand_in(dense.model, site, kind, rank)
        built = Spectra(dense.model, dense.sites, (kind,)).factors(site, kind.name, rank)
        assert sum(p.numel() for p in layer.parameters()) == kind.cost(site, rank).params
        x = torch.randn(64, 12, 6, 6)
        y, truth = layer(x), dense.model.get_submodule("2")(x)
        assert y.shape == truth.shape and 0.2 < float((y.std() / truth.std()).detach()) < 5
        assert len(built) == len(kind.empty_factors(site, rank) or ())
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in layer.parameters() if p.ndim == 4)


# -- what is kept and refused ------------------------------------------------------------------------------------------


def test_a_record_gives_the_amounts_again_without_measuring() -> None:
    machine, idle = Machine(), Machine()
    cost, dense = measured(machine, batch=2)
    record = json.loads(json.dumps(cost.record()))
    again = latency(idle, batch=2, cache=False).of(dense, record)
    for name in ("svd", "tucker2"):
        assert np.array_equal(options(again, dense, "0", name)[1], options(cost, dense, "0", name)[1])
    assert again.rest(dense) == cost.rest(dense) and again.record() == cost.record() and idle.prepared == 0
    spatial = options(again, dense, "2", "spatial")[1]  # a type that the study did not have: measured now
    assert idle.prepared > 0 and (spatial > 0).all()
    assert again.record()["id"] == cost.record()["id"] and again.record() != cost.record()


def test_another_device_runtime_or_batch_is_refused() -> None:
    cost, dense = measured(Machine(), batch=2)
    record = cost.record()
    device = record["table"]["device"]
    with pytest.raises(InvalidArgument, match=r"this store has latency of .*batch 2"):
        latency(Machine(), batch=4).of(dense, record)
    with pytest.raises(InvalidArgument, match="runtime='eager'"):
        Latency(runtime="eager", batch=2).of(dense, record)
    moved = {**record, "table": {**record["table"], "device": "a phone"}}
    with pytest.raises(InvalidArgument, match=r"store has that of a phone.*give device='a phone'"):
        latency(Machine()).of(dense, moved)
    there = latency(Machine(), device="a phone").of(dense, moved)
    assert options(there, dense, "0", "svd")[1].tolist() == options(cost, dense, "0", "svd")[1].tolist()
    with pytest.raises(InvalidArgument, match=r"a phone has no spatial of rank \(1,\) at '2'"):
        options(there, dense, "2", "spatial")
    with pytest.raises(InvalidArgument, match="device='a phone': this machine is"):
        latency(Machine(), device="a phone").of(dense)
    with pytest.raises(InvalidArgument, match="not of a phone"):
        latency(Machine(), device="a phone").of(dense, {**record, "table": {**record["table"], "device": device + "!"}})
    with pytest.raises(InvalidArgument, match="stored table cannot be read"):
        latency(Machine()).of(dense, {**record, "table": {**record["table"], "layers": 3}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runtime": "tensorrt"}, "runtime='tensorrt' is none of eager, compile, cuda_graph, onnxruntime"),
        ({"batch": 0}, "batch=0"), ({"networks": 2}, "networks=2: a fit needs 3"), ({"networks": -1}, "networks=-1"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_at_once(arguments: dict, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Latency(**arguments)


def test_latency_needs_an_example_and_a_measurement() -> None:
    dense = dense_network()
    with pytest.raises(InvalidArgument, match="needs an example"):
        latency(Machine()).of(dense_network(example=None, sites=dense.sites))
    site, kind, ranks = dense.sites["2"], TYPES["svd"], np.array([[1]])
    with pytest.raises(InvalidArgument, match="not measured yet"):
        latency(Machine()).options(LayerOptions(dense, site, kind, ranks, *kind.costs(site, ranks)))
    with pytest.raises(InvalidArgument, match="runtime='imported': give table"):
        Latency(runtime="imported").of(dense)
