"""Runners: where evaluations happen. One contract; Ray is known to `ray_tune` alone, and imported when it runs."""

from __future__ import annotations

from ranksearch.runners._base import WAIT, Runner, Wait
from ranksearch.runners.local import LocalRunner
from ranksearch.runners.ray_tune import RayTuneRunner

__all__ = ["WAIT", "LocalRunner", "RayTuneRunner", "Runner", "Wait"]
