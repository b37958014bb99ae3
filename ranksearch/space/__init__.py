"""What a search chooses from: prepared decompositions, ladders of options, declared spaces."""

from __future__ import annotations

from ranksearch.space.configuration import DENSE, Configuration
from ranksearch.space.ladder import Ladder, Option
from ranksearch.space.rules import depthwise, reads_image, where
from ranksearch.space.space import Candidate, SearchSpace, build_space
from ranksearch.space.specs import MaxOptions, RoundTo, SpaceSpec, all_types, declared, mixture, named, svd_only

__all__ = [
    "DENSE", "Candidate", "Configuration", "Ladder", "MaxOptions", "Option", "RoundTo", "SearchSpace", "SpaceSpec",
    "all_types", "build_space", "declared", "depthwise", "mixture", "named", "reads_image", "svd_only", "where",
]  # fmt: skip
