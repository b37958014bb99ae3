"""Processes for tests that need one of their own: forks of a Python that has ranksearch imported and has run nothing. A fork is there
at once, where a new interpreter takes seconds of imports. It has its own descriptors, arguments, environment, working folder, session and
signals, and ends as an interpreter ends: with ``atexit``, a last flush and an exit status.

What is read only when an interpreter starts is that of the tests: the number of threads, the seed of hashes. Tests of such things,
or of what an import does, start an interpreter."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

PRELOADED = (
    "ranksearch.cli.commands", "ranksearch.studyfile", "ranksearch.study", "ranksearch.supernet", "ranksearch.runners",
    "torch._dynamo",  # which torch imports where it first makes an optimizer
)  # fmt: skip
LIMIT = 60_000  # bytes of a request

_server: tuple[subprocess.Popen[bytes], socket.socket] | None = None


class Forked:
    """A running Python, with what tests use of `subprocess.Popen`. Its arguments are those of ``python``: ``-m MODULE``, ``-c CODE`` or a
    file first."""

    def __init__(
        self, arguments: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | Path | None = None, stdout: int | None = None,
        merged: bool = False, bytes_: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            env: None for that of this process.
            cwd: the working folder; None for that of this process.
            stdout: a descriptor; None for a pipe that `stdout` reads.
            merged: what it writes to its standard error goes to its standard output.
            bytes_: pipes are read as bytes, not as text.
        """
        words = [os.fsencode(word).hex() for word in arguments]
        request = {"arguments": words, "env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
        read = [os.pipe(), os.pipe(), os.pipe()]  # stdout, stderr, status
        given = [read[0][1] if stdout is None else stdout, read[0 if merged else 1][1], read[2][1]]
        text = json.dumps(request).encode()
        assert len(text) < LIMIT
        socket.send_fds(_connection(), [text], given)
        for _, end in read:
            os.close(end)
        self.stdout: IO[Any] = os.fdopen(read[0][0], "rb" if bytes_ else "r")
        self.stderr: IO[Any] = os.fdopen(read[1][0], "rb" if bytes_ else "r")
        self._status = read[2][0]
        self.pid = self._number()
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        """Send it a signal; it must not have been waited for."""
        assert self.returncode is None
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, if it still runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        return self.wait(0.0)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit status: below zero where a signal ended it; None where it still runs after ``timeout`` seconds."""
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = self._number()
            os.close(self._status)
        return self.returncode

    def _number(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._status, 1) or b"\n"
        return int(line)

    def communicate(self, timeout: float) -> tuple[Any, Any]:
        """What is left of its output and its errors, when it has ended.

        Raises:
            TimeoutExpired: it has not after ``timeout`` seconds, and was killed."""
        with ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            if self.wait(timeout) is None:
                self.kill()
                raise subprocess.TimeoutExpired("forked", timeout)
            out, err = (text.result() for text in texts)
        self.stdout.close()
        self.stderr.close()
        return out, err


def run(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: str | Path | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` to its end."""
    process = Forked(arguments, env=env, cwd=cwd)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(list(arguments), process.returncode, out, err)


def _connection() -> socket.socket:
    """To the server, which is started when it is first needed."""
    global _server
    if _server is None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, __file__, str(theirs.fileno())]
        # in a session of its own: Ctrl-C in a terminal is for the tests
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        _server = process, ours
    return _server[1]


def stop() -> None:
    """End the server; what it has forked goes on."""
    global _server
    if _server is not None:
        _server[1].close()
        _server[0].wait(60)
        _server = None


def _serve(connection: socket.socket) -> list[str]:
    """Fork a process per request, until the tests are done; in each, returns its arguments."""
    while True:
        text, descriptors, _, _ = socket.recv_fds(connection, LIMIT, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # counts the processor time of those that have ended
                continue
        if not text:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, 0):
                    continue
            sys.exit()
        if os.fork() == 0:
            connection.close()
            return _fork(json.loads(text), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(request: dict[str, Any], descriptors: list[int]) -> list[str]:
    """In a process that waits for it and tells how it ended: the process that was asked for."""
    out, err, status = descriptors
    if pid := os.fork():
        os.close(out), os.close(err)
        os.write(status, b"%d\n" % pid)
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    os.close(status)
    for descriptor, number in ((out, 1), (err, 2)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    return [os.fsdecode(bytes.fromhex(a)) for a in request["arguments"]]


def _execute(arguments: list[str]) -> None:
    kind = arguments[0]
    if kind in ("-m", "-c"):
        sys.path[0], sys.argv = str(Path.cwd()), [kind, *arguments[2:]]
    else:
        sys.path[0], sys.argv = str(Path(kind).parent), arguments
    if kind == "-m":
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for _module in PRELOADED:
        __import__(_module)
    gc.freeze()  # forks share what is imported: collecting it at their end would copy and take apart all of it
    _execute(_serve(socket.socket(fileno=int(sys.argv[1]))))
