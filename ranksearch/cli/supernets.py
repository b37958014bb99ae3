"""What ``train-supernet`` shows: progress on stderr, and what the supernet measures at a few sizes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ranksearch.cli.progress import EVERY, SiteProgress, bar, clock
from ranksearch.cli.session import Session
from ranksearch.cli.tables import percent, table
from ranksearch.errors import InvalidArgument
from ranksearch.space import DENSE

if TYPE_CHECKING:
    from ranksearch.search.events import Announced, Profiled
    from ranksearch.study import Study
    from ranksearch.supernet import TrainingStep
    from ranksearch.supernet.study import TrainedSupernet


class TrainingProgress:
    """Pass `event` to ``Study.train_supernet``; a context manager. A bar with the loss (a mean that forgets) and the time
    left; lines where stderr is no terminal."""

    FORGET = 0.05

    def __init__(self, session: Session, *, terminal: bool | None = None) -> None:
        self.session = session
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.loss: float | None = None
        self.steps = 0  # made in this run
        self._start, self._last = time.monotonic(), 0.0
        self._sites = SiteProgress(terminal=self.terminal)
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sites.close()
        if self._bar is not None:
            self._bar.stop()

    def event(self, event: Announced | Profiled | TrainingStep) -> None:
        """Show an event."""
        from ranksearch.search.events import Announced, Profiled

        self.session.check()
        if isinstance(event, (Announced, Profiled)):
            self._sites.event(event)
            self._start = time.monotonic()
            return
        self.session.trained = (event.step, event.steps)
        self.steps += 1
        if self.steps == 1:
            if event.step > 1:
                print(f"going on after step {event.step - 1:,} of {event.steps:,}", file=sys.stderr, flush=True)
            if self.terminal:
                self._open(event.steps, event.step)
        self.loss = event.loss if self.loss is None else (1 - self.FORGET) * self.loss + self.FORGET * event.loss
        rest = event.steps - event.step
        left = f"{clock((time.monotonic() - self._start) / self.steps * rest)} left" if rest and self.steps > 1 else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=event.step, left=left, loss=f"loss {self.loss:.4g}")
        elif time.monotonic() - self._last >= EVERY or not rest:
            self._last = time.monotonic()
            after = f"; {left}" if left else ""
            print(f"{event.step:>5,}/{event.steps:,} steps  loss {self.loss:.4g}{after}", file=sys.stderr, flush=True)

    def _open(self, total: int, done: int) -> None:
        self._bar = bar("{task.completed}/{task.total} steps", "{task.fields[left]}", "{task.fields[loss]}")
        self._task = self._bar.add_task("", total=total, completed=done, left="", loss="")
        self._bar.start()


def assigned(texts: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` as Python values: what JSON can read is that, everything else text.

    Raises:
        InvalidArgument: no name, no "=", or a name given twice."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgument(f"--set {text!r}: write NAME=VALUE, such as random=1")
        if name in found:
            raise InvalidArgument(f"--set {text!r}: {name} is given twice")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def shown(study: Study, trained: TrainedSupernet, command: Callable[[str], str]) -> None:
    """Print what a trained supernet measures at a few sizes, and what to do with it."""
    from ranksearch.supernet.study import sizes

    entry = trained.entry
    print("measuring a few sizes ...", file=sys.stderr, flush=True)
    metrics = [metric.name for metric in study.task.metrics]
    dense = trained.evaluate(DENSE)
    costs = study.costs[::-1]
    whole = [percent(study.baseline.share(c.name, study.baseline)) for c in costs]
    rows = [["dense", *[text for m in metrics for text in (f"{dense[m]:.4f}", "")], *whole]]
    cost_name = "MACs" if study.baseline.macs else "params"
    for share, configuration in sizes(trained):
        found, cost = trained.evaluate(configuration), trained.space.cost(trained.space.indices(configuration))
        change = [text for m in metrics for text in (f"{found[m]:.4f}", f"{found[m] - dense[m]:+.4f}")]
        rows.append([f"at most {100 * share:g} % {cost_name}", *change, *(percent(cost.share(c.name, study.baseline)) for c in costs)])
    header = ["size", *[name for metric in metrics for name in (metric, "change")], *(f"% {c.label}" for c in costs)]
    print(f"\n{study.name}: supernet {entry.name} is trained. By activation, batch norm re-estimated, no other training:\n")
    print(table(header, rows, left=("size",)))
    print(f"\nin {study.supernets.store.folder / entry.key}\n\nnext:")
    which = f"--supernet {entry.key[:8]}"
    print(f"  {command('search')} {which} --screen 100 --trials 40")
    print(f"  {command('front')} --fidelity {entry.key[:8]}")
