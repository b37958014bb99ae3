"""Options that the best configurations land on are measured: on a machine that is no straight line between measured ranks."""

from __future__ import annotations

import math
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
from ranksearch.latency.curve import curve
from ranksearch.latency.layers import stand_in
from ranksearch.latency.timing import Interval
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
    after = cost.refined([(dense_network().sites[site], TYPES[name], wrong)])
    assert machine.prepared == prepared + 1 and after is not cost and after.table.id != cost.table.id
    assert amount(after, site, name, wrong) == pytest.approx(truth(machine, site, name, wrong), rel=0.02)
    assert after.table.layer("4").types[name] == after.table.layer("2").types[name]  # the same layer
    assert wrong not in cost.table.layer(site).types[name]  # the first one is as it was
    assert after.refined([(dense_network().sites["4"], TYPES[name], wrong)]) is after


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


def test_whether_to_refine_is_true_or_false() -> None:
    with pytest.raises(InvalidArgument, match="refine=2"):
        Latency(refine=2)  # type: ignore[arg-type]
