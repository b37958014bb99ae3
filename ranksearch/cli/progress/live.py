"""A search as one live table on a terminal: how far it is, and the front so far. stdout stays untouched, since it carries results."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ranksearch.cli.progress.display import Standing, failure, wanted
from ranksearch.cli.progress.sites import EVERY, SiteProgress
from ranksearch.cli.tables import plural

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

    from ranksearch.search.events import Announced, Profiled
    from ranksearch.study import Finished, Planned, Study

MARGIN = 8  # lines of the terminal that are not rows of the front


class LiveTable:
    """Notes and failures scroll by above it. The table is gone when the search ends: the result is printed then.

    Args:
        console: of rich, on stderr by default.
    """

    def __init__(self, study: Study, *, console: Console | None = None) -> None:
        from rich.console import Console

        self.study = study
        self.console = console or Console(stderr=True)
        self._sites = SiteProgress(terminal=True)
        self._live: Any = None
        self._last = 0.0
        self._fidelity = ""
        self._newest = ""
        self._rows: Table | None = None

    def preparing(self, event: Announced | Profiled) -> None:
        """A line for a stage, a bar for sites."""
        self._sites.event(event)

    def note(self, text: str) -> None:
        """A line, above the table."""
        self.console.print(text, markup=False, highlight=False)

    def planned(self, event: Planned) -> None:
        """Open the table."""
        from rich.live import Live

        self.close()
        self.note(wanted(event))
        self._rows, self._newest = None, ""
        if event.done < event.total:
            self._live = Live(console=self.console, transient=True, auto_refresh=False, redirect_stdout=False)
            self._live.start()

    def due(self, *, last: bool) -> bool:
        """Every ``EVERY`` seconds, and at the end."""
        due = last or time.monotonic() - self._last >= EVERY
        self._last = time.monotonic() if due else self._last
        self._rows = None if due else self._rows
        return due

    def finished(self, event: Finished, standing: Standing) -> None:
        """Bring the table up to date."""
        request = event.outcome.request
        if event.outcome.status == "failed":
            self.note(failure(event))
        self._newest = request.configuration.id
        if self._rows is None:
            self._rows = self._front(request.fidelity.key)
        if self._live is not None:
            self._live.update(self._shown(standing), refresh=True)

    def close(self) -> None:
        """Take the table away."""
        self._sites.close()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _shown(self, standing: Standing) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 2))
        pace = standing.left.per_minute()
        words = [
            f"{standing.done:,}/{standing.total:,}", standing.left(standing.total - standing.done),
            f"{pace:.3g} per minute" if pace else "", f"{plural(standing.failed, 'failure')}" if standing.failed else "",
            f"{standing.stopped:,} stopped early" if standing.stopped else "",
        ]  # fmt: skip
        head.add_row(ProgressBar(total=standing.total, completed=standing.done, width=24), *filter(None, words))
        return Group(head, Text(str(standing.front or "")), *([] if self._rows is None else [self._rows]))

    def _front(self, fidelity: str) -> Table | None:
        """The front of a fidelity, as the result will show it: as many rows as there is room for, spread over it."""
        from rich.table import Table

        from ranksearch.cli.results import front_cells

        frame: Any = self.study.front(fidelity=fidelity)
        if not len(frame):
            return None
        header, rows = front_cells(self.study, frame)
        found = Table(box=None, padding=(0, 1), header_style="dim")
        for name in header:
            found.add_column(name, justify="left" if name in ("id", "") else "right", no_wrap=True)
        room = max(self.console.height - MARGIN, 2)
        for position in spread(len(rows), room):
            row = [str(cell) for cell in rows[position]]
            found.add_row(*row, style="bold" if row[0] == self._newest else "")
        if len(rows) > room:
            found.add_row(f"{len(rows) - room:,} more", style="dim")
        return found


def spread(count: int, room: int) -> list[int]:
    """At most ``room`` of ``count`` positions in order, the first and the last among them, the others evenly between."""
    if count <= room:
        return list(range(count))
    return [round(i * (count - 1) / (room - 1)) for i in range(room)]
