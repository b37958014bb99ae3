"""Whose fault a failed evaluation was. A failure of the machine is tried again by itself. One of code, which may be mended, is tried again
when somebody asks. One of the configuration itself is a fact that stays."""

from __future__ import annotations

from typing import Literal

import torch

from ranksearch.errors import MissingDependency, RanksearchError, StoreError
from ranksearch.printable import error_text
from ranksearch.tasks import InvalidMetrics

FailureKind = Literal["configuration", "machine", "limit", "code"]
"""``configuration``: what it computes is not finite, cannot be solved for, or is refused by a deliberate error: the same request comes
to the same again. ``machine``: memory, disk, files, network, time, packages, a worker that was killed. ``limit``: it went
beyond the time or memory that the search gives an evaluation. ``code``: any other exception
of the model, the task or a library, metrics that the task declares and does not report, and the end of the process (``sys.exit``); a
bug in the task that is mended does not happen again."""

_MACHINE = (MemoryError, OSError, ImportError, EOFError, torch.OutOfMemoryError, MissingDependency, StoreError)
_CONFIGURATION = (RanksearchError, ArithmeticError, torch.linalg.LinAlgError)  # pyright: ignore[reportPrivateImportUsage]
# allocators raise RuntimeError on processors, and on accelerators below torch's own; libraries have timeouts of their own
_TOLD = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc", "alloc_failed",
    "no space left", "too many open files", "shared memory",
)  # fmt: skip
_NAMED = ("timeout", "timedout", "timelimit", "outofmemory")


def kind_of(error: BaseException) -> FailureKind:
    """Whose fault an exception was; that of the cause, where an error was raised from another one and that one was the machine's."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if _of_the_machine(cause):
            return "machine"
        seen.add(id(cause))
        cause = cause.__cause__
    return "configuration" if isinstance(error, _CONFIGURATION) and not isinstance(error, InvalidMetrics) else "code"


def _of_the_machine(error: BaseException) -> bool:
    text, name = error_text(error).lower(), type(error).__name__.lower()
    if isinstance(error, _MACHINE) or any(word in name for word in _NAMED):
        return True
    return not isinstance(error, RanksearchError) and any(sign in text for sign in _TOLD)


def may_be_retried(kind: str | None) -> bool:
    """Whether an evaluation that failed so may come to something else: all but what was the configuration's own. Stores from before
    there were kinds have None."""
    return kind != "configuration"
