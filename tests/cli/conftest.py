"""What every command of a test starts from: a home of its own, no wish for tracebacks, an import path that is its own."""

from __future__ import annotations

import sys

import pytest

from ranksearch.cli.main import TRACEBACK


@pytest.fixture(autouse=True)
def _surroundings(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RANKSEARCH_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv(TRACEBACK, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
