"""Evaluations in this process, one at a time, for tests, small studies and debuggers."""

from __future__ import annotations

import time

from ranksearch import checks
from ranksearch.evaluation.request import failed
from ranksearch.runners._base import Evaluate, Propose, Report, Runner, Wait, deadlock


class LocalRunner(Runner):
    """Evaluates in the calling process, one request at a time."""

    def __init__(self, threads: int | None = None) -> None:
        """
        Args:
            threads: PyTorch's intra-operator threads while it runs; None leaves them as they are.

        Raises:
            InvalidArgument: ``threads`` below 1.
        """
        if threads is not None:
            checks.whole("threads", threads, least=1)
        self.workers = 1
        self.threads = threads

    def run(self, evaluate: Evaluate, propose: Propose, report: Report) -> None:
        """See `Runner.run`."""
        import torch

        before = torch.get_num_threads()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            while (request := propose()) is not None:
                if isinstance(request, Wait):
                    raise deadlock(request)
                start = time.perf_counter()
                try:
                    outcome = evaluate(request)
                except Exception as error:  # a request that breaks the evaluator must not end the others; it is reported
                    outcome = failed(request, error, time.perf_counter() - start)
                report(outcome)
        finally:
            torch.set_num_threads(before)
