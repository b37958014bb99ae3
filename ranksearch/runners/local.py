"""Evaluations in this process, one at a time, for tests, small studies and debuggers."""

from __future__ import annotations

import time

from ranksearch import checks
from ranksearch.evaluation.request import Outcome, Request, failed
from ranksearch.runners._base import Evaluate, Propose, Report, Runner
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

    def run(self, evaluate: Evaluate, propose: Propose, report: Report) -> None:
        """See `Runner.run`."""
        import torch

        dispatcher = Dispatcher(propose, report, workers=1, retries=self.retries, backoff=self.backoff)
        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            while not dispatcher.finished:
                if (request := dispatcher.take("here")) is not None:
                    dispatcher.landed("here", _outcome(evaluate, request))
                elif (pause := dispatcher.pause) > 0:
                    time.sleep(pause)
        finally:
            torch.set_num_threads(before)


def _outcome(evaluate: Evaluate, request: Request) -> Outcome:
    start = time.perf_counter()
    try:
        return evaluate(request)
    except (Exception, SystemExit) as error:  # a request that breaks the evaluator must not end the others; it is reported
        return failed(request, error, time.perf_counter() - start)
