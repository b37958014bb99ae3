"""A study that counts latency: in its store, its constraints, its objectives and its command line; resumed, and elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from latency_cases import Machine, latency, network, space

from ranksearch.costs import COSTS, Bytes
from ranksearch.errors import InvalidArgument, StoreError
from ranksearch.evaluation import Fidelity
from ranksearch.latency import Latency, TableLatency
from ranksearch.networks.export import read_manifest
from ranksearch.store import Store
from ranksearch.study import Announced, Study
from ranksearch.tasks import Classification


def study(store: Path, cost: Latency | None, **changes) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, 6, 6, generator=generator)
    y = torch.arange(64) % 10
    task = Classification(train=(x[:32], y[:32]), validation=(x[32:], y[32:]), batch_size=32, learning_rate=0.05)
    costs = {} if cost is None else {"costs": (*COSTS, cost)}
    arguments = {"model": network(), "space": space(max_options=6), "objectives": ("accuracy", "macs"), **costs, **changes}
    return Study("fast", task=task, store=store, fidelity=Fidelity(epochs=0, recalibration=0), **arguments)


def test_latency_is_everywhere_in_a_study(tmp_path: Path) -> None:
    told: list[str] = []
    machine = Machine(inside=1.2)
    made = study(tmp_path / "s.db", latency(machine, batch=2), objectives=("accuracy", "latency"))
    said = lambda event: told.append(event.text) if isinstance(event, Announced) else None  # noqa: E731
    made.run(8, runner="local", constraints=["latency <= 0.8"], on_event=said)
    assert any("measuring latency of 3 different layers" in text for text in told)
    frame = made.evaluations()
    assert frame["latency"].dtype == "Int64" and len(frame) == 8
    chosen = frame[frame["factorized"] > 0]
    assert len(chosen) == 7 and (chosen["latency_rel"] <= 0.8).all()
    for row in chosen.to_dict("records"):
        truth = 1.2e9 * machine.seconds(made.build(row["id"]))
        assert row["latency"] == pytest.approx(truth, rel=0.02)
    front = made.front("latency < 0.7")
    assert (front.loc[front["on_front"], "latency_rel"] < 0.7).all()
    manifest = read_manifest(made.export(chosen["id"].iloc[0], tmp_path / "net"))
    assert manifest["latency"] == chosen["latency"].iloc[0] and manifest["baseline"]["latency"] == made.baseline["latency"]


def test_a_study_goes_on_with_the_measurement_of_its_store(tmp_path: Path) -> None:
    first, other = Machine(), Machine(inside=3.0, label="1")  # it became three times as slow
    study(tmp_path / "s.db", latency(first, cache=False)).run(4, runner="local")
    again = study(tmp_path / "s.db", latency(other, cache=False))
    again.run(6, runner="local")
    assert other.prepared == 0
    frame = again.evaluations()
    assert len(frame) == 6 and frame.loc[frame["factorized"] == 0, "latency_rel"].tolist() == [1.0]
    for row in frame.to_dict("records"):
        assert row["latency"] == pytest.approx(1e9 * first.seconds(again.build(row["id"])), rel=0.03)
    elsewhere = again.replace(store=tmp_path / "new.db")  # another store is another measurement
    assert elsewhere.baseline["latency"] == pytest.approx(3 * again.baseline["latency"], rel=0.01)
    assert again.replace(seed=3).counts is again.counts and again.replace(costs=COSTS).counts == COSTS


def test_other_settings_than_those_of_the_store_are_refused(tmp_path: Path) -> None:
    study(tmp_path / "s.db", latency(Machine(), batch=2)).run(3, runner="local")
    with pytest.raises(InvalidArgument, match="batch 2; ask for that, or use another --store"):
        study(tmp_path / "s.db", latency(Machine(), batch=4)).run(4, runner="local")
    with pytest.raises(InvalidArgument, match="runtime='eager'"):
        _ = study(tmp_path / "s.db", Latency(batch=2)).baseline
    plain = study(tmp_path / "s.db", None)  # and lose it again
    plain.run(4, runner="local")
    assert "latency" not in plain.evaluations().columns


def test_a_study_may_gain_latency(tmp_path: Path) -> None:
    study(tmp_path / "s.db", None).run(4, runner="local")
    machine = Machine()
    made = study(tmp_path / "s.db", latency(machine))
    for row in made.evaluations().to_dict("records"):
        assert row["latency"] == pytest.approx(1e9 * machine.seconds(made.build(row["id"])), rel=0.03)


def test_a_measurement_stored_meanwhile_is_not_mixed_with_another(tmp_path: Path) -> None:
    slow = study(tmp_path / "s.db", latency(Machine(inside=2.0, label="2"), cache=False))
    _ = slow.space  # measured, and nothing stored yet
    study(tmp_path / "s.db", latency(Machine(), cache=False)).run(2, runner="local")
    with pytest.raises(StoreError, match="got another measurement of latency meanwhile"):
        slow.run(4, runner="local")
    with Store.open(tmp_path / "s.db", create=False) as store:
        assert store.count() == 2


def test_the_store_of_another_study_gives_no_measurement(tmp_path: Path) -> None:
    study(tmp_path / "s.db", latency(Machine())).run(2, runner="local")
    other = study(tmp_path / "s.db", latency(Machine()), model=network().double())
    with pytest.raises(StoreError, match="fingerprint"):
        _ = other.baseline


def test_what_is_counted_is_not_measured(tmp_path: Path) -> None:
    made = study(tmp_path / "none" / "s.db", None, costs=(*COSTS, Bytes()))
    assert made.counts == made.costs and made.baseline["bytes"] == 4 * made.baseline.params
    assert not any(isinstance(cost, TableLatency) for cost in made.counts)
