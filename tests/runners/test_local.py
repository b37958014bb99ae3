"""The contract of a runner, in this process."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import Fidelity, Outcome, Point, Progress, Request
from ranksearch.runners import WAIT, LocalRunner, RayTuneRunner
from ranksearch.runners._dispatch import Dispatcher
from ranksearch.space import Configuration


def request(seed: int) -> Request:
    return Request(Configuration({"layer": ("svd", (seed + 1,))}), Fidelity(), seed, "test")


def evaluate(asked: Request) -> Outcome:
    if asked.seed == 2:
        raise ValueError("two is not allowed")
    return Outcome(asked, "done", {"seed": float(asked.seed), "threads": float(torch.get_num_threads())})


def test_every_request_is_reported_once_and_failures_too() -> None:
    requests = [request(seed) for seed in range(4)]
    queue, outcomes = list(requests), []
    LocalRunner().run(evaluate, lambda: queue.pop(0) if queue else None, outcomes.append)
    assert [outcome.request for outcome in outcomes] == requests
    assert [outcome.status for outcome in outcomes] == ["done", "done", "failed", "done"]
    assert outcomes[2].error == "ValueError: two is not allowed"


def test_threads_are_set_for_the_run_and_restored() -> None:
    before = torch.get_num_threads()
    queue, outcomes = [request(0)], []
    LocalRunner(threads=before + 1).run(evaluate, lambda: queue.pop() if queue else None, outcomes.append)
    assert outcomes[0].metrics["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_exceptions_of_the_caller_propagate_and_threads_are_restored() -> None:
    before = torch.get_num_threads()

    def report(outcome: Outcome) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        LocalRunner(threads=before + 1).run(evaluate, lambda: request(0), report)
    assert torch.get_num_threads() == before


def test_interrupts_are_not_outcomes() -> None:
    def interrupted(asked: Request) -> Outcome:
        raise KeyboardInterrupt

    outcomes: list[Outcome] = []
    with pytest.raises(KeyboardInterrupt):
        LocalRunner().run(interrupted, lambda: request(0), outcomes.append)
    assert not outcomes


def test_the_machines_failures_are_tried_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("ranksearch.runners.local.time.sleep", sleep)
    monkeypatch.setattr("ranksearch.runners.local.Dispatcher", partial(Dispatcher, clock=lambda: now[0]))
    tries: list[int] = []

    def scarce(asked: Request) -> Outcome:
        tries.append(asked.seed)
        if tries.count(asked.seed) <= 3 * asked.seed:
            raise MemoryError("not now")
        return Outcome(asked, "done")

    queue, outcomes = [request(1), request(0)], []
    LocalRunner(retries=3, backoff=2.0).run(scarce, lambda: queue.pop(0) if queue else None, outcomes.append)
    assert [(o.request.seed, o.status) for o in outcomes] == [(0, "done"), (1, "done")]
    assert tries == [1, 0, 1, 1, 1] and pauses == [2.0, 4.0, 8.0]


def test_the_end_of_the_process_is_a_failure_of_code() -> None:
    def leave(asked: Request) -> Outcome:
        raise SystemExit(0)

    queue, outcomes = [request(0), request(1)], []
    LocalRunner().run(leave, lambda: queue.pop(0) if queue else None, outcomes.append)
    assert [(o.status, o.error_kind) for o in outcomes] == [("failed", "code")] * 2


def test_waiting_for_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="nothing is in flight"):
        LocalRunner().run(evaluate, lambda: WAIT, lambda outcome: None)


def test_arguments_are_checked() -> None:
    with pytest.raises(InvalidArgument, match="threads=0"):
        LocalRunner(threads=0)
    for wrong in ({"workers": 0}, {"cpus_per_worker": 0}, {"gpus_per_worker": -1}, {"retries": -1}, {"address": "ray://head:10001"}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            RayTuneRunner(**wrong)


def test_evaluations_in_parts_are_judged_and_those_that_do_not_go_on_are_ended() -> None:
    ended: list[int] = []

    def in_parts(asked: Request):
        try:
            for rung in (1.0, 3.0):
                yield Progress(asked, (Point(rung, {"loss": float(asked.seed)}),), rung)
            if asked.seed == 3:
                raise ArithmeticError("late")
            if asked.seed != 4:
                yield Outcome(asked, "done", {"loss": 0.0})
        finally:
            ended.append(asked.seed)

    judged: list[tuple[int, float]] = []

    def judge(progress: Progress) -> bool:
        judged.append((progress.request.seed, progress.curve[-1].epochs))
        return progress.request.seed != 1

    queue, outcomes = [request(seed) for seed in range(5)], []
    LocalRunner().run(in_parts, lambda: queue.pop(0) if queue else None, outcomes.append, judge)
    assert judged == [(0, 1), (0, 3), (1, 1), (2, 1), (2, 3), (3, 1), (3, 3), (4, 1), (4, 3)]
    assert [one.status for one in outcomes] == ["done", "stopped", "done", "failed", "failed"] and ended == list(range(5))
    assert [one.error_kind for one in outcomes[3:]] == ["configuration", "code"] and "without an outcome" in str(outcomes[4].error)

    queue, outcomes = [request(0)], []
    LocalRunner().run(in_parts, lambda: queue.pop(0) if queue else None, outcomes.append)
    assert outcomes[0].status == "done", "nobody judges"

    def wrong(progress: Progress) -> bool:
        raise LookupError("no scheduler")

    queue, ended[:] = [request(0)], []
    with pytest.raises(LookupError, match="no scheduler"):
        LocalRunner().run(in_parts, lambda: queue.pop(0) if queue else None, outcomes.append, wrong)
    assert ended == [0], "nothing is left running"
