"""Evaluations in this process, one at a time, for tests, small studies and debuggers."""

from __future__ import annotations

import contextlib
import time

from ranksearch import checks
from ranksearch.evaluation.request import Evaluate, Outcome, Request
from ranksearch.runners._base import Judge, Propose, Report, Runner, parts
from ranksearch.runners._dispatch import BACKOFF, RETRIES, Dispatcher


class LocalRunner(Runner):
    """Evaluates in the calling process, one request at a time. An evaluation that hangs or takes all memory can therefore not be ended
    without the search: `RayTuneRunner` has limits on both."""

    def __init__(self, threads: int | None = None, *, retries: int = RETRIES, backoff: float = BACKOFF) -> None:
        """
        Args:
            threads: PyTorch's intra-operator threads while it runs; None leaves them as they are.
            retries: how often a request is evaluated again that failed by the machine's fault.
            backoff: seconds before the first time, twice as many before each further one.

        Raises:
            InvalidArgument: ``threads`` below 1, ``retries`` or ``backoff`` below 0.
        """
        if threads is not None:
            checks.whole("threads", threads, least=1)
        self.workers = 1
        self.threads = threads
        self.retries = checks.whole("retries", retries, least=0)
        self.backoff = checks.number("backoff", backoff, least=0)

    def run(self, evaluate: Evaluate, propose: Propose, report: Report, judge: Judge | None = None) -> None:
        """See `Runner.run`."""
        from ranksearch.threads import threads

        dispatcher = Dispatcher(propose, report, judge, workers=1, retries=self.retries, backoff=self.backoff)
        with threads(self.threads):
            while not dispatcher.finished:
                if (request := dispatcher.take("here")) is not None:
                    _evaluate(dispatcher, evaluate, request)
                elif (pause := dispatcher.pause) > 0:
                    time.sleep(pause)


def _evaluate(dispatcher: Dispatcher, evaluate: Evaluate, request: Request) -> None:
    with contextlib.closing(parts(evaluate, request)) as found:
        for part in found:
            if isinstance(part, Outcome):
                return dispatcher.landed("here", part)
            if not dispatcher.goes_on("here", part):
                return dispatcher.stopped("here", part)
