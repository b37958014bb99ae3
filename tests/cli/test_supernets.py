"""``train-supernet`` and what other commands do with it, as a user meets them."""

from __future__ import annotations

import json
import re
import signal
import textwrap
import time
from pathlib import Path

import forked
import pytest

from ranksearch.cli import main as cli

STUDY = """
    from typing import Annotated
    import time
    import torch
    from torch import nn
    from ranksearch.evaluation import Fidelity
    from ranksearch.study import Study
    from ranksearch.tasks import Classification

    class Slow(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self, x):
            time.sleep(self.seconds if self.training else 0)
            return x

    def study(*, epochs: Annotated[float, "of fine-tuning"] = 0.0, pause: float = 0.0, seed: int = 0) -> Study:
        torch.manual_seed(0)
        x = torch.randn(160, 3, 6, 6, generator=torch.Generator().manual_seed(0))
        y = (x.mean(dim=(1, 2, 3)) > 0).long()
        task = Classification(train=(x[:96], y[:96]), validation=(x[96:], y[96:]), batch_size=32, learning_rate=0.05)
        net = nn.Sequential(
            Slow(pause), nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(128, 2)
        )
        return Study("bright", model=net, task=task, fidelity=Fidelity(epochs=epochs, recalibration=1), seed=seed)
"""


@pytest.fixture
def study(tmp_path: Path) -> str:
    path = tmp_path / "bright.py"
    path.write_text(textwrap.dedent(STUDY))
    return str(path)


def error(capsys, *arguments: str) -> str:
    """The one line that a failing command prints on stderr, after its stages and their progress, which slow machines see."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith("...") and not re.match(r"site \d+ of \d+", line)]
    assert len(lines) == 1, lines
    return lines[0]


def test_from_training_to_a_network_on_disk(study: str, tmp_path: Path, capsys) -> None:
    store = ["--store", str(tmp_path / "s.db")]
    assert cli.main(["train-supernet", study, "--method", "joint", "--epochs", "1", *store]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"3/3 steps  loss \d", err) and re.search(r"supernet joint-[0-9a-f]{8} is trained", out)
    assert re.search(r"^dense +0\.\d{4}", out, re.M) and len(re.findall(r"^at most \d+ % MACs +0\.\d{4}", out, re.M)) >= 2
    key = re.search(r"joint-([0-9a-f]{8})", out)
    assert key and f"--supernet {key[1]} --screen" in out and len(list((tmp_path / "supernets").iterdir())) == 1
    again = ["train-supernet", study, "--method", "joint", "--epochs", "1", *store]
    assert cli.main(again) == 0
    repeated = capsys.readouterr()
    assert repeated.out == out and "steps" not in repeated.err

    search = ["search", "--supernet", study, "--screen", "12", "--trials", "6", "--runner", "local", *store]
    assert cli.main(search) == 0
    out, err = capsys.readouterr()
    assert "12 evaluations by supernet wanted" in err and "6 evaluations wanted" in err
    assert "18 evaluations stored, 12 of them screened with a supernet" in out
    assert cli.main(search) == 0
    assert "12 of them in the store" in capsys.readouterr().err

    assert cli.main(["front", study, "--fidelity", "supernet", "--all", "--format", "json", *store]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 12 and {row["fidelity"].split(":")[0] for row in rows} == {f"supernet-joint-{key[1]}"}
    assert cli.main(["front", study, "--all", "--format", "json", *store]) == 0
    assert {row["fidelity"] for row in json.loads(capsys.readouterr().out)} == {"full:epochs=0,recalibration=1"}

    row = next(row for row in rows if row["factorized"])
    assert cli.main(["build", study, row["id"], "--fidelity", "supernet", "--out", str(tmp_path / "net"), *store]) == 0
    manifest = json.loads((tmp_path / "net" / "manifest.json").read_text())
    assert manifest["fidelity"] == row["fidelity"]
    assert manifest["measured"]["accuracy"] == row["accuracy"] == manifest["metrics"]["accuracy"]


def test_ctrl_c_keeps_the_steps_and_the_same_command_goes_on(study: str, tmp_path: Path) -> None:
    command = ["-m", "ranksearch.cli", "train-supernet", study, "--epochs", "4", "--store", str(tmp_path / "s.db")]
    process = forked.Forked([*command, "--pause", "0.3"])
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "steps  loss" in line:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(60)
    assert process.returncode == 130, rest
    last = rest.splitlines()[-1]
    found = re.fullmatch(r"interrupted at step (\d+) of 12; run the same command to go on from the last checkpoint", last)
    assert found and "Traceback" not in rest
    start = time.monotonic()
    done = forked.run(*command, "--pause", "0.3")
    assert done.returncode == 0 and time.monotonic() - start < 100
    assert f"going on after step {found[1]} of 12" in done.stderr and "12/12 steps" in done.stderr
    straight = tmp_path / "straight"
    straight.mkdir()
    whole = forked.run(*command[:-1], str(straight / "s.db"))
    table = [part.stdout.split("no other training:")[1].split("\nin ")[0] for part in (done, whole)]
    assert whole.returncode == 0 and table[0] == table[1]


def test_errors_are_one_line_with_the_remedy(study: str, tmp_path: Path, capsys) -> None:
    store = ["--store", str(tmp_path / "s.db")]
    assert "did you mean 'sandwich'?" in error(capsys, "train-supernet", study, "--method", "sandwitch")
    assert "did you mean 'small_rank'?" in error(capsys, "train-supernet", study, "--sampling", "small_ranks")
    wrong = {
        "random": "write NAME=VALUE", "2x=3": "write NAME=VALUE", "randm=1": "did you mean 'random'?", "random=-1": "random=-1",
        "weight=heavy": "weight='heavy'", "distillation=soft": "distillation='soft'",
    }  # fmt: skip
    for text, message in wrong.items():
        assert message in error(capsys, "train-supernet", study, "--set", text), text
    assert "given twice" in error(capsys, "train-supernet", study, "--set", "random=1", "--set", "random=2")
    assert "target='small'" in error(capsys, "train-supernet", study, "--method", "distortion", "--set", "target=small")
    assert "epochs=-1.0: must be a finite number above 0" in error(capsys, "train-supernet", study, "--epochs", "-1")
    assert "--screen 5 needs --supernet" in error(capsys, "search", study, "--screen", "5")
    line = error(capsys, "search", study, "--supernet", "--runner", "local", *store)
    assert "no supernet of this study is trained" in line and "ranksearch train-supernet STUDY" in line
    for seed in ("0", "1"):
        command = ["train-supernet", study, "--method", "joint", "--epochs", "0.3", "--set", "rescale=false", "--seed", seed, *store]
        assert cli.main(command) == 0
    line = error(capsys, "search", study, "--supernet", "joint", "--runner", "local", *store)
    assert "several are trained" in line and "seed 0" in line and "seed 1" in line


def test_the_commands_own_epochs_are_those_of_the_training(study: str, capsys) -> None:
    assert cli.main(["train-supernet", study, "--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"--epochs X +Passes over the training data", out) and re.search(r"--study-epochs X +of fine-tuning", out)


def test_supernet_may_stand_without_a_value(study: str, capsys) -> None:
    for arguments in (["search", "--supernet", study], ["search", study, "--supernet"], ["search", "--supernet", "joint", study]):
        assert "no supernet of this study is trained" in error(capsys, *arguments, "--runner", "local")
