"""Which request goes out next, and what becomes of each, where workers may die: every request is reported exactly once."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, replace

from ranksearch.evaluation.request import Outcome, Request
from ranksearch.runners._base import Propose, Report, Wait, deadlock


class _Proposer(enum.Enum):
    """What the proposer said last."""

    OPEN = "may have a request"
    WAITING = "has none before another outcome is in"
    CLOSED = "has no more"


@dataclass(frozen=True)
class _Attempt:
    request: Request
    deaths: int  # workers that it has cost so far


class Dispatcher:
    """Hands out requests under names of the caller's (*trials*) and takes back what became of them."""

    def __init__(self, propose: Propose, report: Report, *, workers: int, retries: int) -> None:
        """
        Args:
            propose, report: as for `Runner.run`.
            workers: how many requests are out at once, at most.
            retries: how often a request goes out again whose worker died.
        """
        self._propose, self._report = propose, report
        self._workers, self._retries = workers, retries
        self._out: dict[str, _Attempt] = {}
        self._again: deque[_Attempt] = deque()
        self._proposer = _Proposer.OPEN

    @property
    def finished(self) -> bool:
        """Nothing will go out any more. False while something is out: if its worker dies, it goes out again."""
        return self._proposer is _Proposer.CLOSED and not self._out and not self._again

    def is_out(self, trial: str) -> bool:
        """Whether a request went out under this name and has not come back."""
        return trial in self._out

    def take(self, trial: str) -> Request | None:
        """The request that goes out now under this name; None where none does, or none at present.

        Raises:
            RuntimeError: the proposer waits for an outcome while nothing is out.
            Exception: what ``propose`` raises."""
        if len(self._out) >= self._workers:
            return None
        attempt = self._again.popleft() if self._again else self._ask()
        if attempt is None:
            return None
        self._out[trial] = attempt
        return attempt.request

    def _ask(self) -> _Attempt | None:
        if self._proposer is not _Proposer.OPEN:
            return None
        proposal = self._propose()
        if isinstance(proposal, Request):
            return _Attempt(proposal, 0)
        if isinstance(proposal, Wait) and not self._out:
            raise deadlock(proposal)
        self._proposer = _Proposer.CLOSED if proposal is None else _Proposer.WAITING
        return None

    def landed(self, trial: str, outcome: Outcome) -> None:
        """The request came back evaluated: report it, as the very request that was proposed."""
        self._settle(replace(outcome, request=self._out.pop(trial).request))

    def lost(self, trial: str, cause: str) -> None:
        """The request's worker died: it goes out again, or is reported as failed once it has cost ``retries`` + 1 workers."""
        attempt = self._out.pop(trial)
        deaths = attempt.deaths + 1
        if deaths <= self._retries:
            self._again.append(_Attempt(attempt.request, deaths))
            return
        error = f"the worker died {deaths} time(s), of memory, a signal or a lost machine: {cause}"
        self._settle(Outcome(attempt.request, "failed", error=error, error_kind="machine"))

    def _settle(self, outcome: Outcome) -> None:
        if self._proposer is _Proposer.WAITING:
            self._proposer = _Proposer.OPEN
        self._report(outcome)
