"""One full evaluation of a configuration, and how thorough it is."""

from __future__ import annotations

from ranksearch.evaluation.evaluator import Evaluator
from ranksearch.evaluation.failure import FailureKind, may_be_retried
from ranksearch.evaluation.fidelity import Fidelity
from ranksearch.evaluation.request import Curve, Evaluate, Outcome, Point, Progress, Request, failed, outcome_of
from ranksearch.evaluation.stepwise import Place, Stepwise, check_stepwise, nowhere

__all__ = [
    "Curve", "Evaluate", "Evaluator", "FailureKind", "Fidelity", "Outcome", "Place", "Point", "Progress", "Request", "Stepwise",
    "check_stepwise", "failed", "may_be_retried", "nowhere", "outcome_of",
]  # fmt: skip
