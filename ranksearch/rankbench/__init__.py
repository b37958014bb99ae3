"""Tabulated studies for people who develop samplers, schedulers and proxies: ``load("digits")``, ``load("resnet20")``."""

from ranksearch.rankbench.bench import NAMES, OBJECTIVES, RankBench, load
from ranksearch.rankbench.settings import study

__all__ = ["NAMES", "OBJECTIVES", "RankBench", "load", "study"]
