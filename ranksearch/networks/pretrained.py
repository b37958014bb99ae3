"""Networks of transformers with factorized layers, in folders that ``from_pretrained`` of transformers loads without ranksearch.

transformers would write the weights of the network beside the configuration of the dense one, and load the former into the latter, with a
report of missing keys and random weights in their place. So these folders also have a modeling file with a class that has the factorized
layers, and keep the weights under another name: the dense class finds no weights, which is an error."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import types
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.home import user_path
from ranksearch.networks.modeling import UNPACKED, VARIANT, source

MODULE = "modeling_factorized"
FOREIGN = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_MARK = "_factorized_layers"


def factorized_layers(network: nn.Module) -> tuple[str, ...]:
    """The paths of the layers that `mark` was told of."""
    return vars(network).get(_MARK, ())


def saves_itself(network: nn.Module) -> bool:
    """Whether `mark` has made its ``save_pretrained`` the one below."""
    return getattr(vars(network).get("save_pretrained"), "__func__", None) is save_pretrained


def mark(network: nn.Module, layers: Collection[nn.Module]) -> None:
    """Note in ``network`` where any of ``layers`` are, which were put in the place of its own. Make ``save_pretrained`` of every network
    of transformers in it the one below, where it holds such, or what was unpacked."""
    new = {id(layer) for layer in layers}
    _note(network, new)
    for module in network.modules():
        if not is_pretrained(module):
            continue
        if _note(module, new) or any(isinstance(each, tuple(UNPACKED)) for each in module.modules()):
            vars(module)["save_pretrained"] = types.MethodType(save_pretrained, module)


def _note(module: nn.Module, new: Collection[int]) -> bool:
    """Note in a module where in it the modules of these ids are; whether there are any."""
    found = [path for path, each in module.named_modules(remove_duplicate=False) if id(each) in new]
    vars(module)[_MARK] = tuple(_outermost({*factorized_layers(module), *found}))
    return bool(found)


def _outermost(paths: Collection[str]) -> Iterator[str]:
    for path in sorted(paths):
        parts = path.split(".")
        if not any(".".join(parts[:k]) in paths for k in range(1, len(parts))):
            yield path


def save_pretrained(model: Any, save_directory: str | os.PathLike[str], *, is_main_process: bool = True, **options: Any) -> None:
    """Write a network of transformers with factorized layers to a folder that ``AutoModelFor...from_pretrained(folder,
    trust_remote_code=True)`` loads, in a process without ranksearch too. It is the ``save_pretrained`` of networks that are built, so
    that trainers which call it write such folders.

    The folder has the configuration, the weights as ``model.factorized.safetensors`` (every tensor once, ties in the code), and
    ``modeling_factorized.py``: a subclass of the network's class, with its layers as plain torch, that raises where keys or shapes
    do not fit. What was written is loaded and compared before it gets its place.

    Args:
        save_directory: is created; files of an earlier ``save_pretrained`` are replaced.
        is_main_process: False writes nothing, for processes of a distributed run.
        options: of transformers' own ``save_pretrained``, such as ``state_dict`` and ``max_shard_size``.

    Raises:
        InvalidModel: a layer cannot be written as plain torch (those that are stored composed), the class is not one of transformers, or
            what was written does not load as the same network.
        InvalidArgument: the folder is a file or holds weights that would be taken for these, or an option is given that cannot be had.
    """
    target = user_path(save_directory)
    refused = [name for name in ("variant", "push_to_hub", "distributed_checkpoint") if options.get(name)]
    if refused:
        raise InvalidArgument(f"{refused[0]}={options[refused[0]]!r} cannot be had for a factorized network: save it, then move the folder")
    if target.exists() and not target.is_dir():
        raise InvalidArgument(f"save_directory={str(target)!r} is a file; name a folder")
    foreign = [name for name in FOREIGN if (target / name).exists()]
    if foreign:
        raise InvalidArgument(f"save_directory={str(target)!r} holds {foreign[0]}, which would be loaded instead; name another folder")
    name, auto = f"Factorized{type(model).__name__}", auto_classes(model)
    code = source(model, name, factorized_layers(model), first_names(model), auto=auto[0])
    if not is_main_process:
        return
    state = options.pop("state_dict", None)
    tensors = _once(model, model.state_dict() if state is None else state)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving.", dir=target) as scratch:
        folder = Path(scratch)
        type(model).save_pretrained(model, folder, state_dict=tensors, variant=VARIANT, save_original_format=False, **options)
        (folder / f"{MODULE}.py").write_text(code, encoding="utf-8")
        _name_class(folder / "config.json", name, auto)
        _compare(folder, model, tensors)
        for stale in target.glob(f"model*{VARIANT}*"):  # in one file, or in several of other names
            stale.unlink()
        for path in folder.iterdir():
            os.replace(path, target / path.name)


def first_names(model: nn.Module) -> dict[str, str]:
    """The first name of every parameter, by each of its names."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(parameter), name) for name, parameter in model.named_parameters(remove_duplicate=False)}


def _once(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without the further names of a parameter."""
    kept = set(first_names(model).values())
    return {name: value for name, value in state.items() if name in kept or not _is_parameter(model, name)}


def _is_parameter(model: nn.Module, name: str) -> bool:
    path, _, last = name.rpartition(".")
    return last in model.get_submodule(path)._parameters


def write_config(model: nn.Module, folder: Path) -> None:
    """Write the configuration of a network of transformers as it is, without factorized layers, beside its weights: then
    ``from_pretrained`` loads the folder. Nothing of another network."""
    if is_pretrained(model):
        config: Any = model.config
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None and model.can_generate():  # pyright: ignore[reportCallIssue]
            model.generation_config.save_pretrained(folder)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module is a network of transformers."""
    return any(base.__name__ == "PreTrainedModel" and base.__module__.startswith("transformers.") for base in type(module).__mro__)


def _name_class(path: Path, name: str, auto: Sequence[str]) -> None:
    """Say in the configuration which class of which file a folder is loaded by."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"architectures": [name], "auto_map": {each: f"{MODULE}.{name}" for each in auto}}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def auto_classes(model: Any) -> list[str]:
    """The AutoModel classes of transformers that give networks of this class."""
    import transformers

    found = []
    for name in dir(transformers):
        mapping = getattr(getattr(transformers, name), "_model_mapping", None) if name.startswith("AutoModel") else None
        if mapping is not None and type(model.config) in mapping:
            classes = mapping[type(model.config)]
            if type(model) in (classes if isinstance(classes, tuple) else (classes,)):
                found.append(name)
    return found or ["AutoModel"]


def _compare(folder: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raises InvalidModel where the folder does not load as a network of the same tensors and ties."""
    try:
        loaded = load(folder)
    except Exception as error:  # transformers has no errors of its own
        raise InvalidModel(f"model: it cannot be written for from_pretrained: {type(error).__name__}: {error}") from error
    found, first = loaded.state_dict(), first_names(loaded)
    wrong = [key for key, value in tensors.items() if key not in found or not torch.equal(found[key].cpu(), value.detach().cpu())]
    wrong += [key for key in model.state_dict() if key not in found]
    wrong += [key for key, one in first_names(model).items() if key not in first or first[key] != first[one]]
    if wrong:
        raise InvalidModel(f"model: it cannot be written for from_pretrained: {wrong[0]!r} comes back as another tensor; use export.save")


def load(directory: str | os.PathLike[str]) -> nn.Module:
    """The network of a folder that `save_pretrained` wrote, by the code in it, as ``AutoModelFor...from_pretrained`` would, which
    copies the code to a cache first.

    Raises:
        InvalidArgument: the folder was not written by it.
        RuntimeError: keys or shapes of the weights do not fit.
    """
    folder = user_path(directory)
    if not (folder / f"{MODULE}.py").is_file():
        raise InvalidArgument(f"directory={str(folder)!r} holds no {MODULE}.py; name one that save_pretrained of a built network wrote")
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    label = f"ranksearch_written_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(label, folder / f"{MODULE}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # classes look for their module there
    try:
        spec.loader.exec_module(module)
        return getattr(module, name).from_pretrained(folder)
    finally:
        del sys.modules[label]
