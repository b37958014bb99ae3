"""One dense weight per layer shared by all types and ranks, and the training methods that make every size of it good."""

from __future__ import annotations

from ranksearch.supernet._bases import Bases, Projection
from ranksearch.supernet.network import RankSupernet
from ranksearch.supernet.projections import PROJECTIONS
from ranksearch.supernet.proxy import SupernetProxy
from ranksearch.supernet.train import TrainingStep, TrainingSummary, load_trained, train

__all__ = [
    "PROJECTIONS", "Bases", "Projection", "RankSupernet", "SupernetProxy", "TrainingStep", "TrainingSummary", "load_trained", "train",
]  # fmt: skip
