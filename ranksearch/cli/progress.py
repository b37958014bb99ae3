"""Progress of a search on stderr: stages, a bar with the best network so far and the time left; plain lines where
stderr is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ranksearch.cli.session import Session
from ranksearch.cli.tables import percent, plural

if TYPE_CHECKING:
    from ranksearch.study import Finished, SearchEvent, Study


class SearchProgress:
    """Pass `event` to ``Study.run``; a context manager. ``best`` is the evaluation of least MACs among those that lose
    no more than ``LOSS`` against the dense network: what most people look for first."""

    LOSS = 0.01  # of the dense network's value, relative

    def __init__(self, study: Study, session: Session, *, terminal: bool | None = None) -> None:
        self.study, self.session = study, session
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.metric = study.task.metrics[0]
        self.dense: float | None = None
        self.best: tuple[float, float, str] | None = None  # (macs share, metric, id)
        self.failed = 0
        self._values: list[tuple[float, float, str]] = []
        self._start, self._done_at_start = time.monotonic(), 0
        self._last = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def event(self, event: SearchEvent) -> None:
        """Show an event."""
        from ranksearch.study import Finished, Planned, Stage

        self.session.check()
        if isinstance(event, Stage):
            self._line(f"{event.text} ...")
        elif isinstance(event, Planned):
            self.session.counted = None  # a run may have two counts: the store knows what they come to
            self.dense = self.best = None  # of this count's fidelity
            self._values = []
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            self._start, self._done_at_start = time.monotonic(), event.done
            already = f", {event.done:,} of them in the store" if event.done else ""
            by = " by supernet" if event.screening else ""
            self._line(f"{plural(event.total, 'evaluation')}{by} wanted{already}")
            if self.terminal and event.done < event.total:
                self._open(event.total, event.done)
        elif isinstance(event, Finished):
            self._finished(event)

    def _finished(self, event: Finished) -> None:
        outcome = event.outcome
        configuration = outcome.request.configuration
        if outcome.status != "done":
            self.failed += 1
            self._line(f"{configuration.id} failed: {' '.join((outcome.error or '').split())[:200]}")
        else:
            space = self.study.space
            share = space.cost(space.indices(configuration)).macs / max(self.study.baseline.macs, 1)
            value = outcome.metrics[self.metric.name]
            self._values.append((share, value, configuration.id))
            if not configuration.choices:
                self.dense = value
            self._rank()
        if self._bar is not None:
            self._bar.update(self._task, completed=event.done, total=event.total, best=self._best())
        elif time.monotonic() - self._last >= 2 or event.done >= event.total:
            self._last = time.monotonic()
            self._line(f"{event.done:>5,}/{event.total:,}  {self._best()}{self._left(event)}")

    def _rank(self) -> None:
        sign = 1 if self.metric.direction == "max" else -1
        reference = self.dense if self.dense is not None else sign * max(sign * v for _, v, _ in self._values)
        floor = sign * reference - self.LOSS * abs(reference)
        fine = [entry for entry in self._values if sign * entry[1] >= floor]
        self.best = min(fine, default=None)

    def _best(self) -> str:
        if self.best is None:
            return ""
        share, value, id = self.best
        return f"best so far: {self.metric.name} {value:.4g} at {percent(share)} of the MACs ({id})"

    def _left(self, event: Finished) -> str:
        made = event.done - self._done_at_start
        if made < 1 or event.done >= event.total:
            return ""
        seconds = (time.monotonic() - self._start) / made * (event.total - event.done)
        return f"; {seconds // 60:.0f}:{seconds % 60:02.0f} left"

    def _open(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        # stdout stays untouched: it carries results
        self._bar = Progress(
            BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.fields[best]}"), console=Console(stderr=True), transient=True, redirect_stdout=False,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total, completed=done, best="")
        self._bar.start()

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
