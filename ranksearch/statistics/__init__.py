"""Second moments of what layers see and of what the loss feels at their outputs."""

from __future__ import annotations

from ranksearch.statistics.collection import Statistics, accumulator_bytes, collect
from ranksearch.statistics.collector import LARGEST
from ranksearch.statistics.labels import GivenLabels, Labels, SampledLabels

__all__ = ["LARGEST", "GivenLabels", "Labels", "SampledLabels", "Statistics", "accumulator_bytes", "collect"]
