"""Samplers: what to measure next. A new one is one file here, one line in the table below, and the contract tests."""

from __future__ import annotations

from ranksearch.samplers.nsga2 import NSGA2
from ranksearch.samplers.random import Random
from ranksearch.samplers.sampler import Sampler
from ranksearch.samplers.tpe import TPE

SAMPLERS: tuple[Sampler, ...] = (NSGA2(), TPE(), Random())

__all__ = ["NSGA2", "SAMPLERS", "TPE", "Random", "Sampler"]
