"""Schedulers: which evaluations go on and which are stopped early. Pure decisions, which runners and Ray Tune ask for. A new one is one
file here, one line in the table below, and the contract tests."""

from __future__ import annotations

from ranksearch.schedulers.asha import ASHA
from ranksearch.schedulers.none import NoStopping
from ranksearch.schedulers.pareto_asha import ParetoASHA
from ranksearch.schedulers.scheduler import Scheduler

SCHEDULERS: tuple[Scheduler, ...] = (NoStopping(), ASHA(), ParetoASHA())

__all__ = ["ASHA", "SCHEDULERS", "NoStopping", "ParetoASHA", "Scheduler"]
