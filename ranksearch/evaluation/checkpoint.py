"""Checkpoints: nested states of tensors and plain values. Each is one safetensors file, whose metadata holds the JSON part; it is replaced
as a whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from ranksearch.errors import InvalidArgument
from ranksearch.home import replacing
from ranksearch.tensors import save


def write(path: Path, state: Mapping[str, Any], kind: str) -> None:
    """Replace a checkpoint. There is no half-written one at any time, not even after a crash.

    Args:
        state: nested dicts and lists of tensors, arrays, and values that JSON can hold.
        kind: what the state is of, and its version; `read` asks for it.

    Raises:
        OSError, SafetensorError: the file cannot be written.
        InvalidArgument: a value that cannot be saved.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(state, "state", tensors))
    with replacing(path, durable=True) as unfinished:
        save(tensors, unfinished, {"format": kind, "state": text})


def read(path: Path, kind: str) -> dict[str, Any]:
    """The state that `write` was given, tensors on the CPU.

    Raises:
        OSError, SafetensorError, ValueError, KeyError: it cannot be read, or is of another kind."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    if metadata.get("format") != kind:
        raise ValueError(f"its format is {metadata.get('format')!r}, not {kind!r}")
    return _decode(json.loads(metadata["state"]), tensors)


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
        while path in tensors:  # keys may have dots in them
            path += "'"
        tensors[path] = tensor.contiguous().clone()  # tied weights share memory, which the format refuses
        return {"__tensor__" if isinstance(value, Tensor) else "__array__": path}
    if isinstance(value, Mapping):
        return {"__items__": [[key, _encode(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise InvalidArgument(f"{path}={value!r}: a checkpoint holds tensors, arrays, numbers, strings, lists and dicts")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        if "__array__" in value:
            return tensors[value["__array__"]].numpy()
        return {key: _decode(item, tensors) for key, item in value["__items__"]}
    return value
