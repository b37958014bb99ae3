"""One full evaluation of a configuration, and how thorough it is."""

from __future__ import annotations

from ranksearch.evaluation.evaluator import Evaluator
from ranksearch.evaluation.failure import FailureKind, may_be_retried
from ranksearch.evaluation.fidelity import Fidelity
from ranksearch.evaluation.request import Outcome, Request, failed, outcome_of

__all__ = ["Evaluator", "FailureKind", "Fidelity", "Outcome", "Request", "failed", "may_be_retried", "outcome_of"]
