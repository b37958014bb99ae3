"""The contract of a runner: it pulls requests, evaluates them wherever it likes, and hands every outcome back."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Self

from ranksearch.evaluation.request import Outcome, Request


class Wait(enum.Enum):
    """The type of `WAIT`."""

    WAIT = "wait"


WAIT = Wait.WAIT  # nothing to do now: ask again once something in flight has finished

Evaluate = Callable[[Request], Outcome]
Propose = Callable[[], Request | Wait | None]
Report = Callable[[Outcome], None]


class Runner(ABC):
    """Evaluates requests, several at the same time if it can."""

    workers: int  # evaluations at the same time; a runner that uses a cluster may know it only once it has started

    def carrying(self, modules: Sequence[ModuleType]) -> Self:
        """A runner like this one whose workers also get the classes and functions of ``modules``, which they may not be able to import.
        Where evaluations are in this process that is this runner itself."""
        del modules
        return self

    @abstractmethod
    def run(self, evaluate: Evaluate, propose: Propose, report: Report) -> None:
        """Evaluate what is proposed until there is no more.

        ``propose`` and ``report`` are called in the calling thread of the calling process, one at a time, so that all
        writing has one writer. Every proposed request is reported exactly once, in the order of completion; one whose worker died,
        or for which ``evaluate`` raised, is reported with status "failed".

        Args:
            evaluate: returns an outcome; picklable with cloudpickle.
            propose: called whenever a worker is free. A request; `WAIT` (only while something is in flight); or None,
                after which it is not called again, what is in flight is finished, and the run ends.
            report: called with every outcome.

        Raises:
            KeyboardInterrupt: at any moment, after cleaning up; nothing is left running.
            Exception: whatever ``propose`` or ``report`` raise, after cleaning up.
        """


def deadlock(proposal: Wait) -> RuntimeError:
    """The error for a proposer that waits while nothing is in flight."""
    return RuntimeError(f"propose() returned {proposal} while nothing is in flight: it would wait for ever; return a request or None")
