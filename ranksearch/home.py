"""Where ranksearch keeps what it makes."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Folder of stores, caches and trained weights: RANKSEARCH_HOME, or ``.ranksearch`` in the working directory."""
    return Path(os.environ.get("RANKSEARCH_HOME") or ".ranksearch")
