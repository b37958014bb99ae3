"""Configurations of the user's own are checked before any work, stored like a search's, and evaluated first by the next search."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument, RanksearchWarning
from ranksearch.evaluation import Evaluator, Fidelity
from ranksearch.space import DENSE, Configuration, SearchSpace, build_space, mixture, svd_only
from ranksearch.study import Finished, Study
from ranksearch.tasks import Classification

OWN = {"0": ("svd", (2,)), "4": ("svd", (1,))}
FOREIGN = {"0": ("tucker2", (3, 4))}  # no type of the space


def make(store: Path, **changes) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 3, 4, 4, generator=generator)
    y = torch.arange(48) % 4
    task = Classification(train=(x[:32], y[:32]), validation=(x[32:], y[32:]), batch_size=16, learning_rate=0.05)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    options = {"space": svd_only(), "fidelity": Fidelity(epochs=0, recalibration=0), "store": store} | changes
    return Study("own", model=net, task=task, **options)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))
    return tmp_path / "own.db"


def _order(study: Study, trials: int, **options) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    def note(event) -> None:
        if isinstance(event, Finished):
            found.append((event.outcome.request.configuration.id, event.outcome.request.origin))

    study.run(trials, runner="local", on_event=note, **options)
    return found


def test_what_is_evaluated_is_stored_as_a_search_would(store: Path) -> None:
    study = make(store)
    record = study.evaluate(OWN)
    assert record.status == "done" and record.configuration_id == Configuration(OWN).id
    network = study.build(record.configuration_id)
    assert record.metrics == pytest.approx(study.task.measure(network))
    assert record.costs["params"] == sum(p.numel() for p in network.parameters())
    row = study.evaluations().iloc[0]
    assert (row["id"], row["origin"], row["fidelity"]) == (record.configuration_id, "evaluate", study.fidelity.key)
    assert not any(id == record.configuration_id for id, _ in _order(study, 6))


def test_what_is_known_is_only_read(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(store).evaluate(OWN)
    monkeypatch.setattr(Evaluator, "__call__", lambda *_: pytest.fail("evaluated again"))
    assert make(store).evaluate(Configuration(OWN)) == first


def test_a_failure_of_code_is_tried_again_and_then_counts(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = make(store)
    with monkeypatch.context() as patched:
        patched.setattr(type(broken.task), "measure", lambda *_: [][0])
        failed = broken.evaluate(OWN)
    assert failed.status == "failed" and failed.error is not None and "IndexError" in failed.error
    again = make(store).evaluate(OWN)
    assert again.status == "done" and make(store).evaluations()["status"].tolist() == ["done"]


def test_what_is_enqueued_is_evaluated_first_and_counts_among_the_trials(store: Path) -> None:
    kept = [make(store).enqueue(OWN), make(store).enqueue(FOREIGN), make(store).enqueue(OWN)]
    order = _order(make(store), 5)
    assert [id for id, _ in order[:3]] == [DENSE.id, kept[0].id, kept[1].id] and len(order) == 5
    assert [origin for _, origin in order[:3]] == ["dense", "enqueue", "enqueue"] and "enqueue" not in {o for _, o in order[3:]}
    study = make(store)
    row = study.evaluations().set_index("id").loc[kept[1].id]
    assert row["status"] == "done" and row["params"] == sum(p.numel() for p in study.build(kept[1].id).parameters())
    assert _order(make(store), 5) == []


def test_a_queue_is_for_one_fidelity_and_seed(store: Path) -> None:
    kept = make(store).enqueue(OWN)
    other = make(store, seed=1)
    assert kept.id not in {id for id, origin in _order(other, 2) if origin == "enqueue"}
    assert (kept.id, "enqueue") in _order(make(store), 2)


def test_what_breaks_the_constraints_waits(store: Path) -> None:
    kept = make(store).enqueue(OWN)
    least = make(store).space.smallest("macs") / make(store).baseline.macs
    with pytest.warns(RanksearchWarning, match=f"{kept.id} breaks the constraints.*macs"):
        order = _order(make(store), 3, sampler="random", constraints=[f"macs <= {least}"])
    assert kept.id not in {id for id, _ in order}
    assert (kept.id, "enqueue") in _order(make(store), 4)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"O": ("svd", (2,))}, "'O' is no layer"),
        ({"0": ("svdd", (2,))}, "no type; did you mean 'svd'"),
        ({"4": ("spatial", (2,))}, "not defined for '4'"),
        ({"0": ("svd", (9,))}, r"no rank \[9\].*between \[1\] and \[8\]"),
        ({"0": ("svd", (0,))}, "no rank"),
        ({"0": ("svd", (2, 2))}, "no rank"),
        ({"0": 7}, "give {site"),
        ("0", "give {site"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_stored(store: Path, wrong, message: str) -> None:
    for ask in (make(store).enqueue, make(store).evaluate):
        with pytest.raises(InvalidArgument, match=message):
            ask(wrong)
    assert not store.exists()


def test_a_study_takes_the_space_of_another_one(store: Path) -> None:
    spec = svd_only(round_to=2)
    first = make(store, space=spec)
    assert isinstance(first.space, SearchSpace)
    assert make(store, space=first.space).spec == spec
    assert make(store, space="svd_only").space.fingerprint == make(store).space.fingerprint
    assert make(store, space=None).spec == mixture()


def test_what_is_no_declared_space_is_refused_with_the_remedy(store: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"call it: space=mixture\(\)"):
        make(store, space=mixture)
    with pytest.raises(InvalidArgument, match="one of mixture, svd_only, all_types"):
        make(store, space="svd")
    with pytest.raises(InvalidArgument, match="give a SpaceSpec"):
        make(store, space=build_space(make(store).spectra))
