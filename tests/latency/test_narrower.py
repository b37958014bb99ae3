"""Narrower dense networks: timed with the table of their network, kept with it, and shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from latency_cases import Machine, dense_network, latency, network, space
from torch import nn

from ranksearch.cli.latency import break_even_table, narrower_rows
from ranksearch.costs import COSTS, Narrower
from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity
from ranksearch.latency import LatencyTable
from ranksearch.report.data import page_data
from ranksearch.sites import find_sites
from ranksearch.study import Study
from ranksearch.tasks import Classification

ACCURACY = {0.5: {"accuracy": 0.75}}


def narrow(width: float, *, answers: int = 10) -> nn.Module:
    """`network` with fewer channels."""
    c = round(12 * width)
    convolutions = (nn.Conv2d(3, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1))
    return nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(c * 36, answers))


RIVALS = Narrower(narrow, widths=(0.5, 0.75), metrics=ACCURACY.get)


def test_narrower_networks_take_what_they_take_and_are_kept_with_the_table() -> None:
    machine = Machine(inside=1.4)
    dense = dense_network(narrower=RIVALS)
    told: list[str] = []
    table = latency(machine).of(dense, tell=told.append).table
    assert [one.width for one in table.narrower] == [0.75, 0.5] and told[-1] == "measuring 2 narrower dense networks"
    for one in table.narrower:
        model = narrow(one.width)
        assert one.ratio.value == pytest.approx(machine.seconds(model) / machine.seconds(dense.model), rel=1e-6)
        assert one.ratio.low <= one.ratio.value <= one.ratio.high < 1
        total = find_sites(model, dense.example).total
        assert (one.params, one.macs, one.metrics) == (total.params, total.macs, ACCURACY.get(one.width, {}))
    data = json.loads(json.dumps(table.as_json()))
    assert LatencyTable.from_json(data) == table
    del data["narrower"]  # as tables of earlier versions are
    assert LatencyTable.from_json(data) == replace(table, narrower=())
    plain = latency(Machine(inside=1.4)).of(dense_network()).table
    assert "narrower" not in plain.as_json() and plain.id != table.id


def test_rivals_are_like_the_dense_network() -> None:
    model = network().double().to(memory_format=torch.channels_last)
    made: list[nn.Module] = []

    def noting(width: float) -> nn.Module:
        made.append(narrow(width))
        return made[-1]

    example = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    dense = dense_network(model, example=example, sites=find_sites(model, example), narrower=Narrower(noting, widths=(0.5,)))
    _ = latency(Machine()).of(dense)
    (rival,) = made
    assert not rival.training and rival[2].weight.dtype is torch.float64
    assert rival[2].weight.is_contiguous(memory_format=torch.channels_last) and not rival[2].weight.is_contiguous()


@pytest.mark.parametrize(
    ("rivals", "words"),
    [
        (Narrower(lambda width: narrow(width, answers=9), widths=(0.5,)), r"width 0.5 answers with shapes \[\(1, 9\)\], .* \[\(1, 10\)\]"),
        (Narrower(narrow, widths=(0.5,), metrics=lambda _: {"accuracy": math.nan}), "finite numbers, or None where it was not trained"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_measured(rivals: Narrower, words: str) -> None:
    machine = Machine()
    with pytest.raises(InvalidArgument, match=words):
        latency(machine).of(dense_network(narrower=rivals))
    assert machine.prepared == 0


@pytest.mark.parametrize("widths", [(), (1.0,), (0.5, 0.0), ("half",)])
def test_widths_are_shares(widths: tuple) -> None:
    with pytest.raises(InvalidArgument, match="widths"):
        Narrower(narrow, widths=widths)


def study(store: Path, machine: Machine, **changes) -> Study:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 3, 6, 6, generator=generator), torch.arange(64) % 10
    task = Classification(train=(x[:32], y[:32]), validation=(x[32:], y[32:]), batch_size=32, learning_rate=0.05)
    arguments = {"costs": (*COSTS, latency(machine, batch=1)), "narrower": RIVALS, **changes}
    return Study("fast", model=network(), task=task, space=space(max_options=4), store=store, fidelity=Fidelity(epochs=0), **arguments)


def test_a_study_shows_them_beside_its_networks(tmp_path: Path) -> None:
    machine = Machine()
    made = study(tmp_path / "s.db", machine)
    made.run(4, runner="local", proxies=[])
    prepared = machine.prepared
    again = study(tmp_path / "s.db", machine, narrower=None)  # what its store has
    frame = again.questions.narrower()
    assert machine.prepared == prepared and frame["width"].tolist() == [0.75, 0.5]
    assert frame["accuracy"].isna().tolist() == [True, False] and frame["accuracy"].iloc[1] == 0.75
    assert frame["latency"].iloc[0] == pytest.approx(1e9 * machine.seconds(narrow(0.75)), rel=0.01)
    assert frame["params_rel"].iloc[1] == pytest.approx(sum(p.numel() for p in narrow(0.5).parameters()) / made.baseline.params)
    assert "not trained" in (text := break_even_table(again)) and "0.7500" in text
    assert [row["accuracy"] for row in narrower_rows(again)] == [None, 0.75]
    rows = page_data(again.report.facts(proxies=False))["narrower"]
    assert [row["width"] for row in rows] == [0.75, 0.5] and rows[0]["values"]["accuracy"] is None
    assert {*rows[1]["values"]} == {"params", "macs", "latency", *(metric.name for metric in made.task.metrics)}


def test_a_study_without_latency_has_none(tmp_path: Path) -> None:
    assert study(tmp_path / "s.db", Machine(), costs=COSTS).questions.narrower().empty
