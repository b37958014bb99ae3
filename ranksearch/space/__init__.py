"""What a search chooses from: prepared decompositions, ladders of options, declared spaces."""

from __future__ import annotations

from ranksearch.space.space import COSTS, DENSE, Configuration, CostName, Ladder, Option, SearchSpace, build_space
from ranksearch.space.specs import SpaceSpec, all_types, mixture, named, svd_only

__all__ = [
    "COSTS", "DENSE", "Configuration", "CostName", "Ladder", "Option", "SearchSpace", "SpaceSpec",
    "all_types", "build_space", "mixture", "named", "svd_only",
]  # fmt: skip
