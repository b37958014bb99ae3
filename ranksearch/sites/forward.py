"""One forward pass of any model on any input: how inputs are passed, which device and type they are brought to, what their
batch is, and random states that come back as they were."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ranksearch.errors import InvalidArgument, InvalidModel

BatchDim = int | Mapping[Any, int] | None
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested tuples (named ones and packed sequences too), lists, mappings and dataclasses, with a name for each."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_of(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensors_of(item, f"{name}.{index}" if name else str(index))
    elif is_dataclass(value) and not isinstance(value, type):
        for field in _fields(value):
            yield from tensors_of(getattr(value, field), f"{name}.{field}" if name else field)


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with every tensor in nested tuples (named ones too), lists, mappings, dataclasses and packed sequences changed, in
    containers of the same kinds (a `BatchEncoding` stays one). Containers of other kinds, and those in which nothing changes, are
    handed on as they are; the batch sizes of a packed sequence stay, since they belong on the CPU."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        changed = {key: map_tensors(change, item) for key, item in value.items()}
        return value if all(changed[key] is item for key, item in value.items()) else _like(value, changed)
    if isinstance(value, PackedSequence):
        items = [map_tensors(change, item) for item in (value.data, value.sorted_indices, value.unsorted_indices)]
        return PackedSequence(items[0], value.batch_sizes, items[1], items[2])
    if isinstance(value, (tuple, list)):
        items = [map_tensors(change, item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else _sequence_like(value, items)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {name: map_tensors(change, getattr(value, name)) for name in _fields(value)}
        if all(new is getattr(value, name) for name, new in changed.items()):
            return value
        other = copy(value)  # not made anew: what __post_init__ did is done, and it may be frozen
        for name, item in changed.items():
            object.__setattr__(other, name, item)
        return other
    return value


def _like(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the kind of another one, which may have attributes (`ModelOutput`, `BatchEncoding`); a dict where there is none."""
    if type(mapping) is dict:
        return items
    before = dict(mapping.items())
    try:
        other: Any = copy(mapping)
        for key, item in items.items():
            other[key] = item
    except TypeError:  # read-only, or not to be copied
        return items
    through = [key for key, item in items.items() if mapping[key] is item and before[key] is not item]
    for key in through:  # a copy that holds what the original holds, such as a view of a dict
        other[key] = before[key]
    return items if through else other


def _sequence_like(value: Any, items: list[Any]) -> Any:
    """A list or tuple of the kind of another one, which may have attributes and be made in its own way; a plain one where it cannot be."""
    if type(value) in (list, tuple):
        return type(value)(items)
    try:
        if isinstance(value, list):
            other = copy(value)
            other[:] = items
        else:
            other = type(value)(items)
    except TypeError:
        return tuple(items) if isinstance(value, tuple) else items
    same = len(other) == len(items) and all(new is item for new, item in zip(other, items, strict=True))
    return other if same else tuple(items) if isinstance(value, tuple) else items


def _fields(value: Any) -> list[str]:
    return [field.name for field in fields(value) if hasattr(value, field.name)]


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or buffer of ``model`` is; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def fitted(inputs: Any, model: nn.Module) -> Any:
    """A copy of ``inputs``, which a model may change in place, without a graph behind them, on the device of ``model``, and
    floating-point ones in its type: where all its floating-point parameters have one type of 16, 32 or 64 bits, and the input has another
    of these. Integers and masks keep theirs, and a tensor that is there twice is so in the copy, too.

    Raises:
        InvalidModel: the model is on the meta device.
    """
    device = device_of(model)
    if device.type == "meta":
        raise InvalidModel("model: it is on the meta device and holds no values; load the weights onto a real device")
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    wanted = next(iter(types)) if len(types) == 1 and types <= set(FLOATS) else None

    made: dict[int, tuple[Tensor, Tensor]] = {}  # by id, beside what it was made of, which so lives as long

    def fit(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            dtype = wanted if wanted is not None and tensor.dtype in FLOATS else tensor.dtype
            made[id(tensor)] = tensor, tensor.detach().to(device=device, dtype=dtype, copy=True)
        return made[id(tensor)][1]

    return map_tensors(fit, inputs)


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a model is called on inputs: a tuple or list holds positional arguments, a mapping keyword arguments; all else (a tensor,
    a named tuple, a packed sequence, a dataclass) is one argument. To pass a mapping or a list as one argument, put it in a tuple."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields") else ((inputs,), {})


def run(model: nn.Module, inputs: Any) -> Any:
    """Call ``model`` on inputs, see `arguments`, brought to its device and floating-point type first, see `fitted`."""
    args, kwargs = arguments(fitted(inputs, model))
    return model(*args, **kwargs)


def batch_size(example: Any, batch_dim: BatchDim = 0) -> int:
    """How many examples an input holds.

    A packed sequence has its number of sequences, wherever ``batch_dim`` is. A list of tensors of up to three dimensions within an
    input holds one example each (images of a detector, sequences of several lengths), unless other inputs say otherwise; what
    stands in a tuple has a batch of its own.

    Args:
        example: see `run`.
        batch_dim: the dimension along which examples are stacked. Where tensors disagree, those with two dimensions or more
            decide, then the majority; the order of inputs does not matter. A mapping names the inputs that have a batch (or gives
            their positions) and the dimension of each; None: it is one example, whatever its shape.

    Raises:
        InvalidArgument: no tensor, none with that dimension, an empty batch, or tensors that disagree.
    """
    if batch_dim is None:
        return 1
    found = dict(tensors_of(example))
    if not found or not any(t.ndim for t in found.values()):
        raise InvalidArgument(f"example={type(example).__name__} holds no tensor with a batch; {_CONTAINERS}")
    if isinstance(batch_dim, Mapping):
        return _named_batch(found, batch_dim)
    whole = list(_counts(arguments(example), batch_dim, lists=True))
    apart = list(_counts(arguments(example), batch_dim, lists=False))
    if not apart:
        shapes = ", ".join(str(tuple(t.shape)) for t in found.values())
        raise InvalidArgument(f"batch_dim={batch_dim}: the example has no such dimension, its shapes are {shapes}")
    for counts in (whole, apart):
        for group in ([size for size, wide in counts if wide], [size for size, _ in counts]):
            ((size, count), *others) = Counter(group).most_common() or [(0, 0)]
            # those with several dimensions decide where they agree (one-dimensional ones may be positions); else all of them do,
            # at last by majority
            if count and (not others or (counts is apart and len(group) == len(apart) and count > others[0][1])):
                return _positive(size)
    sizes = {name: t.shape[batch_dim] for name, t in found.items() if -t.ndim <= batch_dim < t.ndim}
    told = ", ".join(f"{name or 'the input'} has {size}" for name, size in sizes.items())
    first = next(iter(sizes), "input")
    raise InvalidArgument(
        f"example: its tensors disagree on the batch: along dimension {batch_dim} {told}; name those that have one, such as "
        f"batch_dim={{{first!r}: {batch_dim}}}, or give batch_dim=None for a single example"
    )


_CONTAINERS = (
    "give the input of one forward pass: tensors in tuples, named tuples, lists, mappings, dataclasses or packed sequences "
    "(batch_dim=None for an input of another kind, which is then one example)"
)


def _counts(value: Any, batch_dim: int, *, lists: bool) -> Iterator[tuple[int, bool]]:
    """What each part of an input has for a batch, and whether it has dimensions besides.

    Args:
        lists: whether a list of tensors holds one example each, see `batch_size`."""
    if isinstance(value, Tensor):
        if -value.ndim <= batch_dim < value.ndim:
            yield value.shape[batch_dim], value.ndim > 1
    elif isinstance(value, PackedSequence):
        yield int(value.batch_sizes[0]), True
    elif lists and isinstance(value, list) and value and all(isinstance(item, Tensor) and item.ndim <= 3 for item in value):
        yield len(value), True
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _counts(item, batch_dim, lists=lists)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _counts(item, batch_dim, lists=lists)
    elif is_dataclass(value) and not isinstance(value, type):
        for name in _fields(value):
            yield from _counts(getattr(value, name), batch_dim, lists=lists)


def _named_batch(found: Mapping[str, Tensor], named: Mapping[Any, int]) -> int:
    sizes = {}
    for name, dimension in named.items():
        tensor = found.get(str(name))
        if tensor is None or not -tensor.ndim <= dimension < tensor.ndim:
            had = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise InvalidArgument(f"batch_dim={dict(named)}: the example has {had} for {name!r}; its tensors are {', '.join(found)}")
        sizes[name] = tensor.shape[dimension]
    if len(set(sizes.values())) != 1:
        raise InvalidArgument(f"batch_dim={dict(named)}: the example's sizes along these are {sizes}; they must be one number")
    return _positive(next(iter(sizes.values())))


def _positive(size: int) -> int:
    if size < 1:
        raise InvalidArgument("example: its batch is empty; give at least one example")
    return size


@contextmanager
def preserved_randomness(*models: nn.Module) -> Iterator[None]:
    """The random states of torch (the CPU's, and those of the devices that ``models`` are on), numpy and Python come back
    as they were."""
    devices = {p.device for model in models for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([d for d in devices if d.type == kind], device_type=kind):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def uncompiled() -> Any:
    """A context in which what ``torch.compile`` wrapped runs as it was written, so that modules and operators can be watched."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and loading it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
