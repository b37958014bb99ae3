"""The content of tensors as bytes, which fingerprints, cache keys and checksums are made of; tensors in files; and piece by piece."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

CACHED = 1 << 17  # values that a processor works on at a time, of which copies in float64 and the like stay in its caches


class Digest(Protocol):
    """A running hash, such as one of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None: ...


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one first dimension, cut along it together into pieces of about `CACHED` values. What needs several temporary tensors of
    the same size takes a multiple of the time where these leave the caches of a processor; other devices get everything at once."""
    first = tensors[0]
    at_once = CACHED * len(first) // max(first.numel(), 1) if first.device.type == "cpu" else len(first)
    yield from zip(*(tensor.split(max(at_once, 1)) for tensor in tensors), strict=True)


def content(tensor: Tensor) -> memoryview:
    """The elements in row-major order as bytes. A contiguous tensor on the CPU is not copied."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy().data


def absorb(digest: Digest, values: Iterable[tuple[str, object]]) -> None:
    """Update a running hash by values in the order given: of a tensor by its name, shape, dtype and content; of what else a state may
    hold (extra state, quantized and sparse tensors, packed parameters) by all that is in it.

    Strides and device do not count. Stores and caches are found by such hashes: a change here loses all of them.

    Args:
        values: pairs of a name ("" where names shall not count) and a value.
    """
    for name, value in values:
        if isinstance(value, Tensor) and type(value) in (Tensor, Parameter) and value.layout is torch.strided and not value.is_quantized:
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(content(value))
        else:
            digest.update(f"{name}{type(value).__name__}".encode())
            if len(name) < DEEP:
                absorb(digest, ((f"{name}.{key}", part) for key, part in _parts(digest, value)))


DEEP = 2000  # characters of a name: a structure that refers to itself ends here


def _parts(digest: Digest, value: object) -> Iterable[tuple[str, object]]:
    """What a value other than a plain tensor consists of, by name; what has no parts is hashed at once."""
    if isinstance(value, Tensor):
        return _tensor_parts(value)
    if isinstance(value, Mapping):
        return sorted(((repr(key), item) for key, item in value.items()), key=lambda pair: pair[0])
    if isinstance(value, (list, tuple)):
        return [(str(index), item) for index, item in enumerate(value)]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return [("array", torch.from_numpy(np.ascontiguousarray(value)))] if value.dtype.itemsize < 16 else [("array", value.tolist())]
    if isinstance(value, (set, frozenset)):
        digest.update(repr(sorted(map(repr, value))).encode())
    elif isinstance(value, io.BytesIO):
        digest.update(value.getvalue())
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, bytearray, torch.dtype, Enum)):
        digest.update(repr(value).encode())
    elif isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):  # packed parameters
        return [("state", value.__getstate__())]
    elif hasattr(value, "__dict__") and not callable(value):
        return _parts(digest, vars(value))
    return []


def _tensor_parts(tensor: Tensor) -> Iterable[tuple[str, object]]:
    if tensor.is_quantized:
        per_tensor = tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        if per_tensor:
            return [("integers", tensor.int_repr()), ("scale", tensor.q_scale()), ("zero", tensor.q_zero_point())]
        channels = tensor.q_per_channel_axis(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        return [("integers", tensor.int_repr()), ("channels", channels)]
    if tensor.is_nested:
        return [(str(index), part) for index, part in enumerate(tensor.unbind())]
    if hasattr(tensor, "__tensor_flatten__"):  # a wrapper around other tensors
        names, context = tensor.__tensor_flatten__()  # pyright: ignore[reportAttributeAccessIssue]
        return [("context", repr(context)), *((name, getattr(tensor, name)) for name in names)]
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.detach().coalesce()
        return [("shape", tuple(tensor.shape)), ("indices", tensor.indices()), ("values", tensor.values())]
    if tensor.layout is not torch.strided:
        return [("dense", tensor.detach().to_dense())]
    return [("plain", tensor.detach().as_subclass(Tensor))]


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
