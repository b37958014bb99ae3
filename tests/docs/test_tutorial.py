"""The tutorial runs as it stands, with a narrower network and shorter searches: its file, its commands in order, its Python."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest

from ranksearch.cli import main as cli
from ranksearch.networks.reconstruction.refit import Effort

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"


def test_the_tutorial_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for name in ("QUICK", "THOROUGH"):  # fits that are not as good, and as sound
        monkeypatch.setattr(f"ranksearch.networks.reconstruction.sequential.{name}", Effort(1, 2))
    names: dict[str, object] = {}
    identifier = ""
    for kind, title, text in re.findall(r"```(\w+)(?: title=\"(.*?)\")?\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        if title:
            narrow = text.replace("32", "8").replace("64", "16")
            assert narrow.count("8") > text.count("8") + 5
            (tmp_path / title).write_text(narrow)
        elif kind == "python":
            exec(compile(text.replace("mine.run(12,", "mine.run(4, runner='local',"), str(PAGE), "exec"), names)
        elif kind == "console":
            for line in text.splitlines():
                program, *words = shlex.split(line)
                assert program == "ranksearch"
                words = [identifier if word == "ID" else "5" if word == "12" else word for word in words]
                assert cli.main([*words, "--runner", "local"] if words[0] == "search" else words) == 0, line
                if words[0] == "search":
                    identifier = re.findall(r"^([0-9a-f]{12}) (?!.*dense)", capsys.readouterr().out, flags=re.MULTILINE)[-1]
    assert (tmp_path / "front.png").exists() and (tmp_path / "compressed" / "model.safetensors").exists()
    front = names["front"]
    assert isinstance(front, pd.DataFrame) and (front.loc[~front["is_dense"], "params_rel"] <= 0.6).all()
