"""A search in plain lines on stderr, for pipes and log files."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ranksearch.cli.progress.display import Standing, failure, wanted
from ranksearch.cli.progress.sites import EVERY, SiteProgress

if TYPE_CHECKING:
    from ranksearch.search.events import Announced, Profiled
    from ranksearch.study import Finished, Planned


class Lines:
    """A line every ``EVERY`` seconds, and one for each failure."""

    def __init__(self) -> None:
        self._sites = SiteProgress(terminal=False)
        self._last = 0.0
        self._shows = False

    def preparing(self, event: Announced | Profiled) -> None:
        """A line for a stage, some for sites."""
        self._sites.event(event)

    def note(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stderr, flush=True)

    def planned(self, event: Planned) -> None:
        """How many evaluations there are to be."""
        self.note(wanted(event))

    def due(self, *, last: bool) -> bool:
        """Every ``EVERY`` seconds, and at the end."""
        self._shows = last or time.monotonic() - self._last >= EVERY
        return self._shows

    def finished(self, event: Finished, standing: Standing) -> None:
        """A line, if it is time for one."""
        if event.outcome.status == "failed":
            self.note(failure(event))
        if self._shows:
            self._last = time.monotonic()
            self.note(f"{event.done:>5,}/{event.total:,}  {standing.words}".rstrip())

    def close(self) -> None:
        """Nothing is open."""
