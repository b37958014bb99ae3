"""Progress of profiling: stages, and how many sites are done."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ranksearch.cli.progress.times import clock

if TYPE_CHECKING:
    from ranksearch.search.events import Announced, Profiled

EVERY = 2.0  # seconds between two lines, or two looks at the front


class SiteProgress:
    """Shows how many sites are profiled, and the time left; used by whatever profiles. A context manager."""

    def __init__(self, *, terminal: bool | None = None) -> None:
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._begin = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def event(self, event: Announced | Profiled) -> None:
        """Show an event."""
        from ranksearch.search.events import Announced

        if isinstance(event, Announced):
            self._begin = self._last = time.monotonic()
            print(f"{event.text} ...", file=sys.stderr, flush=True)
            return
        now, rest = time.monotonic(), event.total - event.done
        left = f", {clock((now - self._begin) / event.share * (1 - event.share))} left" if event.done > 1 and rest else ""
        text = f"site {event.done:,} of {event.total:,} profiled{left}"
        if self.terminal:
            self._show(event, text)
            if not rest:
                self.close()
        elif now - self._last >= EVERY and rest:
            self._last = now
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, event: Profiled, text: str) -> None:
        if self._bar is None:
            self._bar = bar("{task.description}")
            self._task = self._bar.add_task("", total=event.total)
            self._bar.start()
        self._bar.update(self._task, completed=event.done, description=text)


def bar(*texts: str) -> Any:
    """A bar of rich on stderr, with the time since it began and texts; stdout stays untouched, since it carries results."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [BarColumn(bar_width=24), TimeElapsedColumn(), *(TextColumn(text) for text in texts)]
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
