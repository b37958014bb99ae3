"""What every command of a test starts from: a home of its own, no wish for tracebacks, an import path that is its own; and a study,
and a search of it. It makes ``cli_cases`` importable, whatever the import mode."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cli_cases import STUDY, run

from ranksearch.cli.main import TRACEBACK


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv(TRACEBACK, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def study(tmp_path: Path) -> str:
    path = tmp_path / "bright.py"
    path.write_text(textwrap.dedent(STUDY))
    return str(path)


@pytest.fixture(scope="session")
def searched(tmp_path_factory) -> tuple[str, str, str]:
    """A study file, the store of a finished search, and what the search printed. Who writes takes copies."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "bright.py").write_text(textwrap.dedent(STUDY))
    path, store = str(folder / "bright.py"), str(folder / "bright.db")
    home = {**os.environ, "RANKSEARCH_HOME": str(folder / "home")}
    out = run("search", path, "--data", str(folder), "--noise", "0.5", "--trials", "10", "--runner", "local", "--store", store, env=home)
    assert out.returncode == 0, out.stderr
    return path, store, out.stdout + "\x00" + out.stderr
