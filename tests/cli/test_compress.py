"""``ranksearch compress``: a smaller network on disk, every rule's answer on stdout, errors before any work."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import get_args

import click
import pytest
import torch

from ranksearch import load
from ranksearch.cli import main as cli
from ranksearch.cli import parameters
from ranksearch.compression import RULES, Norms

STUDY = """
    import torch
    from torch import nn
    from ranksearch.space import svd_only
    from ranksearch.study import Study
    from ranksearch.tasks import Classification

    def study(*, noise: float = 0.0) -> Study:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 2))
        x = torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + noise
        y = (x.mean(dim=(1, 2, 3)) > noise).long()
        task = Classification(train=(x[:64], y[:64]), validation=(x[64:], y[64:]), batch_size=16, learning_rate=0.05)
        return Study("bright", model=net, task=task, space=svd_only())
"""


@pytest.fixture
def study(tmp_path: Path) -> str:
    (tmp_path / "bright.py").write_text(textwrap.dedent(STUDY))
    return str(tmp_path / "bright.py")


def test_writes_the_best_and_shows_all(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    assert cli.main(["compress", study, "--to", "macs <= 0.7", "--to", "params <= 0.6", "--out", str(out), "--polish", "5"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{rule.name}" in text for rule in RULES) and "polish" in text and "\nrefit" in text
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["macs"] <= 0.7 * manifest["baseline"]["macs"] and manifest["params"] <= 0.6 * manifest["baseline"]["params"]
    assert f"{manifest['rule']} *" in text and manifest["id"] in text
    namespace: dict = {}
    exec(textwrap.dedent(STUDY), namespace)
    made = namespace["study"]()
    small = load(out, made.model)
    assert sum(p.numel() for p in small.parameters()) == manifest["params"]
    assert made.task.measure(small) == pytest.approx(manifest["measured"], abs=1e-6)
    assert not list(tmp_path.glob("**/*.db"))  # the store is not touched
    x = torch.randn(2, 3, 6, 6)
    assert not torch.allclose(small.eval()(x), made.model.eval()(x))


def test_one_rule(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compress", study, "--to", "macs <= 0.7", "--out", str(tmp_path / "small"), "--rule", "frobenius"]) == 0
    text = capsys.readouterr().out
    assert "frobenius *" in text and "balf" not in text and "refit" not in text
    again = ["compress", study, "--to", "macs <= 0.7", "--out", str(tmp_path / "other"), "--rule", "uniform", "--refits", "1"]
    again += ["--recover", "0.5", "--norms", "re-estimated"]
    assert cli.main(again) == 0
    text = capsys.readouterr().out
    assert "\nrefit" in text and "has re-estimated statistics of batch norms" in text
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    assert manifest["epochs"] in (0, 0.5) and manifest["dense_norms"] == "re-estimated"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--to"),
        (("--to", "accuracy >= 0.9"), "is not an upper bound on a cost"),
        (("--to", "latency <= 0.5"), "--cost latency"),
        (("--to", "macs <= -1"), "'macs <= -1': no macs is below 0"),
        (("--to", "macs <= 0.0001"), "the smallest this space reaches"),
        (("--to", "macs <="), "macs <="),
        (("--to", "macs <= 0.5", "--rule", "fishr"), "'fishr' is not one of fisher"),
        (("--to", "macs <= 0.5", "--polish", "-1"), "-1"),
        (("--to", "macs <= 0.5", "--refits", "-1"), "-1"),
        (("--to", "macs <= 0.5", "--recover", "-1"), "-1"),
        (("--to", "macs <= 0.5", "--norms", "batch"), "'batch' is not one of 'auto', 'own', 're-estimated'"),
    ],
)
def test_bad_input_ends_with_2(study: str, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys) -> None:
    assert cli.main(["compress", study, *arguments, "--out", str(tmp_path / "small")]) == 2
    found = capsys.readouterr()
    assert message in found.err and "Traceback" not in found.err and not found.out
    assert not (tmp_path / "small").exists()


def test_choices_are_those_of_the_call() -> None:
    option = next(parameter for parameter in parameters.compress() if parameter.name == "norms")
    assert isinstance(option.type, click.Choice) and tuple(option.type.choices) == get_args(Norms)


def test_a_folder_that_is_no_export_is_never_replaced(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "mine.txt").write_text("mine")
    assert cli.main(["compress", study, "--to", "macs <= 0.5", "--out", str(tmp_path / "small"), "--force"]) == 2
    assert "no export" in capsys.readouterr().err and (tmp_path / "small" / "mine.txt").read_text() == "mine"
