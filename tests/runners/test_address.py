"""Addresses of Ray clusters: malformed ones and those where no cluster answers are refused, and soon."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ranksearch.errors import InvalidArgument
from ranksearch.runners import RayTuneRunner
from ranksearch.runners._address import checked_address


@pytest.mark.parametrize(
    "address",
    [
        "", " ", "nonsense", ":", ":6379", ":::", "host:", "host:port", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", "1.2.3.4:6379:1",
        "http://host:6379", "host:6379/", "host 6379", " host:6379", "host:6379\n", "-host:6379", "[::1:6379", "::1:6379", "[x]:6379",
        "h\udcff:6379", "AUTO", "\0:1", "é:6379", "host:٣",
    ],
)  # fmt: skip
def test_malformed_addresses_are_refused_at_once(address: str) -> None:
    with pytest.raises(InvalidArgument, match="is no address of a Ray cluster: give 'auto'"):
        RayTuneRunner(address=address)


def test_ray_client_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidArgument, match="through Ray Client the search itself would run on the cluster"):
        RayTuneRunner(address="ray://host:10001")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no.such.host.invalid", "a..b", "a" * 300])
def test_where_nothing_listens(host: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be reached"):
        RayTuneRunner(address=f"{host}:{_free_port()}")


@pytest.fixture(params=[b"", b"HTTP/1.1 404 Not Found\r\n\r\n"], ids=["silent", "web server"])
def stranger(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that is no Ray."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        held: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if request.param:
                    connection.sendall(request.param)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        for connection in held:
            connection.close()


def test_where_something_else_listens(stranger: int) -> None:
    with pytest.raises(InvalidArgument, match="something listens there, but no Ray cluster answers"):
        checked_address(f"127.0.0.1:{stranger}")


def test_a_name_server_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [] * over.wait(60))
    monkeypatch.setattr("ranksearch.runners._address.CONNECT", 0.1)
    start = time.monotonic()
    with pytest.raises(InvalidArgument, match=r"cannot be reached \(timed out\)"):
        checked_address("somewhere:6379")
    assert time.monotonic() - start < 30
    over.set()


def test_auto_without_a_cluster_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(InvalidArgument, match=r"no Ray cluster runs at RAY_ADDRESS=nonsense .*ray start --head"):
        checked_address("auto")


def test_the_environments_address_is_taken_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(InvalidArgument, match=r"^RAY_ADDRESS=nonsense: .* is no address .*--address local"):
        RayTuneRunner()
    assert RayTuneRunner(address="local").address is None
    for nothing in ("local", ""):
        monkeypatch.setenv("RAY_ADDRESS", nothing)
        assert RayTuneRunner().address is None
    monkeypatch.setattr("ranksearch.runners.ray_tune.checked_address", lambda address: address)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert RayTuneRunner().address == "head:6379" and RayTuneRunner(address="other:1").address == "other:1"


class Cluster:
    """What a runner asks of Ray to know how large it is."""

    def __init__(self, *machines: tuple[float, float]) -> None:
        self.machines = list(machines)

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": {"CPU": c, "GPU": g} if g else {"CPU": c}} for c, g in self.machines] + [
            {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        ]


@pytest.mark.parametrize(
    ("options", "machines", "room"),
    [
        ({}, [(2, 0)], 2), ({"cpus_per_worker": 0.5}, [(2, 0)], 4), ({"cpus_per_worker": 4}, [(6, 0), (7, 0)], 2),
        ({"cpus_per_worker": 4}, [(3, 0), (3, 0)], 0), ({"gpus_per_worker": 0.5}, [(8, 2)], 4), ({"gpus_per_worker": 0.4}, [(8, 2)], 4),
        ({"gpus_per_worker": 2}, [(8, 3), (8, 1), (8, 2)], 2), ({"gpus_per_worker": 0.25}, [(3, 1), (3, 0)], 3),
    ],
)  # fmt: skip
def test_no_worker_spreads_over_two_machines_and_no_share_over_two_gpus(options, machines, room: int) -> None:
    assert RayTuneRunner(**options)._room(Cluster(*machines))[2] == room


def test_a_cluster_may_grow_and_shrink() -> None:
    cluster = Cluster((2, 0))
    every, three = RayTuneRunner(), RayTuneRunner(3)
    assert (every._resized(cluster), three._resized(cluster)) == (2, 2)
    cluster.machines.append((4, 0))
    assert (every._resized(cluster), three._resized(cluster)) == (6, 3)
    cluster.machines = []
    assert every._resized(cluster) == 1, "it waits for a machine"


@pytest.mark.parametrize("amount", [0, -1, 1.5, 0.00001, float("inf"), "1"])
def test_amounts_of_cpus_and_gpus_are_checked(amount) -> None:
    with pytest.raises(InvalidArgument, match="cpus_per_worker="):
        RayTuneRunner(cpus_per_worker=amount)
    if amount != 0:
        with pytest.raises(InvalidArgument, match="gpus_per_worker="):
            RayTuneRunner(gpus_per_worker=amount)
