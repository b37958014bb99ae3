"""Deep copies of models, which are all that is ever run or changed, and what a layer in the place of another takes over."""

from __future__ import annotations

import collections
import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ranksearch.errors import InvalidModel
from ranksearch.printable import shortened

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip
_MODULE = frozenset(vars(nn.Module()))  # what every module has


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself where ``model`` is a wrapper around it: what ``torch.compile`` gives, and torch's parallel modules. Where
    such wrappers are inside it, a copy without them that shares the parameters' memory. Paths have no ``_orig_mod.`` or
    ``module.`` then, and what is found fits the plain network.

    Raises:
        InvalidModel: it is no module."""
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"model={shortened(repr(model), 80)} is of type {type(model).__name__}: give a torch.nn.Module")
    while (inner := _wrapped(model)) is not None:
        model = inner
    wrappers = [module for module in model.modules() if _wrapped(module) is not None]
    if not wrappers:
        return model
    memo = _shared(model, {})
    for wrapper in reversed(wrappers):  # the innermost first
        memo[id(wrapper)] = _deep_copy(_wrapped(wrapper), memo)
    return _deep_copy(model, memo)


def _wrapped(module: nn.Module) -> nn.Module | None:
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    if type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
        return module.get_submodule("_orig_mod")
    return None


def copied(model: nn.Module, memo: dict[int, Any] | None = None, *, share: bool = False) -> nn.Module:
    """A deep copy. Tensors with a graph behind them, which torch does not copy, are detached; parameters that are views of one
    memory are so in the copy too.

    Args:
        memo: of `copy.deepcopy`: copies that are there already, by the id of what they stand for.
        share: the parameters of the copy are objects of its own in the memory of the original's.

    Raises:
        InvalidModel: something in it cannot be copied, or its weights were made in `torch.inference_mode`.
    """
    if any(p.is_inference() for p in model.parameters()) and not torch.is_inference_mode_enabled():
        raise InvalidModel("model: its weights were made in torch.inference_mode() and take no gradients; give copy.deepcopy(model)")
    memo = {} if memo is None else memo
    return without_fused_paths(_deep_copy(model, _shared(model, memo) if share else _tied(model, memo)))


def _shared(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    for parameter in model.parameters():
        plain = type(parameter) is nn.Parameter
        memo.setdefault(id(parameter), nn.Parameter(parameter.detach(), parameter.requires_grad) if plain else parameter)
    return memo


def _tied(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """Parameters that are views of one memory as views of a copy of it; `copy.deepcopy` would make them independent."""
    for group in overlapping(p for p in model.parameters() if id(p) not in memo):
        storage = group[0].untyped_storage().clone()
        for parameter in group:
            view = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
            view.set_(storage, parameter.storage_offset(), parameter.shape, parameter.stride())  # pyright: ignore[reportArgumentType, reportCallIssue]
            memo[id(parameter)] = nn.Parameter(view, parameter.requires_grad)
    return memo


def _deep_copy(model: Any, memo: dict[int, Any]) -> Any:
    before = dict(memo)
    try:
        with _Detached():
            return copy.deepcopy(model, memo)
    except Exception as error:  # whatever an object says when it is copied
        where = _uncopied(model, before)
        raise InvalidModel(
            f"model: it cannot be deep-copied, and copies are what is run{where}: {type(error).__name__}: {error}; take it out (locks, "
            "open files, generators, connections), make it when it is used, or give its class a __deepcopy__ that does"
        ) from error


class _Detached(TorchFunctionMode):
    """Tensors with a graph behind them, wherever they are kept (a loss of the last step), are copied without it; torch refuses them."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _uncopied(model: nn.Module, memo: Mapping[int, Any]) -> str:
    """The first attribute of a module that cannot be copied by itself, in words, down to what in it cannot."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name != "_modules" and not _copies(value, memo):
                inner, found = _innermost(value, memo)
                return f": {'.'.join(filter(None, (path, name)))}{inner} of {type(module).__name__} holds {_called(found)}"
    return ""


def _innermost(value: Any, memo: Mapping[int, Any], depth: int = 8) -> tuple[str, Any]:
    if isinstance(value, Mapping):
        parts = [(f"[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        parts = [(f"[{index}]", item) for index, item in enumerate(value)]
    elif isinstance(value, ModuleType):
        parts = []
    else:
        parts = [(f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()]
    for name, part in parts if depth else ():
        if not _copies(part, memo):
            inner, found = _innermost(part, memo, depth - 1)
            return name + inner, found
    return "", value


def _copies(value: Any, memo: Mapping[int, Any]) -> bool:
    try:
        with _Detached():
            copy.deepcopy(value, dict(memo))
    except Exception:  # whatever a class raises that does not want to be copied: what cannot be is named by the caller
        return False
    return True


def _called(value: Any) -> str:
    kind = type(value)
    return f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")


def take_over(layer: nn.Module, original: nn.Module, memo: dict[int, Any]) -> None:
    """What ``layer`` has to have of the layer that it replaces, besides weights: hooks, and plain attributes that it does
    not have itself (``stride``, ``in_features``, the user's own), copied as `copy.deepcopy` copies them."""
    with _Detached():
        for name in HOOKS:
            if name in vars(original):
                vars(layer)[name] = copy.deepcopy(vars(original)[name], memo)
        for name, value in vars(original).items():
            if name not in _MODULE and name not in vars(layer):
                vars(layer)[name] = copy.deepcopy(value, memo)


def without_fused_paths(model: nn.Module) -> nn.Module:
    """torch's encoder layers have a fused inference path that reads weights past the modules; where one of these was
    replaced, the flags that torch itself consults choose the plain path. Changes and returns ``model``."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            attention = module.self_attn
            plain = type(module.linear1) is type(module.linear2) is nn.Linear
            if not plain or not isinstance(attention, nn.MultiheadAttention):
                module.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(not getattr(layer, "activation_relu_or_gelu", 0) for layer in module.layers):
            module.use_nested_tensor = False
    return model


# -- memory ----------------------------------------------------------------------------------------------------------

Extent = tuple[Any, int, int]  # storage, first byte, one past the last


def extent(tensor: Tensor) -> Extent | None:
    """The memory that a tensor is in; None where that is not to be had (none stored, sparse, a subclass that wraps others)."""
    if tensor.layout is not torch.strided or not tensor.numel() or type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
        return None
    size = tensor.element_size()
    first = tensor.storage_offset() * size
    last = first + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) * size
    return (tensor.device, tensor.untyped_storage().data_ptr()), int(first), int(last + size)


def overlap(a: Extent | None, b: Extent | None) -> bool:
    """Whether two tensors have memory in common."""
    return a is not None and b is not None and a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def overlapping(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of two or more different tensors that have memory in common."""
    for group in _clusters(tensors):
        if len(group) > 1:
            yield group


def stored(tensors: Iterable[Tensor]) -> int:
    """How many numbers are stored in ``tensors``: those in common memory once."""
    tensors = list({id(t): t for t in tensors}.values())
    single = sum(t.numel() for t in tensors if extent(t) is None)
    for group in _clusters(tensors):
        ranges = [e for e in map(extent, group) if e is not None]
        whole = (max(e[2] for e in ranges) - min(e[1] for e in ranges)) // group[0].element_size()
        single += group[0].numel() if len(group) == 1 else min(whole, sum(t.numel() for t in group))
    return single


def _clusters(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    placed = [(e, t) for t in {id(t): t for t in tensors}.values() if (e := extent(t)) is not None]
    placed.sort(key=lambda pair: (str(pair[0][0]), *pair[0][1:]))
    clusters: list[list[Tensor]] = []
    storage, end = None, -math.inf
    for (where, first, last), tensor in placed:
        if where == storage and first < end:
            clusters[-1].append(tensor)
            end = max(end, last)
        else:
            clusters.append([tensor])
            storage, end = where, last
    return clusters
