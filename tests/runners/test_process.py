"""Signals that come while something must not be cut in half."""

from __future__ import annotations

import signal
import threading

import pytest

from ranksearch.runners._process import STOPPING, uninterrupted


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_waits_and_meets_the_handler_that_was_there(number: signal.Signals) -> None:
    met: list[int] = []
    before = signal.signal(number, lambda number, frame: met.append(number))
    done: list[bool] = []

    def action() -> None:
        signal.raise_signal(number)
        signal.signal(number, signal.SIG_IGN)  # as Ray does when it starts: a handler of its own
        done.append(not met)

    try:
        uninterrupted(action)
        assert done == [True] and met == [number]
        signal.raise_signal(number)
        assert met == [number, number], "the handler is what it was"
    finally:
        signal.signal(number, before)


def test_an_interrupt_is_raised_afterwards() -> None:
    done: list[int] = []

    def action() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        uninterrupted(action)
    assert done == [1]


def test_what_fails_leaves_the_handlers_as_they_were() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with pytest.raises(ZeroDivisionError):
        uninterrupted(lambda: 1 / 0)
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_other_threads_get_no_signals() -> None:
    done: list[int] = []
    thread = threading.Thread(target=lambda: uninterrupted(lambda: done.append(1)))
    thread.start()
    thread.join()
    assert done == [1]
