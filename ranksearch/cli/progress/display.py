"""The contract of a display of a search, and the values that it is given to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ranksearch.cli.progress.front import FrontSize
from ranksearch.cli.progress.times import TimeLeft
from ranksearch.cli.tables import plural

if TYPE_CHECKING:
    from ranksearch.search.events import Announced, Profiled
    from ranksearch.study import Finished, Planned


@dataclass
class Standing:
    """How far a search is. ``front`` is the size of its front when last looked at."""

    left: TimeLeft
    done: int = 0
    total: int = 0
    failed: int = 0
    stopped: int = 0
    front: FrontSize | None = None

    @property
    def words(self) -> str:
        """The front, what was stopped, and the time left."""
        stopped = f"{self.stopped:,} stopped early" if self.stopped else ""
        return "; ".join(text for text in (str(self.front or ""), stopped, self.left(self.total - self.done)) if text)


class Display(Protocol):
    """Shows a search."""

    def preparing(self, event: Announced | Profiled) -> None:
        """A stage began, or a site is profiled."""
        ...

    def note(self, text: str) -> None:
        """A line that the user should read."""
        ...

    def planned(self, event: Planned) -> None:
        """Evaluations begin."""
        ...

    def due(self, *, last: bool) -> bool:
        """Whether to look at the front before `finished`: that reads the store."""
        ...

    def finished(self, event: Finished, standing: Standing) -> None:
        """One evaluation is in."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Silence:
    """Shows nothing; errors and results are not its business."""

    def preparing(self, event: Announced | Profiled) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def planned(self, event: Planned) -> None:
        """Nothing."""

    def due(self, *, last: bool) -> bool:
        """Never."""
        return False

    def finished(self, event: Finished, standing: Standing) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def wanted(event: Planned) -> str:
    """How many evaluations there are to be, in words."""
    already = f", {event.done:,} of them in the store" if event.done else ""
    by = " by supernet" if event.screening else ""
    return f"{plural(event.total, 'evaluation')}{by} wanted{already}"


def failure(event: Finished) -> str:
    """Which evaluation failed, and how, in a line."""
    outcome = event.outcome
    return f"{outcome.request.configuration.id} failed: {' '.join((outcome.error or '').split())[:200]}"
