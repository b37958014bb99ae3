"""What a search knows of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ranksearch.space import Configuration

Values = Sequence[float] | None  # of the objectives, to be minimised; None: the evaluation failed


@dataclass(frozen=True)
class Known:
    """A configuration that is evaluated already."""

    configuration: Configuration
    values: Values
    error_kind: str | None = None  # of a failure, see `ranksearch.evaluation.failure`
    origin: str = ""
    stopped: bool = False  # early, by a scheduler
    failed: bool = False  # an evaluation that is done may lack values too, where it lacks an objective
