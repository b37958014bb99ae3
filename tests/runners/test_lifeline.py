"""What is gone is found, what is there or comes back is not."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import forked
import pytest

from ranksearch.errors import ClusterLost
from ranksearch.runners import _lifeline
from ranksearch.runners._lifeline import Lifeline


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lifeline, "LOOK", 0.01)


def listening(port: int = 0) -> socket.socket:
    server = socket.create_server(("127.0.0.1", port))
    server.settimeout(10)
    return server


def soon(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_process_that_ends_is_found_to_be_gone() -> None:
    server, other = listening(), listening()
    places = {"the head": server.getsockname(), "the other": other.getsockname()}
    with Lifeline(patience=0.0, remedy="mend it and ") as lifeline, lifeline.watching(places):
        connection, _ = server.accept()
        time.sleep(0.1)
        lifeline.check()
        server.close()
        connection.close()
        assert soon(lambda: lifeline.lost is not None)
        with pytest.raises(ClusterLost, match=r"^the head \(127\.0\.0\.1:\d+\): gone \(.*stored: mend it and run the same"):
            lifeline.check()
    other.close()


def test_what_closes_connections_is_there_as_long_as_it_takes_new_ones() -> None:
    with listening() as server, Lifeline(patience=0.0, remedy="") as lifeline, lifeline.watching({"the head": server.getsockname()}):
        for _ in range(5):
            server.accept()[0].close()
        assert lifeline.lost is None


def test_what_is_back_in_time_was_not_gone() -> None:
    server = listening()
    place = server.getsockname()
    with Lifeline(patience=10.0, remedy="") as lifeline, lifeline.watching({"the head": place}):
        connection, _ = server.accept()
        server.close()
        connection.close()
        time.sleep(0.1)
        assert lifeline.lost is None
        with listening(place[1]) as again:
            again.accept()
            assert lifeline.lost is None


def test_the_end_of_a_run_is_no_loss() -> None:
    with Lifeline(patience=0.0, remedy="", doom=0.0) as lifeline:
        with listening() as server, lifeline.watching({"the head": server.getsockname()}):
            server.accept()
        time.sleep(0.1)
        assert lifeline.lost is None


def test_a_run_that_waits_for_what_will_not_come_ends_with_the_message() -> None:
    code = (
        "import time\nfrom ranksearch.runners._lifeline import Lifeline\n"
        "with Lifeline(patience=0.0, remedy='', doom=0.1) as lifeline, lifeline.watching({'the head': ('127.0.0.1', 1)}): time.sleep(60)"
    )
    process = forked.Forked(["-c", code])
    _, said = process.communicate(30)
    assert process.returncode == 2 and said.startswith("error: the head (127.0.0.1:1): gone (") and said.count("\n") == 1
