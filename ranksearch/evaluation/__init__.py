"""One full evaluation of a configuration, and how thorough it is."""

from __future__ import annotations

from ranksearch.evaluation.evaluator import Evaluator
from ranksearch.evaluation.fidelity import Fidelity
from ranksearch.evaluation.request import Outcome, Request, outcome_of

__all__ = ["Evaluator", "Fidelity", "Outcome", "Request", "outcome_of"]
