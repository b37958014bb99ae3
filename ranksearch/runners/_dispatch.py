"""Which request goes out next, and what becomes of each, where workers may die and machines run out of memory: every request is
reported exactly once."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ranksearch.evaluation.request import Outcome, Progress, Request
from ranksearch.runners._base import Judge, Propose, Report, Wait, deadlock

RETRIES = 2  # how often a request goes out again that failed by the machine's fault
BACKOFF, LONGEST = 1.0, 60.0  # seconds before it does: twice as many each time, up to the longest


class _Proposer(enum.Enum):
    """What the proposer said last."""

    OPEN = "may have a request"
    WAITING = "has none before another outcome is in"
    CLOSED = "has no more"


@dataclass(frozen=True)
class _Attempt:
    request: Request
    number: int = 1  # 1: the first
    ready: float = 0.0  # on the clock: not before


class Dispatcher:
    """Hands out requests under names of the caller's (*trials*) and takes back what became of them. What failed by the machine's fault
    (a worker that died, memory, a full disk) goes out again after a while, and others meanwhile."""

    def __init__(
        self, propose: Propose, report: Report, judge: Judge | None = None, *, workers: int, retries: int = RETRIES,
        backoff: float = BACKOFF, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """
        Args:
            propose, report, judge: as for `Runner.run`.
            workers: how many requests are out at once, at most; may be set anew at any time.
            retries: how often a request goes out again that failed by the machine's fault.
            backoff: seconds before it does so for the first time.
            clock: seconds that never go back.
        """
        self._propose, self._report, self._judge = propose, report, judge
        self.workers, self._retries = workers, retries
        self._backoff, self._clock = backoff, clock
        self._out: dict[str, _Attempt] = {}
        self._again: list[_Attempt] = []
        self._proposer = _Proposer.OPEN

    @property
    def finished(self) -> bool:
        """Nothing will go out any more. False while something is out: if its worker dies, it goes out again."""
        return self._proposer is _Proposer.CLOSED and not self._out and not self._again

    @property
    def pause(self) -> float:
        """Seconds until what is to go out again may, 0 where something may at once or nothing is to."""
        return max(0.0, min((attempt.ready for attempt in self._again), default=0.0) - self._clock())

    def is_out(self, trial: str) -> bool:
        """Whether a request went out under this name and has not come back."""
        return trial in self._out

    def take(self, trial: str) -> Request | None:
        """The request that goes out now under this name; None where none does, or none at present.

        Raises:
            RuntimeError: the proposer waits for an outcome while none is to come.
            Exception: what ``propose`` raises."""
        if len(self._out) >= self.workers:
            return None
        attempt = self._repeated() or self._ask()
        if attempt is None:
            return None
        self._out[trial] = attempt
        return attempt.request

    def _repeated(self) -> _Attempt | None:
        now = self._clock()
        ready = next((attempt for attempt in self._again if attempt.ready <= now), None)
        if ready is not None:
            self._again.remove(ready)
        return ready

    def _ask(self) -> _Attempt | None:
        if self._proposer is not _Proposer.OPEN:
            return None
        proposal = self._propose()
        if isinstance(proposal, Request):
            return _Attempt(proposal)
        if isinstance(proposal, Wait) and not self._out and not self._again:
            raise deadlock(proposal)
        self._proposer = _Proposer.CLOSED if proposal is None else _Proposer.WAITING
        return None

    def goes_on(self, trial: str, progress: Progress) -> bool:
        """Whether the request that went out under this name goes on, as far as it has come."""
        return self._judge is None or self._judge(replace(progress, request=self._out[trial].request))

    def stopped(self, trial: str, progress: Progress) -> None:
        """The request does not go on, and was ended."""
        attempt = self._out.pop(trial)
        self._settle(replace(progress, request=attempt.request).stopped())

    def landed(self, trial: str, outcome: Outcome) -> None:
        """The request came back evaluated: report it, as the very request that was proposed, or send it out again where it failed by the
        machine's fault."""
        attempt = self._out.pop(trial)
        if outcome.status == "failed" and outcome.error_kind == "machine" and self._repeat(attempt):
            return
        tried = f" (tried {attempt.number} times)" if outcome.status == "failed" and attempt.number > 1 else ""
        self._settle(replace(outcome, request=attempt.request, error=f"{outcome.error}{tried}" if tried else outcome.error))

    def lost(self, trial: str, cause: str) -> None:
        """The request's worker died: it goes out again, or is reported as failed once it has cost ``retries`` + 1 workers."""
        attempt = self._out.pop(trial)
        if not self._repeat(attempt):
            error = f"the worker died {attempt.number} time(s), of memory, a signal or a lost machine: {cause}"
            self._settle(Outcome(attempt.request, "failed", error=error, error_kind="machine"))

    def exceeded(self, trial: str, limit: str, seconds: float) -> None:
        """The request was ended because it went beyond a limit, which is an outcome."""
        attempt = self._out.pop(trial)
        error = f"the evaluation was ended: {limit}"
        self._settle(Outcome(attempt.request, "failed", error=error, seconds=seconds, error_kind="limit"))

    def _repeat(self, attempt: _Attempt) -> bool:
        """Put a request off, if it may go out again."""
        if attempt.number > self._retries:
            return False
        wait = min(self._backoff * 2.0 ** (attempt.number - 1), LONGEST)
        self._again.append(_Attempt(attempt.request, attempt.number + 1, self._clock() + wait))
        return True

    def _settle(self, outcome: Outcome) -> None:
        if self._proposer is _Proposer.WAITING:
            self._proposer = _Proposer.OPEN
        self._report(outcome)
