"""Every request that is proposed is reported exactly once, whatever becomes of workers: without Ray."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ranksearch.evaluation import Fidelity, Outcome, Point, Progress, Request
from ranksearch.runners import WAIT, Wait
from ranksearch.runners._dispatch import Dispatcher
from ranksearch.space import Configuration


def request(number: int) -> Request:
    return Request(Configuration({"layer": ("svd", (number + 1,))}), Fidelity(), number, "test")


def done(one: Request) -> Outcome:
    return Outcome(one, "done", metrics={"loss": 1.0}, seconds=0.0)


def full(one: Request) -> Outcome:
    return Outcome(one, "failed", error="OSError: no space left", error_kind="machine")


class Proposer:
    """Proposes what it is given, one after the other, then None; and remembers what is reported."""

    def __init__(self, *proposals: Request | Wait) -> None:
        self.left: list[Request | Wait] = list(proposals)
        self.asked = 0
        self.outcomes: list[Outcome] = []

    def propose(self) -> Request | Wait | None:
        self.asked += 1
        return self.left.pop(0) if self.left else None

    def dispatcher(self, *, workers: int = 2, retries: int = 1, **options) -> Dispatcher:
        return Dispatcher(self.propose, self.outcomes.append, workers=workers, retries=retries, **({"backoff": 0.0} | options))


def test_no_more_are_out_than_there_are_workers() -> None:
    proposer = Proposer(*map(request, range(3)))
    dispatcher = proposer.dispatcher(workers=2)
    assert [dispatcher.take(t) for t in "abc"] == [request(0), request(1), None]
    assert proposer.asked == 2  # not asked for what could not go out
    dispatcher.landed("b", done(request(1)))
    assert dispatcher.take("c") == request(2)
    assert [o.request for o in proposer.outcomes] == [request(1)] and not dispatcher.is_out("b")


def test_workers_may_become_more_and_fewer() -> None:
    proposer = Proposer(*map(request, range(5)))
    dispatcher = proposer.dispatcher(workers=1)
    assert [dispatcher.take(t) for t in "ab"] == [request(0), None]
    dispatcher.workers = 3
    assert [dispatcher.take(t) for t in "bcd"] == [request(1), request(2), None]
    dispatcher.workers = 1
    dispatcher.landed("a", done(request(0)))
    assert dispatcher.take("e") is None and dispatcher.is_out("b")


def test_it_is_finished_when_all_are_back_and_no_more_come() -> None:
    proposer = Proposer(request(0))
    dispatcher = proposer.dispatcher()
    assert not dispatcher.finished
    assert dispatcher.take("a") == request(0)
    assert dispatcher.take("b") is None and not dispatcher.finished
    assert dispatcher.take("b") is None and proposer.asked == 2  # not asked again after None
    dispatcher.landed("a", done(request(0)))
    assert dispatcher.finished and dispatcher.take("c") is None and proposer.asked == 2


def test_a_proposer_that_waits_is_asked_again_after_an_outcome() -> None:
    proposer = Proposer(request(0), WAIT, request(1))
    dispatcher = proposer.dispatcher()
    dispatcher.take("a")
    assert dispatcher.take("b") is None and dispatcher.take("b") is None
    assert proposer.asked == 2
    dispatcher.landed("a", done(request(0)))
    assert dispatcher.take("b") == request(1)


def test_a_worker_that_dies_is_no_outcome_to_wait_for() -> None:
    proposer = Proposer(request(0), WAIT)
    dispatcher = proposer.dispatcher()
    dispatcher.take("a")
    assert dispatcher.take("b") is None
    dispatcher.lost("a", "killed")
    assert dispatcher.take("b") == request(0)
    assert dispatcher.take("c") is None and proposer.asked == 2 and not proposer.outcomes


def test_waiting_for_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="nothing is in flight"):
        Proposer(WAIT).dispatcher().take("a")


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_request_goes_out_again_so_many_times(retries: int) -> None:
    proposer = Proposer(request(0))
    dispatcher = proposer.dispatcher(retries=retries)
    for death in range(retries + 1):
        assert not proposer.outcomes
        assert dispatcher.take(str(death)) == request(0)
        dispatcher.lost(str(death), "signal 9")
    (outcome,) = proposer.outcomes
    assert outcome.status == "failed" and outcome.request == request(0)
    assert f"died {retries + 1} time(s)" in str(outcome.error) and "signal 9" in str(outcome.error)
    assert dispatcher.take("x") is None and dispatcher.finished


def test_what_failed_by_the_machines_fault_goes_out_again_after_a_while_and_others_meanwhile() -> None:
    now = [100.0]
    proposer = Proposer(request(0), WAIT, request(1))
    dispatcher = proposer.dispatcher(workers=1, retries=2, backoff=4.0, clock=lambda: now[0])
    assert dispatcher.pause == 0 and dispatcher.take("a") == request(0)
    dispatcher.landed("a", full(request(0)))
    assert not proposer.outcomes and not dispatcher.finished and dispatcher.pause == 4
    assert dispatcher.take("b") is None, "the proposer waits for it, which is no deadlock"
    now[0] += 4
    assert dispatcher.pause == 0 and dispatcher.take("b") == request(0)
    dispatcher.lost("b", "signal 9")
    assert dispatcher.pause == 8, "twice as long"
    now[0] += 7.9
    assert dispatcher.take("c") is None and dispatcher.pause == pytest.approx(0.1)
    now[0] += 0.1
    assert dispatcher.take("c") == request(0)
    dispatcher.landed("c", full(request(0)))
    (outcome,) = proposer.outcomes
    assert (outcome.error_kind, outcome.error) == ("machine", "OSError: no space left (tried 3 times)")
    assert dispatcher.take("d") == request(1) and dispatcher.pause == 0


@pytest.mark.parametrize("kind", ["configuration", "code", "limit", None])
def test_no_other_failure_goes_out_again(kind) -> None:
    proposer = Proposer(request(0))
    dispatcher = proposer.dispatcher(retries=5)
    dispatcher.take("a")
    dispatcher.landed("a", Outcome(request(0), "failed", error="no", error_kind=kind))
    assert [(o.error, o.error_kind) for o in proposer.outcomes] == [("no", kind)]


def test_the_last_request_goes_out_again_after_the_proposer_is_done() -> None:
    proposer = Proposer(request(0))
    dispatcher = proposer.dispatcher()
    dispatcher.take("a")
    assert dispatcher.take("b") is None
    dispatcher.lost("a", "killed")
    assert not dispatcher.finished
    assert dispatcher.take("b") == request(0)


def test_what_is_reported_is_the_request_that_was_proposed() -> None:
    mine = request(0)
    proposer = Proposer(mine)
    dispatcher = proposer.dispatcher()
    dispatcher.take("a")
    dispatcher.landed("a", done(request(0)))  # a copy, as it comes back from another process
    assert proposer.outcomes[0].request is mine and proposer.outcomes[0].metrics == {"loss": 1.0}


def test_what_propose_and_report_raise_comes_out() -> None:
    def refuse(*_args: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Dispatcher(refuse, refuse, workers=1, retries=0).take("a")
    dispatcher = Dispatcher(lambda: request(0), refuse, workers=1, retries=0)
    dispatcher.take("a")
    with pytest.raises(ZeroDivisionError):
        dispatcher.landed("a", done(request(0)))


@pytest.mark.parametrize("seed", range(20))
def test_every_request_is_reported_exactly_once(seed: int) -> None:
    draw = random.Random(seed)
    requests = [request(k) for k in range(draw.randrange(30))]
    left, reported, out = list(requests), [], {}

    def propose() -> Request | Wait | None:
        if out and draw.random() < 0.3:
            return WAIT
        return left.pop(0) if left else None

    workers, trial = draw.randrange(1, 5), 0
    dispatcher = Dispatcher(propose, reported.append, workers=workers, retries=draw.randrange(3), backoff=0.0)
    for _ in range(10_000):
        if dispatcher.finished:
            break
        if draw.random() < 0.6 or not out:
            trial += 1
            if (one := dispatcher.take(str(trial))) is not None:
                out[str(trial)] = one
        else:
            name = draw.choice(list(out))
            one = out.pop(name)
            if draw.random() < 0.3:
                dispatcher.lost(name, "killed")
            elif draw.random() < 0.3:
                dispatcher.landed(name, full(one))
            else:
                dispatcher.landed(name, done(one))
        assert len(out) <= workers
    assert dispatcher.finished and not out
    assert Counter(o.request.seed for o in reported) == Counter(r.seed for r in requests)


def test_what_is_under_way_is_judged_as_the_request_that_was_proposed() -> None:
    seen: list[Progress] = []

    def judge(progress: Progress) -> bool:
        seen.append(progress)
        return progress.request.seed == 0

    proposer = Proposer(request(0), request(1), WAIT, request(2))
    dispatcher = Dispatcher(proposer.propose, proposer.outcomes.append, judge, workers=3, retries=1, backoff=0.0)
    assert [dispatcher.take(name) for name in "abc"] == [request(0), request(1), None], "told to wait for an outcome"
    copies = [Progress(request(k), (Point(1.0, {"loss": 0.5}),), 3.0, {"host": "h"}) for k in range(2)]
    assert dispatcher.goes_on("a", copies[0]) and not dispatcher.goes_on("b", copies[1])
    dispatcher.stopped("b", copies[1])
    assert not dispatcher.is_out("b") and [one.status for one in proposer.outcomes] == ["stopped"]
    stopped = proposer.outcomes[0]
    assert stopped.request is seen[1].request and stopped.curve == copies[1].curve and stopped.seconds == 3.0 and not stopped.metrics
    assert dispatcher.take("c") == request(2), "one that is stopped is an outcome to wait for"
