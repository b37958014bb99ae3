"""The tables of the quality frontier and of the worth of proxies, of rows made up here, and the networks of theirs that are trained."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ranksearch.errors import InvalidArgument

SCRIPTS = Path(__file__).parents[2] / "analysis"


@cache
def script(name: str) -> Any:
    sys.path.insert(0, str(SCRIPTS))  # as when it runs: its tables are files beside it
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


def row(rule: str, seed: int, plain: tuple[float, float] | None, fitted: tuple[float, float] | None = None, **more: Any) -> dict[str, Any]:
    """One network: (held-out loss, accuracy) of each way that was taken to the test set."""
    place = {"network": "net", "space": "svd", "cost": "params", "budget": 0.5, "dense": 0.9, "test": 100}
    ways = {"as it is": plain, "reconstructed": fitted}
    made = {way: {"held_out": one[0], "accuracy": one[1]} for way, one in ways.items() if one is not None}
    return place | {"rule": rule, "seed": seed} | made | more


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_best_published_rule_is_that_of_the_test_set_and_ours_that_of_the_held_out_loss() -> None:
    rows = [
        row("balf", 0, (0.4, 0.70), (0.3, 0.75)), row("balf", 1, (0.4, 0.72), (0.3, 0.77)),
        row("uniform", 0, (0.9, 0.60), (0.8, 0.79)), row("uniform", 1, (0.9, 0.62), (0.8, 0.81)),
        row("refit", 0, (0.2, 0.74), (0.1, 0.78)), row("refit", 1, (0.2, 0.76), (0.1, 0.80)),
    ]  # fmt: skip
    head, _, line = script("frontier").compared(rows)
    found = dict(zip(cells(head), cells(line), strict=True))
    assert found["budget"] == "params 0.5" and found["dense"] == "90.0"
    assert found["best published"] == "71.0 ± 1.4 balf"
    assert found["with our reconstruction"] == "80.0 ± 1.4 uniform"  # better there, though its held-out loss is not
    assert found["refit"] == found["handed out"] == "79.0 ± 1.4"
    assert found["ahead"] == "+8.0 ± 0.0" and float(found["s.e."]) == pytest.approx(4.1)
    rows[0] |= {"as it is": {"held_out": 0.4, "accuracy": 0.5}}  # then another rule is best of that seed
    found = dict(zip(cells(head), cells(script("frontier").compared(rows)[2]), strict=True))
    assert found["best published"] == "66.0 ± 8.5 uniform, others"
    rows[4] |= {"finished": {"held_out": 0.09, "accuracy": 0.81}}  # fitted to more batches, and better
    rows[5] |= {"finished": {"held_out": 0.11, "accuracy": 0.99}}  # and worse
    found = dict(zip(cells(head), cells(script("frontier").compared(rows)[2]), strict=True))
    assert found["refit"] == "79.0 ± 1.4" and found["handed out"] == "80.5 ± 0.7"


def test_rules_without_an_answer_and_those_that_did_not_contend_are_told_apart() -> None:
    rows = [row("balf", 0, (0.4, 0.7)), row("stn_storage", 0, None, error="too small")]
    rows.append(row("uniform", 0, None) | {"as it is": {"held_out": 0.5}})  # measured on held-out batches alone
    lines = {cells(line)[0]: cells(line)[1:] for line in script("frontier").by_rule(rows, "as it is") if line.startswith("|")}
    assert lines["rule"] == ["params 0.5"]
    assert (lines["balf"], lines["stn_storage"], lines["uniform"]) == (["70.0"], ["x"], ["-"])
    assert script("frontier").handed_out({0: rows}) == {0: pytest.approx(70.0)}


def test_contenders_are_the_best_as_they_come_and_after_a_light_reconstruction() -> None:
    """A published rule that is poor as it comes contends reconstructed, if a light reconstruction mends it."""
    module = script("frontier")
    losses = {"balf": (0.2, 0.4), "alds": (0.3, 0.5), "lems": (0.9, 0.1), "fisher": (0.1, 0.3), "refit": (0.8, 0.2)}
    rows = [{"rule": name, "as it is": {"held_out": plain}, "lightly fitted": light} for name, (plain, light) in losses.items()]
    rows.append({"rule": "evbmf", "error": "no answer"})
    told = [(row["rule"], way) for row, way in module.contending(rows, 1)]
    plain, fitted = "as it is", "reconstructed"
    assert told == [("balf", plain), ("lems", plain), ("lems", fitted), ("fisher", plain), ("refit", plain), ("refit", fitted)]
    assert len(list(module.contending(rows, 9))) == 2 * 5


def test_a_row_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"rule": "balf"}) + "\n" + '{"rule": "un')
    assert script("subjects").rows_of(path) == [{"rule": "balf"}]
    assert script("subjects").resumed(path) == [{"rule": "balf"}] and path.read_text() == json.dumps({"rule": "balf"}) + "\n"
    assert script("subjects").rows_of(tmp_path / "none.jsonl") == []


def test_what_was_measured_is_noted_until_what_it_hangs_on_changes(tmp_path: Path) -> None:
    notes, path = script("notes"), tmp_path / "rows" / "cell.notes"
    first = notes.Notes(path, "one")
    first["as it is", "fisher"]["a"] = 0.25
    first["as it is", "weight"]["a"] = 0.5
    first["on the test set", "fisher"]["b"] = {"accuracy": 0.9}
    again = notes.Notes(path, "one")
    assert {place: dict(page) for place, page in again.items()} == {
        ("as it is", "fisher"): {"a": 0.25}, ("as it is", "weight"): {"a": 0.5}, ("on the test set", "fisher"): {"b": {"accuracy": 0.9}},
    }  # fmt: skip
    again["as it is", "fisher"]["c"] = 1.0
    path.write_text(path.read_text() + '{"place": ["as it')  # the process was killed
    third = notes.Notes(path, "one")
    assert third["as it is", "fisher"] == {"a": 0.25, "c": 1.0} and third["other", "fisher"] == {}
    assert notes.Notes(path, "two")["as it is", "fisher"] == {}
    assert notes.Notes(path, "one")["as it is", "fisher"] == {}  # it was begun anew


def test_notes_hang_on_options_and_on_what_is_in_files(tmp_path: Path) -> None:
    notes, weights = script("notes"), tmp_path / "weights"
    weights.write_bytes(b"1")
    given = argparse.Namespace(seed=0, weights=weights, threads=1)
    known = notes.hangs_on(given, ["seed", "weights"])
    given.threads = 2
    assert notes.hangs_on(given, ["seed", "weights"]) == known
    given.seed = 1
    assert notes.hangs_on(given, ["seed", "weights"]) != known
    given.seed = 0
    weights.write_bytes(b"2")
    assert notes.hangs_on(given, ["seed", "weights"]) != known


def test_notes_hang_on_what_is_in_folders(tmp_path: Path) -> None:
    notes, file = script("notes"), tmp_path / "models" / "weights"
    file.parent.mkdir()
    file.write_bytes(b"one")
    given = argparse.Namespace(shared=tmp_path)
    known = notes.hangs_on(given, ["shared"])
    assert notes.hangs_on(given, ["shared"]) == known
    file.write_bytes(b"other")
    assert notes.hangs_on(given, ["shared"]) != known


def test_what_other_code_notes_meanwhile_is_not_taken(tmp_path: Path) -> None:
    notes, path = script("notes"), tmp_path / "cell.notes"
    before = notes.Notes(path, "one")
    after = notes.Notes(path, "two")
    after["as it is", "fisher"]["a"] = 1.0
    before["as it is", "fisher"]["a"] = 2.0  # a process that was begun before the code changed
    assert notes.Notes(path, "two")["as it is", "fisher"] == {"a": 1.0}


def test_a_cell_is_written_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frontier, made = script("frontier"), []

    class Subject:
        dense, norms = {"accuracy": 0.9}, "own"
        task = argparse.Namespace(sizes=lambda: {"test": 10})

        def __init__(self, *given: Any) -> None: ...

        def rows(self, cost: str, budget: float, rules: Any) -> list[dict[str, Any]]:
            made.append((cost, budget))
            return [{"rule": rule, "value": object() if len(made) == 2 and rule == "refit" else 1} for rule in ("balf", "refit")]

    monkeypatch.setattr(frontier, "Subject", Subject)
    monkeypatch.setattr(frontier, "hangs_on", lambda given, options: "")
    given = argparse.Namespace(
        out=tmp_path, network="net", space="svd", seed=0, budgets=[0.5, 0.3], costs=["params"], rules=["balf", "refit"], minutes=1.0
    )
    with pytest.raises(TypeError):  # while the second row of the second cell is written
        frontier.run(given)
    assert [row["budget"] for row in script("subjects").rows_of(tmp_path / "net-svd-0.jsonl")] == [0.5, 0.5]
    frontier.run(given)
    assert made == [("params", 0.5), ("params", 0.3), ("params", 0.3)]
    assert len(script("subjects").rows_of(tmp_path / "net-svd-0.jsonl")) == 4


def test_what_another_process_added_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frontier, path = script("frontier"), tmp_path / "net-svd-0.jsonl"

    class Subject:
        dense, norms = {"accuracy": 0.9}, "own"
        task = argparse.Namespace(sizes=lambda: {"test": 10})

        def __init__(self, *given: Any) -> None: ...

        def rows(self, *asked: Any) -> list[dict[str, Any]]:
            path.write_text(json.dumps({"cost": "macs", "budget": 0.5}) + "\n")
            return [{"rule": "balf"}]

    monkeypatch.setattr(frontier, "Subject", Subject)
    monkeypatch.setattr(frontier, "hangs_on", lambda given, options: "")
    given = argparse.Namespace(
        out=tmp_path, network="net", space="svd", seed=0, budgets=[0.5], costs=["params"], rules=["balf"], minutes=1.0
    )
    frontier.run(given)
    assert [row["cost"] for row in script("subjects").rows_of(path)] == ["macs", "params"]


def test_the_vgg_is_configuration_d_with_one_linear_layer() -> None:
    network = script("trained").vgg16(7)
    convolutions = [m for m in network if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert all(m.kernel_size == (3, 3) and m.bias is None for m in convolutions)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network) == 13 and sum(isinstance(m, nn.MaxPool2d) for m in network) == 5
    assert [type(m) for m in network][-2:] == [nn.Flatten, nn.Linear]
    assert sum(p.numel() for p in network.parameters()) == 14_710_464 + 2 * 4224 + 512 * 7 + 7  # kernels, norms, classifier
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_budget_at_which_no_rule_has_an_answer_has_no_line() -> None:
    rows = [row("balf", 0, None, error="least is 0.2"), row("refit", 0, None, error="least is 0.2")]
    assert len(script("frontier").compared(rows)) == 2  # the head
    script("frontier").Subject.finish(None, rows)  # there is nothing to fit, and nothing of a subject is asked
    assert all("finished" not in one for one in rows)
    other = row("balf", 0, (0.4, 0.7)) | {"budget": 0.3}
    assert len(script("frontier").compared([*rows, other])) == 3


@pytest.mark.parametrize(("name", "tokens"), [("vit", 50), ("mobilenet", None)])
def test_networks_of_transformers_answer_to_small_images_with_logits(name: str, tokens: int | None) -> None:
    pytest.importorskip("transformers")
    network = script("trained").RECIPES[name].make().eval()
    assert network(torch.zeros(2, 1, 28, 28)).logits.shape == (2, 10)
    if tokens:
        assert network.vit.embeddings.position_embeddings.shape == (1, tokens, 96)
    else:  # 28 pixels end as 4: three strides
        assert sum(m.stride == (2, 2) for m in network.modules() if isinstance(m, nn.Conv2d)) == 3


def test_networks_that_are_trained_here_need_their_weights() -> None:
    given = argparse.Namespace(network="vit", shared=Path("nowhere"), weights=None)
    with pytest.raises(InvalidArgument, match=r"--weights: --network vit needs the file that analysis/trained.py"):
        script("subjects").subject(given)


def test_training_follows_the_recipe_and_lowers_the_loss() -> None:
    trained = script("trained")
    images, labels = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
    images[labels == 1] += 1.0
    for optimizer, rate in ((torch.optim.SGD, 0.05), (torch.optim.AdamW, 0.01)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        before = float(nn.functional.cross_entropy(network(images), labels).detach())
        recipe = trained.Recipe(nn.Identity, None, 20, rate, 0.0, batch_size=16, optimizer=optimizer)
        trained.train(network, images, labels, recipe, argparse.Namespace(epochs=20, seed=0, smoothing=0.0))
        assert not network.training and float(nn.functional.cross_entropy(network(images), labels).detach()) < before


def test_batches_are_an_epoch_of_mirrored_and_moved_images() -> None:
    images = torch.zeros(5, 3, 8, 8)
    images[:, :, 4, 4] = 1 + torch.arange(5.0)[:, None]
    seen = list(script("trained").batches(images, torch.arange(5), 2, torch.Generator().manual_seed(0)))
    assert len(seen) == 2  # whole batches alone
    labels = torch.cat([y for _, y in seen]).tolist()
    assert len(set(labels)) == 4
    for x, y in seen:
        assert x.shape == (2, 3, 8, 8)
        for image, label in zip(x, y.tolist(), strict=True):
            assert set(image.unique().tolist()) <= {0.0, label + 1.0}  # an image's own pixel, or moved out of it


def worth(count: int, *, epochs: float = 0.0) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = []
    for band in range(3):
        for k in range(count):
            loss = 1.0 + k / count
            scores = {"exact": 2 * loss, "opposite": -loss, "noise": float(random.normal()), "constant": 1.0}
            measured = {"loss": loss, "accuracy": 1.0 - k / count}
            place = {"network": "net", "space": "svd", "cost": "macs", "epochs": epochs, "examples": 100}
            rows.append(place | {"id": f"{band} {k}", "band": band, "scores": scores, "measured": measured})
    return rows


def test_the_worth_of_proxies_is_their_order_and_what_trusting_them_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("proxy_worth")
    monkeypatch.setattr(module, "RESAMPLES", 50)
    lines = [line for line in module.table(worth(10)) if line.startswith("|")]
    found = {cells(line)[0]: cells(line)[1:] for line in lines}
    assert list(found)[2] == "exact" and list(found)[-1] == "constant"  # best first
    assert found["exact"] == ["1.00 (1.00 to 1.00)"] * 3 + ["0.0 (0.0 to 0.0)"] * 3
    assert all(cell.startswith("-1.00") for cell in found["opposite"][:3])
    assert all(cell.startswith("90.0") for cell in found["opposite"][3:])
    assert found["constant"][:3] == ["-"] * 3 and found["constant"][3].startswith("45.0")  # all alike: a blind choice
    assert "10, 10, 10" in module.table(worth(10))[0] and "2 epochs" in module.table(worth(10, epochs=2))[0]
