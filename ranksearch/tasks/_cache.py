"""Files that can be made again: where they go, and how they are written, so that nobody sees a half-written one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from ranksearch.home import home, replacing


def cache_folder() -> Path:
    """Where caches go, in `ranksearch.home.home`."""
    return home() / "cache"


def write_cache(path: Path, write: Callable[[Path], object]) -> bool:
    """Let ``write`` fill a temporary file beside ``path``, then move it there; returns whether that worked. If it does not (no
    space, no permission), a warning says so, and the work is done again next time."""
    try:
        with replacing(path) as temporary:
            write(temporary)
    except OSError as error:
        remedy = "it will be made again next time; set RANKSEARCH_HOME to a writable folder with free space"
        warnings.warn(f"cannot cache {path}: {error}; {remedy}", stacklevel=3)
        return False
    return True
