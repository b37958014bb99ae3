"""The command line, ``ranksearch COMMAND STUDY ...``. This module alone turns every end of a command into an exit code: 0; 2 for errors
(one line, no traceback); 130 after Ctrl-C, 143 after SIGTERM, 129 where the terminal was closed; 141 where nobody reads the output any
more. It imports nothing heavy."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ranksearch.cli.session import Session

STOPS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
GRACE = 10.0  # seconds to end in after SIGTERM: Slurm and Kubernetes kill after 30, systemd after 90
TRACEBACK = "RANKSEARCH_TRACEBACK"  # set: deliberate errors show where they come from, too


def script() -> None:
    """Entry point of the console script."""
    _open_streams()
    _keep_stdout()
    code = main()
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)  # Ctrl-C while Python winds down: no traceback either
    sys.exit(code)


def _open_streams() -> None:
    """Let nothing that is opened later get the number of a standard stream that was closed, a store among it: what is printed would go
    there. Such a stream leads nowhere."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (to the end)


def _keep_stdout() -> None:
    """Let nothing but what commands print reach standard output, where ``--format json`` goes: native libraries, which write
    to file descriptor 1, and child processes get standard error there. File names that are no text are printed as they are."""
    try:
        own = os.dup(1)
    except OSError:  # closed: there is nothing to keep
        return
    try:
        os.dup2(2, 1)
    except OSError:  # standard error is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    before = sys.stdout
    buffering = 1 if before.isatty() else -1
    sys.stdout = open(own, "w", encoding=before.encoding, errors="surrogateescape", buffering=buffering)  # noqa: SIM115 (to the end)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from ranksearch.cli.session import Session

    session = Session()

    previous = _handled(session)
    try:
        os.getcwd()
        from ranksearch.cli.commands import execute

        with warnings.catch_warnings():
            _show_warnings()
            code = execute(sys.argv[1:] if arguments is None else list(arguments), session)
        sys.stdout.flush()
        return code
    except BaseException as error:
        # an import that is interrupted may fail with another error than KeyboardInterrupt
        if session.interrupted or isinstance(error, KeyboardInterrupt):
            return _interrupted(session)
        return _explain(error)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _handled(session: Session) -> dict[int, Any]:
    """Make signals that ask to stop a KeyboardInterrupt; returns what handled them before. After all but Ctrl-C, whoever sent them will
    not wait for long: the process ends after `GRACE` whatever it is busy with. What is stored by then stays."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if session.stop is not None and number != signal.SIGINT:  # it is stopping already
            return
        session.interrupted, session.stop = True, number
        if number != signal.SIGINT:
            timer = threading.Timer(GRACE, _leave, [number])
            timer.daemon = True
            timer.start()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        return {}
    # a command that is to outlive its terminal (nohup) ignores that it was closed
    return {number: signal.signal(number, stop) for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN}


def _leave(number: int) -> None:
    _say(f"{STOPS[number]}: not ended within {GRACE:g} seconds, so it is cut short; what is stored stays; run the same command to go on")
    os._exit(128 + number)


def _interrupted(session: Session) -> int:
    number = session.stop or int(signal.SIGINT)
    how = STOPS[number]
    if session.searching:
        count = session.stored
        stored = "no evaluation is" if count == 0 else "1 evaluation is" if count == 1 else f"{count} evaluations are"
        _say(f"{how}: {stored} stored; run the same command to go on")
    elif session.training:
        at = "" if session.trained is None else " at step {:,} of {:,}".format(*session.trained)
        _say(f"{how}{at}; run the same command to go on from the last checkpoint")
    else:
        _say(how)
    return 128 + number


def _explain(error: BaseException) -> int:
    """The exit code of an error, which is told in one line. What nobody foresaw is raised again."""
    from ranksearch.errors import RanksearchError

    if isinstance(error, BrokenPipeError):  # the reader has gone: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    foreseen = isinstance(error, (RanksearchError, OSError))
    if not foreseen or os.environ.get(TRACEBACK):
        raise error
    if isinstance(error, FileNotFoundError) and error.filename is None:
        try:
            os.getcwd()
        except OSError:
            _say("error: the working directory is gone; change to one that is there")
            return 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" ({error.filename})" if error.filename else ""
        _say(f"error: no space left on the disk{place}; free some and run the same command: it goes on from what is stored")
    elif isinstance(error, OSError) and error.errno is not None:
        _say(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error.strerror}")
    else:
        _say("error: " + " ".join(str(error).split()))
    return 2


def _show_warnings() -> None:
    """Warnings of ranksearch are one line each, every time; those of other packages stay as they are."""
    from ranksearch.errors import RanksearchWarning

    others = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
    ) -> None:
        if issubclass(category, RanksearchWarning):
            _say(f"warning: {message}")
        else:
            others(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    warnings.simplefilter("always", RanksearchWarning)


def _say(text: str) -> None:
    from ranksearch.printable import printable, without_password

    try:
        print(printable(without_password(text)), file=sys.stderr, flush=True)
    except OSError:  # stderr is closed: the exit code must do
        return
