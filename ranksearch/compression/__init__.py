"""A smaller network in one call, without training."""

from __future__ import annotations

from ranksearch.compression.compress import Compressed, compress
from ranksearch.compression.judge import Judge, judge
from ranksearch.compression.norms import Norms
from ranksearch.compression.portfolio import Tried
from ranksearch.compression.rules import RULES, Rule

__all__ = ["RULES", "Compressed", "Judge", "Norms", "Rule", "Tried", "compress", "judge"]
