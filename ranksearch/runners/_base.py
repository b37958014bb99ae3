"""The contract of a runner: it pulls requests, evaluates them wherever it likes, and hands every outcome back."""

from __future__ import annotations

import enum
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from types import ModuleType
from typing import Self

from ranksearch.evaluation.request import Evaluate, Outcome, Progress, Request, failed


class Wait(enum.Enum):
    """The type of `WAIT`."""

    WAIT = "wait"


WAIT = Wait.WAIT  # nothing to do now: ask again once something in flight has finished

Propose = Callable[[], Request | Wait | None]
Report = Callable[[Outcome], None]
Judge = Callable[[Progress], bool]


class Runner(ABC):
    """Evaluates requests, several at the same time if it can."""

    workers: int  # evaluations at the same time; a runner that uses a cluster may know it only once it has started

    def carrying(self, modules: Sequence[ModuleType]) -> Self:
        """A runner like this one whose workers also get the classes and functions of ``modules``, which they may not be able to import.
        Where evaluations are in this process that is this runner itself."""
        del modules
        return self

    @abstractmethod
    def run(self, evaluate: Evaluate, propose: Propose, report: Report, judge: Judge | None = None) -> None:
        """Evaluate what is proposed until there is no more.

        ``propose``, ``report`` and ``judge`` are called in the calling thread of the calling process, one at a time, so that all
        writing has one writer. Every proposed request is reported exactly once, in the order of completion; one whose worker died,
        or for which ``evaluate`` raised, is reported with status "failed".

        Args:
            evaluate: returns an outcome, or an iterator of which that is the last item; picklable with cloudpickle.
            propose: called whenever a worker is free. A request; `WAIT` (only while something is in flight); or None,
                after which it is not called again, what is in flight is finished, and the run ends.
            report: called with every outcome.
            judge: called with every `Progress` that comes before an outcome, as soon as it is there. The evaluation goes on if it says so;
                if not, it is ended and reported as `Progress.stopped`. None: all go on. A search gives it only where evaluations are to be
                stopped early.

        Raises:
            KeyboardInterrupt: at any moment, after cleaning up; nothing is left running.
            Exception: whatever ``propose``, ``report`` or ``judge`` raise, after cleaning up.
        """


def parts(evaluate: Evaluate, request: Request) -> Generator[Progress | Outcome]:
    """What an evaluation comes to, part by part, the outcome last; an exception is its outcome. Closing the iterator ends it."""
    start = time.perf_counter()
    try:
        found = evaluate(request)
        if isinstance(found, Outcome):
            yield found
            return
        for part in found:
            yield part
            if isinstance(part, Outcome):
                return
        raise RuntimeError("the evaluation ended without an outcome")
    except (Exception, SystemExit) as error:  # a request that breaks the evaluator must not end the others; it is reported
        yield failed(request, error, time.perf_counter() - start)


def deadlock(proposal: Wait) -> RuntimeError:
    """The error for a proposer that waits while nothing is in flight."""
    return RuntimeError(f"propose() returned {proposal} while nothing is in flight: it would wait for ever; return a request or None")
