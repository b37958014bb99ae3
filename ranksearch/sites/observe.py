"""One forward pass of a copy of the model: how its layers are called, what it costs, what comes out; and whether it is the
copy that runs, or the model that it was copied from."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ranksearch.errors import InvalidModel
from ranksearch.sites.copies import copied
from ranksearch.sites.forward import preserved_randomness, run, tensors_of, uncompiled
from ranksearch.sites.layers import Shapes, module_kind
from ranksearch.sites.macs import MacCounter
from ranksearch.sites.modes import evaluating, preserved_modes

_READ = ("dtype", "device", "shape", "ndim", "requires_grad", "layout", "is_cuda", "is_meta", "is_sparse", "is_quantized", "is_mkldnn")
_ASKED = ("size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "is_complex", "__len__")
_MADE = ("element_size", "get_device", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "type_as")
METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in (*_READ, "itemsize", "nbytes", "is_leaf")),
        *(getattr(Tensor, name) for name in (*_ASKED, *_MADE)),
        *(torch.is_floating_point, torch.is_complex, torch.numel, torch.is_tensor, torch.zeros_like, torch.ones_like, torch.empty_like),
    ]
)
"""Functions that read what a tensor is, not what is in it."""


@dataclass(frozen=True)
class Observed:
    """What a forward pass showed."""

    calls: Mapping[str, Sequence[Shapes]]  # by path of a layer that could be a site
    altered: Mapping[str, str]  # layers whose hooks change what goes in or comes out
    output: Any
    macs: int
    uncounted: tuple[str, ...]
    used: frozenset[str] = frozenset()  # names of parameters that something was computed with, by the layer or past it


def observe(model: nn.Module, example: Any) -> Observed:
    """Run a copy of ``model``, in evaluation mode, on ``example``.

    Raises:
        InvalidModel: the model cannot be copied, the forward pass fails, or it runs layers of ``model`` itself.
    """
    copy = copied(model, share=True)
    calls: dict[str, list[Shapes]] = {}
    altered: dict[str, str] = {}
    counter = MacCounter()
    uses = _Uses(copy)
    with _recording(copy, calls, altered), counter, uses:
        output = forward(model, copy, example)
    return Observed(calls, altered, output, counter.total, tuple(sorted(counter.uncounted)), frozenset(uses.seen))


def forward(model: nn.Module, copy: nn.Module, example: Any) -> Any:
    """The output of ``copy``, a copy of ``model`` that shares its parameters' memory; ``model``, its parameters and the
    random states come back as they were, whatever happens.

    Raises:
        InvalidModel: the forward pass fails, or it runs ``model`` itself.
    """
    strangers = _Uses(model)
    undo = _Undo([*model.parameters(), *model.buffers()])
    with preserved_modes(model), preserved_randomness(model):
        for module in model.modules():  # nothing of it should run; if something does, it should do the least
            module.training = False
        torch.manual_seed(0)
        try:
            with evaluating(copy), uncompiled(), undo, strangers:
                output = run(copy, example)
        except Exception as error:
            raise InvalidModel(f"example: the model's forward pass fails on it: {type(error).__name__}: {error}") from error
        finally:
            undo.restore()
    if strangers.seen:
        raise InvalidModel(_not_a_copy(model, sorted(strangers.seen)))
    return output


def _not_a_copy(model: nn.Module, seen: Sequence[str]) -> str:
    functions = [
        ".".join(filter(None, (path, name)))
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) or hasattr(value, "__wrapped__") or type(value).__name__ == "partial"
    ]
    cause = f"; functions set on it: {', '.join(functions)}" if functions else ""
    listed = ", ".join(seen[:4]) + (f" and {len(seen) - 4} more" if len(seen) > 4 else "")
    return (
        f"model: a deep copy of it runs the original's tensors ({listed}), so that every smaller network would be measured as the "
        f"dense one{cause}. A function that is set on a module (`model.forward = ...`, a lambda over self, torch.compile of a bound "
        "method) stays bound to it: write it as a method of a class, or wrap the model in a module of yours; compile what comes out"
    )


class _Uses(TorchFunctionMode):
    """Notices parameters and buffers of a model in what is computed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in named if type(tensor) in (Tensor, nn.Parameter)}
        self.seen: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func not in METADATA:
            for _, tensor in tensors_of((args, kwargs or {})):
                if id(tensor) in self._names:
                    self.seen.add(self._names[id(tensor)])
        return func(*args, **(kwargs or {}))


class _Undo(TorchDispatchMode):
    """Keeps what is in the memory of ``tensors`` when it is written to, and puts it back."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch asks; a mode that says yes, the default, imports the compiler at the first operator: a second for nothing."""
        return False

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self._watched = {_memory(tensor): tensor for tensor in tensors}
        self._watched.pop(None, None)
        self._kept: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | dict(kwargs)
            for argument in schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    for _, tensor in tensors_of(given.get(argument.name)):
                        self._keep(_memory(tensor))
        return func(*args, **kwargs)

    def _keep(self, memory: Any) -> None:
        if memory in self._watched and memory not in self._kept:
            self._kept[memory] = _bytes(self._watched[memory]).clone()

    def restore(self) -> None:
        with torch.no_grad():
            for memory, value in self._kept.items():
                _bytes(self._watched[memory]).copy_(value)


def _memory(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided or type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or not tensor.numel():
        return None
    return tensor.device, tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> Tensor:
    """The whole memory that a tensor is in."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())  # pyright: ignore[reportArgumentType, reportCallIssue]


@contextmanager
def _recording(model: nn.Module, calls: dict[str, list[Shapes]], altered: dict[str, str]) -> Iterator[None]:
    """Shapes of every call of a layer that could be a site, and whose hooks change its inputs or outputs: ours are the first
    and the last to be called."""
    handles = []
    for path, module in model.named_modules():
        if module_kind(module) is None:
            continue
        watch = _Watch(path, calls, altered)
        if module._forward_hooks or module._forward_pre_hooks:
            handles.append(module.register_forward_pre_hook(watch.given, prepend=True, with_kwargs=True))
            handles.append(module.register_forward_pre_hook(watch.taken, with_kwargs=True))
            handles.append(module.register_forward_hook(watch.made, prepend=True))
        handles.append(module.register_forward_hook(watch.returned, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """What is seen of one layer."""

    def __init__(self, path: str, calls: dict[str, list[Shapes]], altered: dict[str, str]) -> None:
        self._path, self._calls, self._altered = path, calls, altered
        self._inputs: Any = None
        self._output: Any = None

    def given(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self._inputs = _state((args, kwargs))

    def taken(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        if _state((args, kwargs)) != self._inputs:
            self._altered[self._path] = "a forward pre-hook on it changes its input"

    def made(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._output = _state(output)

    def returned(self, _module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._output is not None and _state(output) != self._output:
            self._altered.setdefault(self._path, "a forward hook on it changes its output")
        value = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(value, Tensor) and isinstance(output, Tensor):
            self._calls.setdefault(self._path, []).append((tuple(value.shape), tuple(output.shape)))


def _state(value: Any) -> list[tuple[int, int]]:
    """Which tensors, and how often each was written to."""
    return [(id(tensor), tensor._version) for _, tensor in tensors_of(value)]
