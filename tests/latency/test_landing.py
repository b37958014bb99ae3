"""Options that the best configurations land on are measured: on a machine that is no straight line between measured ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from latency_cases import PER_PARAMETER, Machine, dense_network, latency, network, space
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.compression import compress
from ranksearch.costs import COSTS, LayerOptions
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.latency import Latency, TableLatency
from ranksearch.latency.correction import through_dense
from ranksearch.latency.curve import curve
from ranksearch.latency.files import read_table, write_table
from ranksearch.latency.layers import stand_in
from ranksearch.latency.table import Correction
from ranksearch.latency.timing import Interval
from ranksearch.networks.surgery import replace_sites
from ranksearch.search.landing import fronts, landed
from ranksearch.space import SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.study import Study
from ranksearch.tasks import Classification

TYPES = {d.name: d for d in DECOMPOSITIONS}


class Stairs(Machine):
    """Layers whose time has steps of so many parameters."""

    step = 120

    def __init__(self) -> None:
        super().__init__(per_layer=2e-6)

    def seconds(self, module: nn.Module) -> float:
        layers = [m for m in module.modules() if not list(m.children())]
        sizes = [sum(p.numel() for p in m.parameters(recurse=False)) for m in layers]
        return self.per_layer * len(layers) + PER_PARAMETER * sum(self.step * math.ceil(size / self.step) for size in sizes)


def measured(machine: Machine, **changes) -> TableLatency:
    return latency(machine, networks=0, **changes).of(dense_network())


def amount(cost: TableLatency, site: str, name: str, rank: tuple[int, ...]) -> int:
    dense, kind = dense_network(), TYPES[name]
    ranks = np.array([rank])
    return int(cost.options(LayerOptions(dense, dense.sites[site], kind, ranks, *kind.costs(dense.sites[site], ranks)))[0])


def truth(machine: Machine, site: str, name: str, rank: tuple[int, ...]) -> float:
    dense = dense_network()
    return 1e9 * machine.seconds(stand_in(dense.model, dense.sites[site], TYPES[name], rank))


def unknown(cost: TableLatency, site: str, name: str) -> list[tuple[int, ...]]:
    ranks = [tuple(row) for row in TYPES[name].options(dense_network().sites[site]).tolist()]
    return [rank for rank in ranks if rank not in cost.table.layer(site).types[name]]


@pytest.mark.parametrize("name", ["svd", "tucker2"])
def test_what_is_measured_is_predicted_and_the_rest_stays_near_it(name: str) -> None:
    machine = Stairs()
    machine.step = 250  # of which there are few, so that both types have ranks between them
    cost = measured(machine)
    site, ranks = "2", unknown(cost, "2", name)

    def off(rank: tuple[int, ...]) -> float:
        return abs(amount(cost, site, name, rank) / truth(machine, site, name, rank) - 1)

    wrong = max(ranks[:: max(1, len(ranks) // 12)], key=off)
    assert amount(cost, site, name, wrong) != pytest.approx(truth(machine, site, name, wrong), rel=0.02)
    prepared = machine.prepared
    after = cost.refined([[(site, TYPES[name], wrong)]])
    assert machine.prepared == prepared + 1 and after is not cost and after.table.id != cost.table.id
    assert amount(after, site, name, wrong) == pytest.approx(truth(machine, site, name, wrong), rel=0.02)
    assert after.table.layer("4").types[name] == after.table.layer("2").types[name]  # the same layer
    assert wrong not in cost.table.layer(site).types[name]  # the first one is as it was
    assert after.refined([[("4", TYPES[name], wrong)]]) is after


def test_a_pair_beside_the_grid_moves_its_cells_alone() -> None:
    kind, site = TYPES["tucker2"], dense_network().sites["2"]
    grid = {(a, b): Interval(0.01 * a * b, 0.01 * a * b, 0.01 * a * b) for a in (1, 5, 9) for b in (1, 5, 9)}
    plain = curve(kind, site, grid)
    moved = curve(kind, site, {**grid, (3, 7): Interval(0.3, 0.29, 0.31)})
    assert not moved.by_macs
    spots = np.array([[3.0, 7.0], [1, 1], [5, 5], [9, 9], [7, 3], [1, 7], [5, 9]])
    assert moved.at(spots)[0] == pytest.approx(0.3) and plain.at(spots)[0] == pytest.approx(0.21)
    assert moved.at(spots[:1], "low")[0] == pytest.approx(0.29)
    np.testing.assert_allclose(moved.at(spots[1:]), plain.at(spots[1:]))
    assert 0.21 < moved.at(np.array([[3.0, 6.5]]))[0] < 0.3  # next to it, between what it was and what was measured
    scattered = curve(kind, site, {(a, a): Interval(0.1 * a, 0.1 * a, 0.1 * a) for a in (1, 3, 5, 7)})
    assert scattered.by_macs


def solved(machine: Machine, rounds: int) -> tuple[TableLatency, SearchSpace, list[np.ndarray]]:
    dense = dense_network()
    spectra = Spectra(dense.model, dense.sites, space().decompositions)
    costs = (*COSTS, measured(machine))

    def optima(found: SearchSpace) -> list[np.ndarray]:
        shares = (0.8, 0.7, 0.6)
        return [Additive().allocate(Problem(found, found.table("frobenius"), {"latency": share})).indices for share in shares]

    found, chosen = landed(costs, spectra, lambda costs: build_space(spectra, costs=costs), optima, rounds=rounds)
    cost = found[-1]
    assert isinstance(cost, TableLatency)
    return cost, chosen, optima(chosen)


def interpolated(cost: TableLatency, found: SearchSpace, indices: np.ndarray) -> list[tuple[str, str, tuple[int, ...]]]:
    choices = found.configuration(indices).choices
    return [one for one in choices if one[2] not in cost.table.layer(one[0]).types[one[1]]]


def test_the_optimum_lands_on_measured_options_and_takes_what_it_says() -> None:
    machine = Stairs()
    before, first, optima = solved(machine, rounds=0)
    assert any(interpolated(before, first, indices) for indices in optima)  # else there was nothing to do
    cost, found, optima = solved(machine, rounds=20)
    for indices in optima:
        assert interpolated(cost, found, indices) == []
        candidate = found.candidate(indices)
        layers = sum(truth(machine, *choice) for choice in candidate.configuration.choices)
        left = [ladder.site.name for ladder, i in zip(found.ladders, indices, strict=True) if i == len(ladder) - 1]
        layers += sum(1e9 * machine.seconds(dense_network().model.get_submodule(name)) for name in left)
        assert candidate.cost["latency"] - found.fixed["latency"] == pytest.approx(layers, rel=0.02)


def test_rounds_come_to_an_end_and_what_is_kept_stays() -> None:
    told: list[str] = []
    dense = dense_network()
    spectra = Spectra(dense.model, dense.sites, space().decompositions)
    cost = measured(Stairs())
    costs, asked = (*COSTS, cost), {(kind, rank) for kind, points in cost.table.layer("2").types.items() for rank in points}

    def build(costs):
        return build_space(spectra, costs=costs)

    def another(found: SearchSpace) -> list[np.ndarray]:
        """An option of one site that nobody has measured."""
        place = [ladder.site.name for ladder in found.ladders].index("2")
        ladder, indices = found.ladders[place], found.dense.copy()
        indices[place] = next(i for i in range(len(ladder) - 1) if ladder.choice(i) not in asked)
        asked.add(ladder.choice(int(indices[place])))
        return [indices]

    after, _ = landed(costs, spectra, build, another, rounds=3, tell=told.append)
    assert len(told) == 3 and after[-1] is not cost
    assert landed(costs, spectra, build, another, kept=["latency"])[0] == costs


def task() -> Classification:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 3, 6, 6, generator=generator), torch.arange(64) % 10
    return Classification(train=(x[:32], y[:32]), validation=(x[32:], y[32:]), batch_size=16, learning_rate=0.05)


def study(store: Path, cost: Latency) -> Study:
    fidelity = Fidelity(epochs=0, recalibration=0)
    return Study("fast", model=network(), task=task(), space=space(), costs=(*COSTS, cost), objectives=("accuracy", "latency"),
                 store=store, fidelity=fidelity)  # fmt: skip


def test_a_study_measures_what_its_fronts_land_on_once(tmp_path: Path) -> None:
    made = study(tmp_path / "s.db", latency(Stairs(), networks=0))
    made.run(2, runner="local")
    cost = made.counts[-1]
    assert isinstance(cost, TableLatency)
    for indices in fronts(["latency"])(made.space):
        assert interpolated(cost, made.space, indices) == []
    other = Stairs()
    again = study(tmp_path / "s.db", latency(other, networks=0, cache=False))
    again.run(3, runner="local")
    assert other.prepared == 0 and again.counts[-1].record() == cost.record() and again.space.fingerprint == made.space.fingerprint
    plain = study(tmp_path / "p.db", latency(Stairs(), networks=0, refine=False))
    points = [sum(len(p) for layer in one.table.layers.values() for p in layer.types.values()) for one in (plain.counts[-1], cost)]  # type: ignore[attr-defined]
    assert points[0] < points[1]


def test_compress_measures_what_its_answers_land_on() -> None:
    machine = Stairs()
    found = compress(
        network(), task(), space=space(calibration=1), rules=["frobenius", "uniform"], reconstruction=0, polished=10,
        costs=(*COSTS, latency(machine, networks=0)), latency=0.7,
    )  # fmt: skip
    rest = 4 * 1e9 * machine.per_layer  # what is no site: ReLU and Flatten
    for one in found.tried:
        assert one.configuration is not None and one.cost is not None and one.cost["latency"] <= 0.7 * found.baseline["latency"]
    chosen = {site: (kind, rank) for site, kind, rank in found.configuration.choices}
    layers = [
        truth(machine, s, *chosen[s]) if s in chosen else 1e9 * machine.seconds(dense_network().model.get_submodule(s))
        for s in (site.name for site in dense_network().sites)
    ]
    assert found.cost["latency"] == pytest.approx(sum(layers) + rest, rel=0.02)


class Crowded(Machine):
    """In a network every factorized layer takes another quarter of what it takes by itself, which no sum over layers says."""

    def seconds(self, module: nn.Module) -> float:
        found = super().seconds(module)
        if any(isinstance(m, nn.ReLU) for m in module.modules()):
            pairs = [m for m in module.modules() if list(m.children()) and not any(isinstance(c, nn.ReLU) for c in m.modules())]
            found += 0.25 * sum(super(Crowded, self).seconds(m) for m in pairs)
        return found


def whole(machine: Machine, choices) -> float:
    """What a network takes over the dense one."""
    dense = dense_network()
    layers = {name: stand_in(dense.model, dense.sites[name], TYPES[kind], rank) for name, kind, rank in choices}
    built = replace_sites(dense.model, [dense.sites[name] for name in layers], layers)
    return machine.seconds(built) / machine.seconds(dense.model)


def test_the_budget_is_met_by_the_network_as_a_whole() -> None:
    machine = Crowded(per_layer=1e-6)
    off: dict[bool, float] = {}
    for refine in (False, True):
        cost = latency(machine, networks=8, refine=refine)
        small = compress(
            network(), task(), space=space(calibration=1), rules=["frobenius"], reconstruction=0, refits=0,
            costs=(*COSTS, cost), latency=0.75,
        )  # fmt: skip
        predicted = small.cost["latency"] / small.baseline["latency"]
        assert predicted <= 0.75
        off[refine] = whole(machine, small.configuration.choices) / predicted - 1
    assert off[False] > 0.1 and abs(off[True]) < off[False] / 2


def test_so_many_networks_are_measured_as_are_needed_there() -> None:
    machine = Crowded(per_layer=1e-6)
    cost = latency(machine, networks=8).of(dense_network())
    assert isinstance(cost, TableLatency)
    ranks = sorted(cost.table.layer("2").types["svd"])[:5]
    networks = [[("2", TYPES["svd"], rank), ("4", TYPES["svd"], rank)] for rank in ranks]
    assert len(cost.unmeasured(networks * 2)) == len({tuple(map(str, one)) for one in cost.unmeasured(networks)}) <= len(ranks)
    after = cost.refined(networks)
    assert after.unmeasured(networks) == [] and after.table.correction != cost.table.correction
    assert after.refined(networks) is after
    assert cost.unmeasured([()]) == []  # the dense network is known
    dense = [one.table.correction.rest + one.table.correction.scale * one.sum_of(()) for one in (cost, after)]
    assert dense[0] == pytest.approx(dense[1])
    unfitted = measured(machine).refined(networks).table.correction
    assert (unfitted.networks, unfitted.scale) == (0, 1.0)  # none is measured where none is asked for


def test_networks_that_save_more_than_their_layers_do(tmp_path: Path) -> None:
    """A negative rest is saved in layers, in proportion to their dense times, and every layer keeps a thousandth of its own."""
    cost = measured(Machine())
    total, layer = cost.table.dense_sum, cost.table.layer("2")
    cost.table = replace(cost.table, correction=Correction(rest=-0.25 * total, scale=1.25, networks=3))
    assert cost.rest(dense_network()) == 0
    assert sum(float(cost.table.counted(site, np.ones(1))[0]) for site in cost.table.sites) == pytest.approx(total)
    for rank, interval in layer.types["svd"].items():
        assert amount(cost, "2", "svd", rank) == pytest.approx(max(0.001, 1 - 1.25 * (1 - interval.value)) * layer.dense, abs=1)
    write_table(cost.table, tmp_path / "t.csv")
    again = TableLatency(read_table(tmp_path / "t.csv"))
    for rank in layer.types["svd"]:
        assert amount(again, "2", "svd", rank) == pytest.approx(amount(cost, "2", "svd", rank), rel=1e-3, abs=2)
    assert again.rest(dense_network()) == pytest.approx(0, abs=2)
    cost.table = replace(cost.table, correction=Correction(rest=-0.9 * total, scale=1.9, networks=3))
    assert float(cost.table.counted("7", np.array([0.1]))[0]) == pytest.approx(0.001 * cost.table.layer("7").dense)


@pytest.mark.parametrize("share", [0.4, 0.8, 1.0, 1.3])
def test_the_correction_through_the_dense_network(share: float) -> None:
    """Exact data of a network with this share of its time in layers."""
    sums = np.array([90.0, 40.0, 60.0, 20.0])
    found = through_dense(Correction(rest=10.0, scale=0.9), 100.0, sums, 1 - share * (1 - sums / 100))
    assert found.scale * 100 == pytest.approx(100 * share) and found.rest == pytest.approx(100 * (1 - share), abs=1e-9)
    assert found.networks == 4 and found.deviation == pytest.approx(0, abs=1e-12) and found.worst == pytest.approx(0, abs=1e-12)
    one = through_dense(Correction(10.0, 0.9, 20, 0.03, 0.1), 100.0, sums[:1], np.array([1.2]))  # slower than dense
    assert one.rest + 100 * one.scale == pytest.approx(100) and 0 < one.scale < 0.01 and (one.deviation, one.worst) == (0.03, 0.1)


def test_whether_to_refine_is_true_or_false() -> None:
    with pytest.raises(InvalidArgument, match="refine=2"):
        Latency(refine=2)  # type: ignore[arg-type]
