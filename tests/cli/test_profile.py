"""``profile``: sites, costs, and what is skipped or not counted."""

from __future__ import annotations

import io
import json
import os
import re
import textwrap
from pathlib import Path

import pandas as pd
from cli_cases import edited

from ranksearch.cli import main as cli


def test_profile_shows_sites_costs_and_what_was_skipped(study, tmp_path, capsys):
    assert cli.main(["profile", study, "--data", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^0 +conv2d +8x3x3x3 +224 ", shown, re.M)
    assert re.search(r"^no decomposition is defined for BatchNorm2d +BatchNorm2d +1 +16 +1$", shown, re.M)
    assert re.search(r"^3 +conv2d .* \w+ .*: error 0\.\d\d$", shown, re.M) and "best at half the params" in shown
    assert re.search(r"^spatial +6 +", shown, re.M) and "configurations; the smallest has" in shown
    assert cli.main(["profile", study, "--data", str(tmp_path), "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [s["site"] for s in data["sites"]] == ["0", "3", "6"]
    assert data["params"] == sum(s["params"] for s in data["sites"]) + sum(s["params"] for s in data["skipped"])
    assert data["macs"] == sum(s["macs"] for s in data["sites"])
    assert cli.main(["profile", study, "--data", str(tmp_path), "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert frame["params"].sum() == data["params"] and frame["skipped"].notna().sum() == len(data["skipped"])
    assert {path.name for path in Path(os.environ["RANKSEARCH_HOME"]).iterdir()} <= {"cache"}, "no store was made"


def test_profile_names_what_is_not_counted(study, tmp_path, capsys):
    edited(study, "return nn.Sequential(", "return nn.Sequential(Spectrum(),")
    spectrum = "class Spectrum(nn.Module):\n    def forward(self, x):\n        return torch.fft.fft(x).real\n\n"
    edited(study, "def network():", f"{spectrum}def network():")
    assert cli.main(["profile", study, "--data", str(tmp_path)]) == 0
    assert "no rule counts these operators: aten::_fft_r2c" in capsys.readouterr().out
    assert cli.main(["profile", study, "--data", str(tmp_path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["uncounted"] == ["aten::_fft_r2c"]


def test_profile_tells_that_statistics_are_collected(study, tmp_path, capsys):
    edited(study, 'Study("bright", ', 'Study("bright", space=mixture().replace(metric="fisher", calibration=2), ')
    edited(study, "import time\n", "from ranksearch.space import mixture\n")
    assert cli.main(["profile", study, "--data", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "collecting statistics of 2 batches for the fisher metric: " in printed.err and "errors in the fisher metric" in printed.out


def test_profile_shows_every_path_of_a_site_and_tied_heads(tmp_path: Path, capsys) -> None:
    (tmp_path / "words.py").write_text(textwrap.dedent("""
        import torch
        from torch import nn
        from ranksearch.space import mixture
        from ranksearch.study import Study
        from ranksearch.tasks import Classification

        class Words(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.body = nn.Embedding(40, 16), nn.Linear(16, 16)
                self.again, self.head = self.body, nn.Linear(16, 40)
                self.head.weight = self.embed.weight

            def forward(self, x):
                return self.head(self.again(self.body(self.embed(x)).mean(dim=1)))

        def study() -> Study:
            torch.manual_seed(0)
            x, y = torch.randint(0, 40, (64, 5)), torch.randint(0, 40, (64,))
            parts = {"train": (x[:32], y[:32]), "validation": (x[32:], y[32:])}
            task = Classification(**parts, classes=40, batch_size=16, learning_rate=0.1)
            return Study("words", model=Words(), task=task)
    """))
    assert cli.main(["profile", str(tmp_path / "words.py"), "--format", "json"]) == 0
    sites = {site["site"]: site for site in json.loads(capsys.readouterr().out)["sites"]}
    assert {name: (site["kind"], site["aliases"]) for name, site in sites.items()} == {
        "embed": ("embedding + head", "head"), "body": ("linear", "again")
    }  # fmt: skip
