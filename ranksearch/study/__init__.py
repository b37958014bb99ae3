"""A study: a model, a task, a space, objectives, and all evaluations made for them."""

from __future__ import annotations

from ranksearch.search.events import Announced, Finished, Planned, Profiled, SearchEvent
from ranksearch.study.run import Screening
from ranksearch.study.study import Study

__all__ = ["Announced", "Finished", "Planned", "Profiled", "Screening", "SearchEvent", "Study"]
