"""What a study tells of its progress, as values: nothing here prints."""

from __future__ import annotations

from dataclasses import dataclass

from ranksearch.evaluation import Outcome
from ranksearch.space.spectra import Profiled


@dataclass(frozen=True)
class Announced:
    """Progress: what is done next, in words."""

    text: str


@dataclass(frozen=True)
class Planned:
    """Progress: how many evaluations the study is to have, and has."""

    total: int
    done: int
    screening: bool = False  # with a supernet, before the evaluations at the study's fidelity


@dataclass(frozen=True)
class Finished:
    """Progress: one evaluation is finished and stored."""

    outcome: Outcome
    done: int
    total: int


SearchEvent = Announced | Profiled | Planned | Finished

__all__ = ["Announced", "Finished", "Planned", "Profiled", "SearchEvent"]
