"""Progress of a search on stderr: stages, a bar with the time left and what the front has come to; plain lines where stderr
is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ranksearch.cli.session import Session
from ranksearch.cli.tables import plural

if TYPE_CHECKING:
    from ranksearch.evaluation import Outcome
    from ranksearch.search.events import Profiled, Stage
    from ranksearch.study import Finished, SearchEvent, Study

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

    def event(self, event: Stage | Profiled) -> None:
        """Show an event."""
        from ranksearch.search.events import Stage

        if isinstance(event, Stage):
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


class TimeLeft:
    """How long the rest takes at the pace so far. The pace counts from where the first evaluation began, not from where
    workers were started; two must be in, since with several at a time the first one says little."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin: float | None = None
        self._finished = 0

    def finished(self, seconds: float) -> None:
        """One more is in, which took so long."""
        if self._begin is None:
            self._begin = self._clock() - seconds
        self._finished += 1

    def __call__(self, remaining: int) -> str:
        """``m:ss left``; empty while nothing can be said."""
        if self._begin is None or self._finished < 2 or remaining < 1:
            return ""
        return f"{clock((self._clock() - self._begin) / self._finished * remaining)} left"


class Front:
    """What is known of the front of a run: how many networks are on it, and its hypervolume relative to the dense network
    (`ranksearch.results.pareto.relative_hypervolume`), of all that the store has at the run's fidelity and seed."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._text, self._looked = "", 0.0

    def __call__(self, outcome: Outcome, *, now: bool) -> str:
        """In words, at most every ``EVERY`` seconds anew; empty while the dense network is not measured."""
        if now or time.monotonic() - self._looked >= EVERY:
            self._text, self._looked = self._described(outcome), time.monotonic()
        return self._text

    def _described(self, outcome: Outcome) -> str:
        from ranksearch.results.pareto import non_dominated, relative_hypervolume

        every: Any = self.study.evaluations()
        request = outcome.request
        every = every[(every["fidelity"] == request.fidelity.key) & (every["seed"] == request.seed) & (every["status"] == "done")]
        dense = every[every["factorized"] == 0]
        if not len(dense):
            return ""
        names = list(self.study.objectives)
        directions: list[Any] = [self.study.directions[name] for name in names]
        values, reference = every[names].to_numpy(dtype=float), dense[names].to_numpy(dtype=float)[0]
        count = int((non_dominated(values, directions) & (every["factorized"] > 0).to_numpy()).sum())
        volume = relative_hypervolume(values, reference, directions, [name in self.study.baseline for name in names])
        return f"front: {plural(count, 'network')}, hypervolume {volume:.3f}"


class SearchProgress:
    """Pass `event` to ``Study.run``; a context manager.

    Args:
        note: a line to be shown when the run is found to be in order.
    """

    def __init__(
        self, study: Study, session: Session, *, note: str | None = None, terminal: bool | None = None
    ) -> None:
        self.session, self.note = session, note
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.failed = 0
        self._front, self._left, self._sites = Front(study), TimeLeft(), SiteProgress(terminal=self.terminal)
        self._last = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def event(self, event: SearchEvent) -> None:
        """Show an event."""
        from ranksearch.study import Finished, Planned, Profiled, Stage

        self.session.check()
        if isinstance(event, (Stage, Profiled)):
            self._sites.event(event)
        elif isinstance(event, Planned):
            self.session.counted = None  # a run may have two counts: the store knows what they come to
            self._left = TimeLeft()
            self._close()
            if self.note is not None:
                self._line(self.note)
                self.note = None
            already = f", {event.done:,} of them in the store" if event.done else ""
            by = " by supernet" if event.screening else ""
            self._line(f"{plural(event.total, 'evaluation')}{by} wanted{already}")
            if self.terminal and event.done < event.total:
                self._open(event.total, event.done)
        elif isinstance(event, Finished):
            self._finished(event)

    def _finished(self, event: Finished) -> None:
        outcome, last = event.outcome, event.done >= event.total
        self._left.finished(outcome.seconds)
        if outcome.status != "done":
            self.failed += 1
            self._line(f"{outcome.request.configuration.id} failed: {' '.join((outcome.error or '').split())[:200]}")
        if self._bar is not None:
            words = {"left": self._left(event.total - event.done), "front": self._front(outcome, now=last)}
            self._bar.update(self._task, completed=event.done, total=event.total, **words)
        elif time.monotonic() - self._last >= EVERY or last:
            self._last = time.monotonic()
            words = [self._front(outcome, now=True), self._left(event.total - event.done)]
            self._line(f"{event.done:>5,}/{event.total:,}  {'; '.join(word for word in words if word)}".rstrip())

    def _open(self, total: int, done: int) -> None:
        self._bar = bar("{task.completed}/{task.total}", "{task.fields[left]}", "{task.fields[front]}")
        self._task = self._bar.add_task("", total=total, completed=done, left="", front="")
        self._bar.start()

    def _close(self) -> None:
        self._sites.close()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def bar(*texts: str) -> Any:
    """A bar of rich on stderr, with the time since it began and texts; stdout stays untouched, since it carries results."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [BarColumn(bar_width=24), TimeElapsedColumn(), *(TextColumn(text) for text in texts)]
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)


def clock(seconds: float) -> str:
    """A duration: 0:42, 12:05, 3:20:00."""
    whole = max(round(seconds), 0)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
