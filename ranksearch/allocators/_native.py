"""HiGHS prints lines of its own to the process's standard output, whatever its options say; this module keeps them from it."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_lines(prefix: bytes) -> Iterator[None]:
    """Keep lines that begin with ``prefix`` from file descriptor 1 while the block runs. Everything else that is written
    meanwhile, by other threads too, is passed on when the block ends. Where standard output is closed nothing is done."""
    try:
        own = os.dup(1)
    except OSError:
        yield
        return
    try:
        with tempfile.TemporaryFile() as caught:
            _flush()
            os.dup2(caught.fileno(), 1)
            try:
                yield
            finally:
                try:
                    _flush()
                finally:
                    os.dup2(own, 1)
                caught.seek(0)
                text = b"".join(line for line in caught if not line.startswith(prefix))
                while text:
                    text = text[os.write(own, text) :]
    finally:
        os.close(own)


def _flush() -> None:
    """Write out what Python and C hold back of their standard outputs."""
    if sys.stdout is not None:
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
