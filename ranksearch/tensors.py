"""The content of tensors as bytes, which fingerprints, cache keys and checksums are made of; and tensors in files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


class Digest(Protocol):
    """A running hash, such as one of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None: ...


def content(tensor: Tensor) -> memoryview:
    """The elements in row-major order as bytes. A contiguous tensor on the CPU is not copied."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def absorb(digest: Digest, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Update a running hash by tensors in the order given: by the name, shape, dtype and content of each.

    Strides and device do not count. Stores and caches are found by such hashes: a change here loses all of them.

    Args:
        tensors: pairs of a name ("" where names shall not count) and a tensor.
    """
    for name, tensor in tensors:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(content(tensor))


def save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors, no two of which share memory, to a safetensors file. See `ranksearch.home.replacing` for writing it
    as a whole or not at all.

    Raises:
        OSError: the disk is full or not writable; safetensors itself raises an error of its own kind there.
        SafetensorError: tensors that the format cannot hold.
    """
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    except SafetensorError as error:
        if "I/O" in str(error) or "os error" in str(error).lower():  # the library hides the errno
            raise OSError(f"{path}: {error}") from error
        raise
