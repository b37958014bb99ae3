"""Second moments of the inputs of layers, and of the gradients of the loss at their outputs."""

from __future__ import annotations

from ranksearch.statistics.collection import collect
from ranksearch.statistics.inputs import LARGEST
from ranksearch.statistics.labels import GivenLabels, Labels, SampledLabels
from ranksearch.statistics.memory import accumulator_bytes
from ranksearch.statistics.statistics import Statistics

__all__ = ["LARGEST", "GivenLabels", "Labels", "SampledLabels", "Statistics", "accumulator_bytes", "collect"]
