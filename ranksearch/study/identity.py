"""What tells one network from another, beside its weights: how its modules are configured, and what they compute. Evaluations are facts
about one network, so both are compared whenever a study goes on.

The structure is hashed: no rounding of a machine is in it. Outputs differ in their last bits from one processor, thread count or memory
format to the next, so a summary of them is stored and compared within a tolerance (a hash of rounded numbers would change where a
number is close to an edge)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidModel
from ranksearch.sites import copied, tensors_of
from ranksearch.sites.observe import forward
from ranksearch.tensors import absorb

VALUES = 256  # of every output tensor
OFF = 0.05  # of these may differ: where a network chooses (an expert, a level), rounding may choose otherwise for a few examples
TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3}  # relative to the root mean square; of shorter types 5e-2
ITEMS, DEPTH = 4096, 6  # of an attribute: what is beyond is left to the outputs
_PLACES = re.compile(r"(^|_)(path|dir|directory|folder|file|url|version|hash|commit|device|cache|name|logger|training)s?($|_)")
_MODULE = frozenset(vars(nn.Module()))

Values = list[float | None]


@dataclass(frozen=True)
class Network:
    """A network as it is at one moment.

    Attributes:
        weights: content hash of its state.
        modules: by path, a hash of its class and of what its attributes say.
        varies: it gives other outputs at every call.
    """

    weights: str
    modules: Mapping[str, str]
    varies: bool

    @property
    def structure(self) -> str:
        """One hash for all modules."""
        return hashlib.sha256(json.dumps(self.modules, sort_keys=True).encode()).hexdigest()[:16]

    def changes(self, other: Mapping[str, Any]) -> str | None:
        """In words, what is other in ``other``, which has attributes of a `Network` by name; None where nothing is."""
        theirs = other.get("modules", self.modules)
        paths = [path for path in {**self.modules, **theirs} if self.modules.get(path) != theirs.get(path)]
        if paths:
            shown = ", ".join(repr(path) if path else "the network itself" for path in paths[:4])
            return f"class or settings of {shown}" + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
        return "weights or buffers" if other.get("weights", self.weights) != self.weights else None


def network(model: nn.Module, example: Any) -> Network:
    """What a network is; copies of it are run on ``example``, twice.

    What a forward pass changes (counters, caches, buffers of observers) and what is named like a place, a version or a device does not
    count.

    Raises:
        InvalidModel: it cannot be copied, or its forward pass fails.
    """
    copy = copied(model, share=True)
    buffers = {name: buffer.clone() for name, buffer in copy.named_buffers()}
    passes = []
    for _ in range(2):  # in the first one modules may set themselves up
        output = forward(model, copy, example)
        passes.append((_described(copy), summary(output)))
    (before, first), (after, second) = passes
    modules = {}
    for path, entries in after.items():
        kept = {name: value for name, value in entries.items() if before.get(path, {}).get(name) == value}
        modules[path] = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]
    moved = {name for name, buffer in copy.named_buffers() if name not in buffers or not _same(buffer, buffers[name])}
    digest = hashlib.sha256()
    absorb(digest, sorted((name, value) for name, value in model.state_dict().items() if name not in moved))
    digest.update(json.dumps([name for name, parameter in model.named_parameters() if not parameter.requires_grad]).encode())
    return Network(digest.hexdigest()[:16], modules, not alike(first, second))


def fingerprint(measured: str, network: Network) -> str:
    """Content hash of what evaluations are facts about.

    Args:
        measured: what says how networks are measured.
    """
    return hashlib.sha256(f"{measured}{network.weights} {network.structure}".encode()).hexdigest()[:16]


def former_fingerprint(measured: str, model: nn.Module) -> str:
    """`fingerprint` as earlier versions made it: of the weights alone."""
    digest = hashlib.sha256(measured.encode())
    absorb(digest, sorted(model.state_dict().items()))
    return digest.hexdigest()[:16]


def _same(one: Tensor, two: Tensor) -> bool:
    one_hash, two_hash = hashlib.sha256(), hashlib.sha256()
    absorb(one_hash, [("", one)])
    absorb(two_hash, [("", two)])
    return one_hash.digest() == two_hash.digest()


def outputs(model: nn.Module, batches: Iterable[Any]) -> list[dict[str, Any]]:
    """A summary of the outputs of a copy of ``model`` on the first of ``batches``, as JSON data.

    Raises:
        InvalidModel: see `network`.
    """
    for batch in islice(batches, 1):
        return summary(forward(model, copied(model, share=True), batch))
    return []


def summary(output: Any) -> list[dict[str, Any]]:
    """Of every tensor in ``output`` its name, shape and type, and of floating-point ones up to `VALUES` numbers, spread evenly."""
    return [
        {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch."), "values": _values(tensor)}
        for name, tensor in tensors_of(output)
    ]


def _values(tensor: Tensor) -> Values:
    if tensor.layout is not torch.strided or not tensor.numel() or tensor.is_nested or tensor.is_quantized:
        return []
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point():
        return []  # rounding may move an index by any amount
    flat, size = tensor.detach().reshape(-1), tensor.numel()
    # multiples of the golden ratio: no period of a layout fits them
    picks = range(size) if size <= VALUES else [(k * 2654435769 % 2**32) * size >> 32 for k in range(VALUES)]
    found = flat[torch.tensor(list(picks), device=flat.device)].to(device="cpu", dtype=torch.float64).tolist()
    return [float(f"{value:.8g}") if math.isfinite(value) else None for value in found]


def alike(one: Sequence[Mapping[str, Any]], two: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two summaries are of outputs that differ by rounding alone."""
    return len(one) == len(two) and all(_alike(a, b) for a, b in zip(one, two, strict=True))


def _alike(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    if any(one[key] != two[key] for key in ("shape", "dtype")) or len(one["values"]) != len(two["values"]):
        return False
    pairs: list[tuple[float | None, float | None]] = list(zip(one["values"], two["values"], strict=True))
    finite = [value for pair in pairs for value in pair if value is not None]
    size = math.sqrt(sum(value * value for value in finite) / len(finite)) if finite else 0.0
    allowed = TOLERANCE.get(getattr(torch, one["dtype"], None), 5e-2) * size  # pyright: ignore[reportArgumentType, reportCallIssue]
    off = sum(a != b if a is None or b is None else abs(a - b) > allowed for a, b in pairs)
    return off <= OFF * len(pairs)


# -- how modules are configured ----------------------------------------------------------------------------------------


def _described(model: nn.Module) -> dict[str, dict[str, str]]:
    """By path, what the attributes of every module say, and its class."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        entries = {"class": type(module).__name__}
        for name, value in vars(module).items():
            if name not in _MODULE and not name.startswith("_") and not _PLACES.search(name):
                entries |= dict(islice(_entries(name, value, DEPTH), ITEMS))
        found[path] = entries
    return found


def _entries(name: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    """What a value says, by name: plain data, functions by name, containers and configurations item by item. Tensors are left to
    the outputs, and so is what is of no known kind."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Enum):
        yield name, f"{type(value).__name__}.{value.name}"
    elif isinstance(value, (float, complex)):
        yield name, _number(value)
    elif value is None or isinstance(value, (bool, int, str, bytes, torch.dtype)):
        yield name, repr(value)
    elif isinstance(value, type):
        yield name, value.__name__
    elif isinstance(value, (list, tuple)):
        yield name, str(len(value))
        items: Iterable[tuple[Any, Any]] = enumerate(value)
        yield from _items(name, items, depth)
    elif isinstance(value, (set, frozenset)) and all(isinstance(item, (str, int)) for item in value):
        yield name, repr(sorted(map(repr, value)))
    elif isinstance(value, Mapping):
        yield from _items(name, value.items(), depth)
    elif isinstance(value, partial):
        yield from _items(name, [("func", value.func), ("args", value.args), *value.keywords.items()], depth)
    elif is_dataclass(value) or isinstance(value, (SimpleNamespace, Namespace)) or hasattr(value, "to_dict"):
        yield name, type(value).__name__
        yield from _items(name, vars(value).items() if hasattr(value, "__dict__") else (), depth)
    elif callable(value) and not isinstance(value, nn.Module):
        yield name, getattr(value, "__name__", type(value).__name__)


def _items(name: str, items: Iterable[tuple[Any, Any]], depth: int) -> Iterator[tuple[str, str]]:
    for key, item in items if depth else ():
        text = str(key)
        if not text.startswith("_") and not _PLACES.search(text):
            yield from _entries(f"{name}.{text}", item, depth - 1)


def _number(value: complex) -> str:
    """To six digits: what is computed (``width ** -0.5``) may differ in its last bit. Times pi, so that no number that people write or
    that is a fraction of two is at an edge."""
    return f"{value * math.pi:.6g}"


def unchanged(then: Network, now: Network, before: Sequence[Mapping[str, Any]] | None, after: Sequence[Mapping[str, Any]] | None) -> None:
    """Refuse a network that is no longer what a study began with.

    Raises:
        InvalidModel: it is another one; the message says what changed.
    """
    changed = now.changes(vars(then))
    if changed is None and before is not None and after is not None and not alike(before, after):
        changed = "its outputs"
    if changed is not None:
        raise InvalidModel(
            f"model: it is no longer the network that this study began with: {changed} changed in place. Evaluations of two networks are "
            "never mixed: put the old state back, or make a new Study of the changed model, with a name or store of its own"
        )
