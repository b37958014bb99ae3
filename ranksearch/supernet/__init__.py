"""One dense weight per layer shared by all types and ranks, and the training methods that make every size of it good."""

from __future__ import annotations

from ranksearch.supernet.network import RankSupernet
from ranksearch.supernet.projections import PROJECTIONS, Bases, Projection

__all__ = ["PROJECTIONS", "Bases", "Projection", "RankSupernet"]
