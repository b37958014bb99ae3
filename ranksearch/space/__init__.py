"""What a search chooses from: prepared decompositions, ladders of options, declared spaces."""

from __future__ import annotations

from ranksearch.space.configuration import DENSE, Configuration
from ranksearch.space.ladder import Ladder, Option
from ranksearch.space.space import Candidate, SearchSpace, build_space
from ranksearch.space.specs import SpaceSpec, all_types, mixture, named, svd_only

__all__ = [
    "DENSE", "Candidate", "Configuration", "Ladder", "Option", "SearchSpace", "SpaceSpec",
    "all_types", "build_space", "mixture", "named", "svd_only",
]  # fmt: skip
