"""Networks as programs that run without ranksearch: ``torch.export`` and ONNX. Batch, sequence and image size are free wherever the network
itself takes other ones, which is tried out; every program is run and compared at several sizes."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ranksearch import logs
from ranksearch.errors import InvalidModel
from ranksearch.sites import arguments, map_tensors, run, tensors_of

PROGRAM, ONNX = "program.pt2", "model.onnx"
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}  # of outputs, relative to their root mean square; of shorter types 5e-2
OFF = 1e-3  # of the integers in an output may differ, where rounding decides
MOST = 2**31  # stands for sizes without a bound
Place = tuple[str, int]  # an input by its name, and a dimension of it


@dataclass(frozen=True)
class Exported:
    """A program, and what is known of it."""

    program: ExportedProgram
    names: tuple[str, ...]  # of its tensor inputs, in the order of those of the example
    shapes: tuple[tuple[int | str, ...], ...]  # of these; text for what is free, the same text for what must agree
    probes: tuple[Any, ...]  # inputs of several sizes, at which it computes what the network does


def write(model: nn.Module, example: Any, folder: Path, *, torch_export: bool, onnx: bool) -> dict[str, Any]:
    """Write the programs that are asked for; returns JSON data about them: inputs with what is free, and by file the largest difference
    from the network's outputs, relative to their root mean square (None: it was not run, since onnxruntime is not installed).

    Args:
        model: in evaluation mode; if it has a cache of keys and values (``config.use_cache``), that is switched off in place.

    Raises:
        InvalidModel: it cannot be exported, or what was written computes something else.
    """
    if not (torch_export or onnx):
        return {}
    _without_cache(model)
    found = exported(model, example, hint="export without torch_export" if torch_export else "export without onnx")
    facts: dict[str, Any] = {"inputs": {name: list(shape) for name, shape in zip(found.names, found.shapes, strict=True)}}
    differences = {}
    if torch_export:
        differences[PROGRAM] = _write_program(model, found, folder / PROGRAM)
    if onnx:
        differences[ONNX] = _write_onnx(model, found, folder / ONNX)
    return facts | {"difference": differences}


def exported(model: nn.Module, example: Any, *, hint: str = "take another runtime") -> Exported:
    """The program of a network, with every size free that may be.

    The batch, dimension 0 of every tensor, must be free. Of the other dimensions those stay that the network takes at one size only, or
    that the program computes something else at. Where a program with free sizes cannot be made at all, only its batch is free.

    Raises:
        InvalidModel: torch.export fails, or the program differs from the network.
    """
    example = _batched(example)
    everything = {(name, d) for name, tensor in tensors_of(_called(example)) for d in range(1, tensor.ndim)}
    fixed: set[Place] = set()
    while True:
        try:
            program = _export(model, example, fixed)
        except Exception as error:
            if isinstance(error, OSError):
                raise
            if fixed >= everything:
                raise InvalidModel(f"model: torch.export fails on it: {shorten(error)}; {hint}") from error
            fixed = set(everything)
            continue
        names, shapes, ranges = _inputs(program)
        if len(names) != len(list(tensors_of(_called(example)))):  # what is free cannot be told: only the batch is
            shapes, names = (), ()
        probes, refused = _probed(model, program.module(), example, shapes, ranges)
        if not refused - fixed:
            return Exported(program, names, tuple(map(tuple, _named(shapes))), tuple(probes))
        fixed |= refused


def _export(model: nn.Module, example: Any, fixed: Collection[Place]) -> ExportedProgram:
    args, kwargs = arguments(_own(example))
    shapes = _dynamic(kwargs or args, Dim("batch", min=1), fixed)
    with torch.no_grad(), quiet():
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """What exporters say of themselves, and of packages that are not there, is not said."""
    with logs.quiet("torch.onnx", logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _batched(example: Any) -> Any:
    """The example with a batch of at least 2, since a batch of 1 would be taken for a constant, and contiguous: a program is for inputs
    that lie in memory as its example did, and one that is a part of a larger tensor has rows further apart than they are long."""

    def whole(tensor: Tensor) -> Tensor:
        return (torch.cat([tensor, tensor]) if tensor.ndim and tensor.shape[0] == 1 else tensor).contiguous()

    return map_tensors(whole, example)


def _called(example: Any) -> Any:
    args, kwargs = arguments(example)
    return kwargs or args


def _dynamic(value: Any, batch: Any, fixed: Collection[Place], name: str = "") -> Any:
    """The shapes of arguments as torch.export wants them, nested as they are; names are those of `tensors_of`."""
    if isinstance(value, Tensor):
        free = {d: Dim.AUTO for d in range(1, value.ndim) if value.shape[d] > 1 and (name, d) not in fixed}
        return {0: batch, **free} if value.ndim else None
    if isinstance(value, Mapping):
        return {key: _dynamic(item, batch, fixed, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_dynamic(item, batch, fixed, f"{name}.{k}" if name else str(k)) for k, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    return None


def _inputs(program: ExportedProgram) -> tuple[tuple[str, ...], tuple[tuple[int | str, ...], ...], dict[str, tuple[int, int]]]:
    """Names and shapes of the tensors that a program takes, and the sizes that each free one may have."""
    names, shapes = [], []
    wanted = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in wanted and isinstance(value, Tensor):
            names.append(node.name)
            shapes.append(tuple(n if isinstance(n, int) else str(n) for n in value.shape))
    ranges = {str(symbol): (int(r.lower), int(r.upper) if r.upper < MOST else MOST) for symbol, r in program.range_constraints.items()}
    return tuple(names), tuple(shapes), ranges


def _named(shapes: Sequence[Sequence[int | str]]) -> Iterator[list[int | str]]:
    """Shapes with words for symbols: ``batch`` for the first dimension of the first input, ``size 1`` and so on for the others."""
    words: dict[str, str] = {}
    for shape in shapes:
        for place, n in enumerate(shape):
            if isinstance(n, str) and n not in words:
                words[n] = "batch" if place == 0 and not words else f"size {len(words)}"
    for shape in shapes:
        yield [words[n] if isinstance(n, str) else n for n in shape]


def _probed(
    model: nn.Module, program: Callable[..., Any], example: Any, shapes: Sequence[Sequence[int | str]],
    ranges: Mapping[str, tuple[int, int]],
) -> tuple[list[Any], set[Place]]:  # fmt: skip
    """Inputs at which the program computes what the network does, the example first, and the dimensions that are to be fixed."""
    tensors = list(tensors_of(_called(example)))
    places: dict[str, list[Place]] = {}
    for (name, _), shape in zip(tensors, shapes, strict=False):
        for d, symbol in enumerate(shape):
            if isinstance(symbol, str):
                places.setdefault(symbol, []).append((name, d))
    sizes = {name: tensor.shape for name, tensor in tensors}
    _compare(model, program, example)
    probes, refused = [example], set()
    for symbol, where in places.items():
        name, d = where[0]
        low, high = ranges.get(symbol, (1, MOST))
        others = [n for n in _others(sizes[name][d]) if low <= n <= high]
        probe = next((p for n in others if _takes(model, p := _resized(example, set(where), n))), None)
        agrees = probe is not None and _agrees(model, program, probe)
        if agrees:
            probes.append(probe)
        elif any(d == 0 for _, d in where):
            raise InvalidModel(f"model: its program takes no other batch than {sizes[name][0]}; export without torch_export and onnx")
        else:
            refused |= set(where)
    return probes, refused


def _others(size: int) -> tuple[int, ...]:
    return (2 * size, max(size // 2, 1), size + 1)


def _resized(example: Any, places: Collection[Place], size: int) -> Any:
    """The example with other sizes at some places, its values repeated or cut."""
    changed = {}
    for name, tensor in tensors_of(_called(example)):
        other = tensor
        for d in range(tensor.ndim):
            if (name, d) in places:
                other = other.index_select(d, torch.arange(size, device=other.device) % other.shape[d])
        changed[id(tensor)] = other
    return map_tensors(lambda tensor: changed.get(id(tensor), tensor), example)


def _own(example: Any) -> Any:
    """A copy, which a network may change in place."""
    return map_tensors(torch.clone, example)


def _takes(model: nn.Module, example: Any) -> bool:
    try:
        with torch.no_grad():
            run(model, example)
    except Exception:  # a size that the network itself does not take is none to ask of its program
        return False
    return True


def _agrees(model: nn.Module, program: Callable[..., Any], example: Any) -> bool:
    try:
        _compare(model, program, example)
    except Exception:  # guards of a program that was traced for other sizes, or another answer: it is made anew without that size
        return False
    return True


def _compare(model: nn.Module, program: Callable[..., Any], example: Any) -> float:
    """The difference of a program's outputs from the network's. Raises InvalidModel where they are others."""
    args, kwargs = arguments(_own(example))
    with torch.no_grad():
        return difference([t for _, t in tensors_of(program(*args, **kwargs))], [t for _, t in tensors_of(run(model, example))])


def difference(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of outputs, relative to the root mean square of each.

    Raises:
        InvalidModel: number, shapes or values of the outputs are others."""
    if [tuple(t.shape) for t in got] != [tuple(t.shape) for t in expected]:
        found = f"{[tuple(t.shape) for t in got]}, not {[tuple(t.shape) for t in expected]}"
        raise InvalidModel(f"model: outputs of the exported program have shapes {found}; export without it")
    largest = 0.0
    for one, two in zip(got, expected, strict=True):
        if not two.is_floating_point():
            if two.numel() and float((one != two).double().mean()) > OFF:
                raise InvalidModel("model: the exported program gives other integers than the network; export without it")
            continue
        scale = float(two.double().square().nan_to_num().mean().sqrt()) if two.numel() else 0.0
        off = float((one.double() - two.double()).nan_to_num().abs().max()) / (scale or 1.0) if two.numel() else 0.0
        if off > TOLERANCE.get(two.dtype, 5e-2) or not torch.equal(one.isfinite(), two.isfinite()):
            raise InvalidModel(f"model: outputs of the exported program differ from its own by {off:.1e} of their size; export without it")
        largest = max(largest, off)
    return largest


def _write_program(model: nn.Module, found: Exported, path: Path) -> float:
    torch.export.save(found.program, path)
    loaded = torch.export.load(path).module()
    return max(_compare(model, loaded, probe) for probe in found.probes)


def _write_onnx(model: nn.Module, found: Exported, path: Path) -> float | None:
    try:
        with torch.no_grad(), quiet():
            torch.onnx.export(found.program, (), path, dynamo=True, verbose=False)
    except OSError:
        raise
    except Exception as error:
        raise InvalidModel(f"model: ONNX export fails on it: {shorten(error)}; export without onnx") from error
    if importlib.util.find_spec("onnxruntime") is None or not found.names:
        return None
    try:
        return max(_compare_onnx(model, path, found, probe) for probe in found.probes)
    except InvalidModel:
        raise
    except Exception as error:  # whatever the runtime says
        raise InvalidModel(f"model: ONNX Runtime does not run its program: {shorten(error)}; export without onnx") from error


def _session(path: Path) -> Any:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_work(path: Path, names: Sequence[str], example: Any) -> Callable[[], list[Any]]:
    """What runs a program in ONNX Runtime on an example, on as many threads as torch has.

    Args:
        names: of its inputs, as `write` says them (``inputs``).
    """
    session = _session(path)
    taken = {given.name for given in session.get_inputs()}
    tensors = [tensor.detach().cpu().numpy() for _, tensor in tensors_of(_called(example))]
    feed = {name: array for name, array in zip(names, tensors, strict=True) if name in taken}
    return lambda: session.run(None, feed)


def _compare_onnx(model: nn.Module, path: Path, found: Exported, example: Any) -> float:
    got = onnx_work(path, found.names, example)()
    with torch.no_grad():
        expected = [tensor.cpu() for _, tensor in tensors_of(run(model, example))]
    return difference([torch.from_numpy(array) for array in got], expected)


def _without_cache(model: nn.Module) -> None:
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


def shorten(error: BaseException, limit: int = 300) -> str:
    """An exception in one line of at most so many characters."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= limit else text[:limit] + "..."
