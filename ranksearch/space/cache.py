"""What was factorized before, on disk: states, errors and factors by the content of what they were made from, so that profiling,
searching and building factorize a layer once. Files are read back bit for bit, or not at all."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

import ranksearch.decompositions
from ranksearch.decompositions import AnyDecomposition, Decomposition, Kronecker, Moments
from ranksearch.home import replacing
from ranksearch.sites import Site
from ranksearch.tensors import absorb

LIMIT, FREE = 1 << 30, 0.2  # bytes of all files: at least so many, or the share of what is free on the disk if that is more
MAPPED = 32 << 20  # bytes of a file from which on its tensors are read, memory-mapped, when they are used
RECOUNT = 16  # files are counted again when so much of the limit was written by this process
KEEP = 0.8  # of the limit, when the oldest files are removed to make room
PACKAGES = ("ranksearch.decompositions.", "ranksearch.sites.")  # values of classes defined here are kept, no others


def data_key(weight: Tensor, moments: Moments | None) -> str:
    """Hash of a weight, the kind of device that it is on, and its metric, which all types of a layer share."""
    digest = hashlib.sha256(weight.device.type.encode())
    for tensor in (weight, *(() if moments is None else (moments.input, moments.output))):
        if tensor is None:
            digest.update(b"none")
        elif isinstance(tensor, Kronecker):
            absorb(digest, [("channel", tensor.channel), ("tap", tensor.tap)])
        else:
            absorb(digest, [("", tensor)])
    return digest.hexdigest()


def content_key(decomposition: AnyDecomposition, site: Site, data: str, *, threads: int) -> str | None:
    """Hash of everything that factors and errors depend on; None for types that are not the package's own, whose code
    nobody vouches for.

    That is the data (`data_key`), the geometry of the site (not its name), the type with its options, the code of all types, the
    version of torch, and what the last bits of products hang on: instruction set and threads."""
    if (type_of := _described(decomposition)) is None:
        return None
    head = None if site.head is None else replace(site.head, name="", aliases=())
    place = replace(site, name="", aliases=(), reads=(), scale=1.0, head=head)
    machine = (torch.__version__, torch.backends.cpu.get_cpu_capability(), threads)
    return hashlib.sha256(repr((_code(), *type_of, place, machine, data)).encode()).hexdigest()[:32]


def _described(decomposition: AnyDecomposition) -> tuple[str, list[tuple[str, str]]] | None:
    """The class of a type and its options, which may be types themselves; None where one of them is not the package's own."""
    if not type(decomposition).__module__.startswith(PACKAGES[0]):
        return None
    options = []
    for name, value in vars(decomposition).items():
        inner = _described(value) if isinstance(value, Decomposition) else value
        if inner is None and value is not None:
            return None
        options.append((name, repr(inner)))
    return type(decomposition).__qualname__, sorted(options)


@cache
def _code() -> str:
    """Hash of the source of all decompositions: what other code made is not taken for what this one makes."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder) for folder in ranksearch.decompositions.__path__):
        for file in sorted(path.glob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


class ContentCache:
    """A folder of values by key: dataclasses, tuples, arrays, tensors, numbers and texts. A file that is damaged, was written by
    other software or belongs to another key counts as absent and is written again.

    Args:
        folder: made when something is written; removing it, or any of its files, is safe at any time.
        limit: bytes of all files together; those used least recently are removed to make room. None: 1 GiB, or a fifth of what is
            free on the disk, whichever is more.
    """

    def __init__(self, folder: Path, *, limit: int | None = None) -> None:
        self.folder = folder
        self._limit = limit
        self._total: int | None = None  # bytes of all files when they were last counted, and of those written since
        self._written = 0  # since

    @cached_property
    def limit(self) -> int:
        """Bytes of all files together."""
        if self._limit is not None:
            return self._limit
        place = next((path for path in (self.folder, *self.folder.absolute().parents) if path.exists()), Path())
        return max(LIMIT, int(FREE * shutil.disk_usage(place).free))

    def load(self, key: str) -> Any | None:
        """The value of a key, tensors on the CPU; None where there is none that can be trusted."""
        path = self._path(key)
        try:
            data = _content(path)
            header, body = _parts(data)
            header = header["__metadata__"]
            if header["key"] != key or header["sum"] != _sum(header["value"], body):
                return None
            value = _thaw(json.loads(header["value"]), load(data) if isinstance(data, bytes) else _mapped(path))
            os.utime(path)  # used just now
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError, SafetensorError):
            return None
        return value

    def save(self, key: str, value: Any) -> bool:
        """Keep a value; returns whether it was kept. What cannot be written is a warning: it is made again next time."""
        tensors: dict[str, Tensor] = {}
        try:
            tree = json.dumps(_freeze(value, tensors))
        except TypeError:  # a state of some other kind
            return False
        header, body = _parts(save(tensors))
        header["__metadata__"] = {"key": key, "value": tree, "sum": _sum(tree, body)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        data = len(text).to_bytes(8, "little") + text + body
        if len(data) > self.limit:
            return False
        try:
            self._make_room(len(data))
            with replacing(self._path(key)) as unfinished:
                unfinished.write_bytes(data)
        except OSError as error:
            warnings.warn(f"cannot cache in {self.folder}: {error}; set RANKSEARCH_HOME to a writable folder with free space", stacklevel=2)
            return False
        return True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_room(self, size: int) -> None:
        """Remove files until ``size`` bytes more are within the limit. Files are counted when they must be, and now and then, for other
        processes write too."""
        self._written += size
        if self._total is None or self._total + self._written > self.limit or self._written > self.limit // RECOUNT:
            self._total, self._written = self._counted(size), size

    def _counted(self, size: int) -> int:
        found = []
        for path in self.folder.glob("*.safetensors"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # removed by another process
                continue
            found.append((stat.st_mtime_ns, path, stat.st_size))
        total = sum(entry[2] for entry in found)
        if total + size <= self.limit:
            return total
        for _, path, length in sorted(found):
            if total + size <= KEEP * self.limit:
                break
            path.unlink(missing_ok=True)
            total -= length
        return total


def _content(path: Path) -> bytes | memoryview:
    """What a file holds; of a large one a view, of which nothing is in memory before it is looked at."""
    return path.read_bytes() if path.stat().st_size < MAPPED else np.memmap(path, np.uint8, "r").data


def _mapped(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def _parts(data: bytes | memoryview) -> tuple[Any, bytes | memoryview]:
    """Header and content of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(bytes(data[8 : 8 + length])), data[8 + length :]


def _sum(tree: str, body: bytes | memoryview) -> str:
    digest = hashlib.sha256(tree.encode())
    digest.update(body)
    return digest.hexdigest()


def _freeze(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; its tensors, named by numbers, go into ``tensors``, in the order of their strides.

    Raises:
        TypeError: a kind of value that is not kept."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        order = sorted(range(value.ndim), key=lambda k: -value.stride(k))
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().permute(order).contiguous().clone()
        return {"tensor": name, "order": order}
    if isinstance(value, np.ndarray):
        name = str(len(tensors))
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value).copy())
        return {"array": name}
    if isinstance(value, tuple):
        return {"tuple": [_freeze(item, tensors) for item in value]}
    kind = type(value)
    if is_dataclass(value) and kind.__module__.startswith(PACKAGES):
        parts = {field.name: _freeze(getattr(value, field.name), tensors) for field in fields(value)}
        return {"class": [kind.__module__, kind.__qualname__], "fields": parts}
    raise TypeError(f"{kind.__name__} is not kept")


def _thaw(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of `_freeze`: tensors have the strides that they had, on which the last bits of products hang."""
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]].permute(tuple(int(k) for k in np.argsort(tree["order"])))
    if "array" in tree:
        return tensors[tree["array"]].numpy()
    if "tuple" in tree:
        return tuple(_thaw(item, tensors) for item in tree["tuple"])
    module, name = tree["class"]
    if not module.startswith(PACKAGES):
        raise ValueError(f"{module} is none of {', '.join(PACKAGES)}")
    kind = getattr(importlib.import_module(module), name)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        raise ValueError(f"{name} is no dataclass")
    return kind(**{key: _thaw(item, tensors) for key, item in tree["fields"].items()})
