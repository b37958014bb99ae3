"""Progress of a search: what has happened is counted here, and shown by one of four displays."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from ranksearch.cli.progress.display import Display, Silence, Standing
from ranksearch.cli.progress.front import Front
from ranksearch.cli.progress.times import TimeLeft
from ranksearch.cli.session import Session
from ranksearch.errors import InvalidArgument

if TYPE_CHECKING:
    from ranksearch.study import Finished, SearchEvent, Study

View = Literal["table", "lines", "events", "nothing"]


def view(*, quiet: bool, json: bool) -> View | None:
    """What ``--quiet`` and ``--json`` ask for; None: neither is given.

    Raises:
        InvalidArgument: both are."""
    if quiet and json:
        raise InvalidArgument("--quiet and --json exclude each other: --json shows nothing but its events")
    return "events" if json else "nothing" if quiet else None


class SearchProgress:
    """Pass `event` to ``Study.run``; a context manager.

    Args:
        note: a line to be shown when the run is found to be in order.
        view: a live table, plain lines, events as JSON on stdout, or nothing; by default a table where stderr is a terminal, else lines.
    """

    def __init__(self, study: Study, session: Session, *, note: str | None = None, view: View | None = None) -> None:
        self.session, self.note = session, note
        self.display = _display(view or ("table" if sys.stderr.isatty() else "lines"), study)
        self._front, self._standing = Front(study), Standing(TimeLeft())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.display.close()

    def event(self, event: SearchEvent) -> None:
        """Show an event."""
        from ranksearch.study import Announced, Finished, Planned, Profiled

        self.session.check()
        if isinstance(event, (Announced, Profiled)):
            self.display.preparing(event)
        elif isinstance(event, Planned):
            self.session.counted = None  # a run may have two counts: the store knows what they come to
            self._standing = Standing(TimeLeft(), event.done, event.total)
            if self.note is not None:
                self.display.note(self.note)
                self.note = None
            self.display.planned(event)
        elif isinstance(event, Finished):
            self._finished(event)

    def _finished(self, event: Finished) -> None:
        outcome, standing = event.outcome, self._standing
        standing.left.finished(outcome.seconds)
        standing.done, standing.total = event.done, event.total
        standing.failed += outcome.status == "failed"
        standing.stopped += outcome.status == "stopped"
        if self.display.due(last=event.done >= event.total):
            standing.front = self._front(outcome)
        self.display.finished(event, standing)


def _display(view: View, study: Study) -> Display:
    if view == "table":
        from ranksearch.cli.progress.live import LiveTable

        return LiveTable(study)
    if view == "events":
        from ranksearch.cli.progress.events import EventLines

        return EventLines(study)
    if view == "nothing":
        return Silence()
    from ranksearch.cli.progress.lines import Lines

    return Lines()
