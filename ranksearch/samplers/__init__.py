"""Samplers: what to measure next. A new one is one file here, one line in the table below, and the contract tests."""

from __future__ import annotations

from ranksearch.samplers.gp import GP
from ranksearch.samplers.nsga2 import NSGA2
from ranksearch.samplers.nsga3 import NSGA3
from ranksearch.samplers.problem import Problem
from ranksearch.samplers.random import Random
from ranksearch.samplers.sampler import Sampler
from ranksearch.samplers.surrogate import Surrogate
from ranksearch.samplers.tpe import TPE

SAMPLERS: tuple[Sampler, ...] = (Surrogate(), NSGA2(), NSGA3(), TPE(), GP(), Random())

__all__ = ["GP", "NSGA2", "NSGA3", "SAMPLERS", "TPE", "Problem", "Random", "Sampler", "Surrogate"]
