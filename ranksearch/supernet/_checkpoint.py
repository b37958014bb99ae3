"""The checkpoint of a supernet that is trained in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation import checkpoint

FORMAT = "ranksearch-supernet-1"
NAME = "supernet.safetensors"


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint of a folder; see `checkpoint.write`.

    Raises:
        InvalidArgument: the folder cannot be written to, or a value that cannot be saved.
    """
    try:
        checkpoint.write(folder / NAME, state, FORMAT)
    except (OSError, SafetensorError) as error:
        raise InvalidArgument(f"folder={str(folder)!r}: no checkpoint can be written: {error}; give a writable one with space") from error


def read(folder: Path) -> dict[str, Any] | None:
    """The state that `write` was given, tensors on the CPU; None where there is no checkpoint.

    Raises:
        InvalidArgument: a file that is no checkpoint of this version."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return checkpoint.read(path, FORMAT)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InvalidArgument(f"checkpoint {path} cannot be read: {error}; remove it to start anew, or give another folder") from error
