"""Declared search spaces, one typed function each."""

from __future__ import annotations

from ranksearch.search_spaces._base import SpaceSpec, named
from ranksearch.search_spaces.all_types import all_types
from ranksearch.search_spaces.mixture import mixture
from ranksearch.search_spaces.svd_only import svd_only

__all__ = ["SpaceSpec", "all_types", "mixture", "named", "svd_only"]
