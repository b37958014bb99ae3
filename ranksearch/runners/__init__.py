"""Runners, which decide where evaluations happen, under one contract. Ray is imported when a run on it starts, and by no other part
of the package."""

from __future__ import annotations

from ranksearch.runners._base import WAIT, Runner, Wait
from ranksearch.runners.local import LocalRunner
from ranksearch.runners.ray_tune import RayTuneRunner

RUNNERS: dict[str, type[LocalRunner] | type[RayTuneRunner]] = {"ray_tune": RayTuneRunner, "local": LocalRunner}

__all__ = ["RUNNERS", "WAIT", "LocalRunner", "RayTuneRunner", "Runner", "Wait"]
