"""A search on a cluster of several nodes, all on this machine: what nodes cost that join, are killed or hold the head."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from cli_cases import edited, run

from ranksearch.store import Store

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")

# every evaluation but the dense network's waits for somebody to let it go on
MEASURE = """
    import os
    folder, real = data, task.measure
    def measure(model):
        name = "-".join(str(p.numel()) for p in model.parameters())
        with open(folder / "log", "a") as file:
            file.write(f"start {name} {os.getpid()}\\n")
        while not (folder / "go").exists():
            time.sleep(0.05)
        found = real(model)
        with open(folder / "log", "a") as file:
            file.write(f"end {name} {os.getpid()}\\n")
        return found
    task.measure = measure
    return Study"""
SEEN_SOON = {"initial_delay_ms": 0, "period_ms": 500, "timeout_ms": 500, "failure_threshold": 3}  # that a node is gone


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors, to which the searches connect."""
    from ray.cluster_utils import Cluster

    settings = {f"health_check_{name}": value for name, value in SEEN_SOON.items()}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": settings})
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture
def held(study: str, tmp_path: Path) -> str:
    return edited(study, "    return Study", MEASURE)


class Search:
    """A search that runs on a cluster, and what its evaluations have written down."""

    def __init__(self, study: str, cluster: Any, trials: int) -> None:
        self.folder = Path(study).parent
        self.command = ["search", study, "--data", str(self.folder), "--trials", str(trials), "--store", str(self.folder / "x.db")]
        self.began = len(self.log())
        self.process = forked.Forked(["-m", "ranksearch.cli", *self.command, "--address", cluster.address])

    def log(self) -> list[list[str]]:
        path = self.folder / "log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def in_flight(self) -> dict[str, int]:
        """The process of each evaluation that has begun and not ended, by network."""
        begun = {name: int(pid) for word, name, pid in self.log()[self.began :] if word == "start"}
        return {name: pid for name, pid in begun.items() if ["end", name, str(pid)] not in self.log()}

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate(10)
            assert time.monotonic() < end, f"{what}: not within {seconds:g} seconds; {self.log()}"
            time.sleep(0.1)

    def go(self) -> None:
        (self.folder / "go").touch()

    def hold(self) -> None:
        (self.folder / "go").unlink()

    def stored(self) -> Counter[str]:
        with Store.open(self.folder / "x.db", create=False) as store:
            return Counter(record.status for record in store.records())


def raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # gone meanwhile
        return None


def lose(node: Any) -> None:
    """As if the machine of a node were switched off: all its processes end at once."""
    children = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and parent(int(entry.name)) == raylet(node)]
    heads = [info[0].process.pid for name, info in node.all_processes.items() if name == "gcs_server"]
    for pid in (*heads, raylet(node), *children):
        os.kill(pid, signal.SIGKILL)


def test_a_node_that_joins_is_used_and_one_that_is_lost_costs_nothing_that_is_finished(held: str, cluster: Any) -> None:
    first = cluster.add_node(num_cpus=1)
    search = Search(held, cluster, trials=6)
    try:
        search.until(lambda: len(search.in_flight()) == 1, "the first evaluation")
        second = cluster.add_node(num_cpus=1)
        search.until(lambda: len(search.in_flight()) == 2, "an evaluation on the node that has joined")
        raylets = {name: parent(pid) for name, pid in search.in_flight().items()}
        ours = [name for name, pid in raylets.items() if pid == raylet(first)]
        assert len(ours) == 1 and len(set(raylets.values())) == 2, "one on each"
        lose(first)
        search.go()
        _, said = search.process.communicate(120)
    finally:
        search.process.kill()
        cluster.remove_node(second, allow_graceful=False)
    assert search.process.returncode == 0, said
    assert search.stored() == {"done": 6}
    started, ended = (Counter(name for word, name, _ in search.log() if word == kind) for kind in ("start", "end"))
    assert set(ended.values()) == {1} and len(ended) == 6, "nothing that was finished is repeated"
    assert started == ended + Counter(ours), "what was on its way there is tried again, and nothing else"


def test_a_head_that_goes_away_ends_the_search_with_a_message_and_the_same_command_goes_on(held: str, cluster: Any) -> None:
    cluster.add_node(num_cpus=1)
    search = Search(held, cluster, trials=4)
    try:
        search.go()
        search.until(lambda: len(search.log()) >= 2, "an evaluation that ends")
        search.hold()
        search.until(lambda: len(search.in_flight()) == 1, "one in flight")
        finished = [name for word, name, _ in search.log() if word == "end"]
        nodes = cluster.list_all_nodes()
        joined = {f"{node.node_ip_address}:{node.node_manager_port}" for node in nodes}
        places = {"the head of Ray": {cluster.address}, "Ray on this machine": joined}
        for node in nodes[::-1]:  # the head last: what was in flight does not go on without it
            lose(node)
        printed, said = search.process.communicate(60)
    finally:
        search.process.kill()
    last = said.splitlines()[-1]
    assert search.process.returncode == 2 and printed == ""
    # whichever went first: the node that the search has joined, of several on this machine, may not be the head's
    name, place = last.removeprefix("error: ").split(")")[0].split(" (")
    assert place in places[name], last
    assert last.endswith("start the cluster and run the same again to go on")
    assert "Traceback" not in said and not any(word in said for word in ("[state-dump]", "GCS", "core_worker")), said
    assert search.stored() == {"done": len(finished)}
    search.go()
    again = run(*search.command, "--runner", "local")
    assert again.returncode == 0 and search.stored() == {"done": 4}, again.stderr
    ended = Counter(name for word, name, _ in search.log() if word == "end")
    assert set(ended.values()) == {1} and len(ended) == 4, "nothing that was finished is repeated"
