"""One full evaluation of a configuration, and how thorough it is."""

from __future__ import annotations

from ranksearch.evaluation.evaluator import Evaluator
from ranksearch.evaluation.failure import FailureKind, may_be_retried
from ranksearch.evaluation.fidelity import Fidelity
from ranksearch.evaluation.request import Curve, Evaluate, Outcome, Point, Progress, Request, failed, outcome_of
from ranksearch.evaluation.stepwise import Stepwise

__all__ = [
    "Curve", "Evaluate", "Evaluator", "FailureKind", "Fidelity", "Outcome", "Point", "Progress", "Request", "Stepwise", "failed",
    "may_be_retried", "outcome_of",
]  # fmt: skip
