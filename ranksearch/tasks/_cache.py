"""Files that can be made again: where they go, and writing them so that a half-written one is never seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from ranksearch.home import home, replacing


def cache_folder() -> Path:
    """Where caches go, in `ranksearch.home.home`."""
    return home() / "cache"


def write_cache(path: Path, write: Callable[[Path], object]) -> bool:
    """Let ``write`` fill a temporary file beside ``path``, then move it there. A cache that cannot be written (no
    space, no permission) is a warning: the work is done again next time. Returns whether it was written."""
    try:
        with replacing(path) as temporary:
            write(temporary)
    except OSError as error:
        remedy = "it will be made again next time; set RANKSEARCH_HOME to a writable folder with free space"
        warnings.warn(f"cannot cache {path}: {error}; {remedy}", stacklevel=3)
        return False
    return True
