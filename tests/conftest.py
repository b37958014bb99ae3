"""Settings for every test: one thread, no usage statistics, fixed seeds; and two options that show which tests hang on a
random draw or on each other: ``--shift-seeds N`` and ``--shuffle N``."""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "forked"))

import forked

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shift-seeds", type=int, default=0, help="added to every seed that torch and numpy are given")
    parser.addoption("--shuffle", type=int, default=None, help="run the tests in the random order of this seed")


def pytest_configure(config: pytest.Config) -> None:
    _importable_in_children(Path(__file__).parents[1])
    if shift := config.getoption("--shift-seeds"):
        _shift_seeds(shift)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)


def pytest_unconfigure() -> None:
    forked.stop()


def _shift_seeds(shift: int) -> None:
    """Every seed given to torch or numpy is another one, in this process and in those that tests start."""
    folder = Path(__file__).parent / "shifted"
    spec = importlib.util.spec_from_file_location("shifted", folder / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    shifted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shifted)
    shifted.install(shift)
    os.environ[shifted.SHIFT] = str(shift)
    _importable_in_children(folder)


def _importable_in_children(folder: Path) -> None:
    """Processes that tests start find what lies in ``folder`` first."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A block in which files of this process cannot grow beyond 1,000 bytes: the kernel answers as it does where a disk is full.
    A block, since pytest writes its own report before fixtures are taken down."""
    return _full_disk


@contextmanager
def _full_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class Postgres:
    """A PostgreSQL server of the tests' own, which listens on a socket in a folder of its own alone."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self._user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # it refuses to run as root
        if self._user:
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "postgres", "--no-sync")

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off -c max_connections=50"
        self._run("pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        """At once, as a crash does."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data"))

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{next(self._numbers)}"
        self._run("createdb", "-h", str(self.folder), "-U", "postgres", name)
        return f"postgresql+psycopg://postgres:secret@/{name}?host={self.folder}"

    _numbers = itertools.count()

    def _run(self, program: str, *arguments: str) -> None:
        # a server that it starts must not inherit a pipe: the end of it would be waited for
        command = [*self._user, str(self.programs / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", timeout=60)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server; without PostgreSQL and its driver the test is skipped."""
    pytest.importorskip("psycopg", reason="needs the driver of PostgreSQL (pip install 'ranksearch[postgres]')")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in filter(None, [shutil.which("initdb")])]
    if not found or (os.getuid() == 0 and shutil.which("runuser") is None):
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="rspg", dir="/tmp"))  # the path of a socket is short
    server = Postgres(found[-1].parent, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
