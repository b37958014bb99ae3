"""Networks on disk: weights as safetensors, ``manifest.json``, code that loads them without ranksearch, and on request programs of
``torch.export`` and ONNX. A directory is there as a whole or not at all."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ranksearch import __version__, checks
from ranksearch.decompositions import KNOWN, AnyDecomposition, Rank
from ranksearch.errors import InvalidArgument, InvalidModel, MissingDependency
from ranksearch.home import sync, user_path
from ranksearch.networks import pretrained, programs
from ranksearch.networks.modeling import VARIANT, plain_source
from ranksearch.networks.programs import ONNX, PROGRAM
from ranksearch.networks.surgery import build
from ranksearch.sites import Site, find_sites
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.tensors import save as save_tensors

SCHEMA = 1
LARGEST = 2**28  # numbers in an example that a manifest describes
MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"
PRETRAINED = f"model.{VARIANT}.safetensors"  # where a folder is one of transformers'
MODELING = "modeling.py"
OURS = {
    MANIFEST, WEIGHTS, PROGRAM, ONNX, ONNX + ".data", MODELING, PRETRAINED, f"{pretrained.MODULE}.py", "config.json",
    "generation_config.json", "__pycache__",
}  # fmt: skip


def check_target(directory: str | Path, *, force: bool = False, onnx: bool = False) -> Path:
    """Check, before anything is paid for, that `save` can write to ``directory``; returns it as a path.

    Raises:
        InvalidArgument: it is a file, or holds something and ``force`` is not given, or holds files that are no
            export (these are never replaced).
        MissingDependency: ``onnx`` is asked for and its packages are not installed.
    """
    target = user_path(directory)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InvalidArgument(f"directory={str(target)!r} is a file or a link; name a new directory")
    if target.is_dir():
        names = {entry.name for entry in target.iterdir()}
        if names and not force:
            raise InvalidArgument(f"directory={str(target)!r} is not empty; name another, or give force (--force) to replace an export")
        if names and (MANIFEST not in names or names - OURS):
            other = sorted(names - OURS)[:3] or sorted(names)
            raise InvalidArgument(f"directory={str(target)!r} holds what is no export ({', '.join(other)}); force replaces exports only")
    if onnx:
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise MissingDependency(f"ONNX export needs {' and '.join(missing)}: pip install 'ranksearch[onnx]'")
    return target


def save(
    model: nn.Module,
    directory: str | Path,
    *,
    manifest: Mapping[str, Any],
    example: Any,
    onnx: bool = False,
    torch_export: bool = False,
    force: bool = False,
    further: Callable[[Path], Mapping[str, Any]] | None = None,
) -> Path:
    """Write a network to ``directory``, atomically; returns the directory.

    Args:
        model: the network; it is not changed. It is exported in evaluation mode.
        directory: is created; must be empty or absent, or with ``force`` an earlier export, which is replaced.
        manifest: JSON data about the network; `load` needs ``configuration``, ``{site: [decomposition, rank]}``.
        example: the input of one forward pass, batch first: a tensor, a tuple of arguments or a dict of keywords.
        onnx: also write ``model.onnx`` (packages onnx and onnxscript); it is run and compared where onnxruntime is installed.
        torch_export: also write ``program.pt2``, which is run and compared. Both programs take any batch size, and other sequence and image
            sizes where the network does, see `ranksearch.networks.programs`; the manifest says which (``programs``).
        force: replace an earlier export.
        further: called with the folder when everything but the manifest is in it, which then says what this returns, too.

    Raises:
        InvalidArgument: see `check_target`; or ``manifest`` is not JSON, or lacks ``configuration``.
        InvalidModel: the model has state that is no tensor, or cannot be exported as a program.
        MissingDependency: packages for ONNX are missing.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    target = check_target(directory, force=force, onnx=onnx)
    configuration = _configuration(manifest, "manifest")
    model = copy.deepcopy(model).eval()
    tensors, aliases = _tensors(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent, ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / target.name
        folder.mkdir()
        added = _write_network(model, folder, tensors, aliases)
        facts = programs.write(model, example, folder, torch_export=torch_export, onnx=onnx)
        added |= {"configuration_id": configuration.id, "example": _describe(example), "aliases": aliases}
        added |= {"programs": facts} if facts else {}
        added |= {} if further is None else further(folder)
        _write_manifest({**manifest, **added}, folder)
        readable = (folder / MANIFEST).stat().st_mode & 0o777
        for path in folder.iterdir():
            path.chmod(readable)  # safetensors makes private files
            sync(path)
        _move(folder, target, Path(scratch) / "replaced")
    return target


def load(
    directory: str | Path,
    dense_model: nn.Module,
    example: Any = None,
    *,
    decompositions: Sequence[AnyDecomposition] = KNOWN,
) -> nn.Module:
    """The network that `save` wrote, rebuilt on the user's dense network, in evaluation mode.

    Args:
        directory: what `save` wrote.
        dense_model: the network that was searched, with any finite weights; it is not changed.
        example: the input of one forward pass; default: zeros of the shapes that the manifest records.
        decompositions: the types to look the configuration's names up in.

    Raises:
        InvalidArgument: no export there, a manifest or weights that were changed or damaged, another schema.
        InvalidModel: the dense network has other layers than the one that was searched.
    """
    folder = checks.path("directory", directory)
    manifest = read_manifest(folder)
    configuration = _configuration(manifest, str(folder / MANIFEST))
    if configuration.id != manifest.get("configuration_id"):
        saved = manifest.get("configuration_id")
        raise InvalidArgument(f"{folder / MANIFEST}: configuration {configuration.id} is not the one that was saved, {saved}; export again")
    weights = folder / (PRETRAINED if PRETRAINED in manifest.get("files", {}) else WEIGHTS)
    if not weights.is_file():
        raise InvalidArgument(f"{weights} is missing; export again")
    if _sha256(weights) != manifest.get("files", {}).get(weights.name):
        raise InvalidArgument(f"{weights} is not what the manifest was written for (SHA-256 differs): damaged or exchanged; export again")
    # only what layers are is asked, not what they cost: the batch does not matter
    sites = find_sites(dense_model, _revive(manifest, folder) if example is None else example, batch_dim=None)
    known = {name for site in sites for name in site.paths}
    table = {decomposition.name for decomposition in decompositions}
    for site, decomposition, _rank in configuration.choices:
        if site not in known:
            raise InvalidModel(f"dense_model has no layer {site!r} to factorize, which {folder} names; give the network that was searched")
        if decomposition not in table:
            names = ", ".join(sorted(table))
            raise InvalidArgument(f"{folder / MANIFEST}: decomposition {decomposition!r} is none of {names}; pass it in decompositions")
    try:
        model = build(_Hosts(dense_model, sites, decompositions), configuration)
        tensors = load_file(weights)
        tensors |= {alias: tensors[name] for alias, name in manifest.get("aliases", {}).items()}
        model.load_state_dict(tensors, strict=True)
    except (SafetensorError, KeyError) as error:
        raise InvalidArgument(f"{weights} cannot be read: {error}; export again") from error
    except (TypeError, OverflowError, MemoryError) as error:
        raise InvalidArgument(f"{folder / MANIFEST}: no layer can have these ranks: {programs.shorten(error)}; export again") from error
    except (RuntimeError, IndexError) as error:
        reason = programs.shorten(error)
        raise InvalidModel(f"dense_model does not fit what is in {folder}: {reason}; give the network that was searched") from error
    return model.eval()


class _Hosts(Spectra):
    """Factors that hold the place of stored ones: a rank need not be one that the dense weights lead to."""

    def factors(self, site: Site, name: str, rank: Rank) -> tuple[Tensor, ...]:
        factors = self.decomposition(name).empty_factors(site, rank)
        if factors is None:
            return super().factors(site, name, rank)
        device = self.model.get_submodule(site.name).get_parameter("weight").device
        return tuple(factor.to(device) for factor in factors)


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of an export.

    Raises:
        InvalidArgument: there is none, it is not readable, or of a schema that this version does not know.
    """
    path = user_path(directory) / MANIFEST
    if not path.is_file():  # or a pipe, which nobody may ever write to
        raise InvalidArgument(f"directory={str(directory)!r} holds no {MANIFEST}; name one that `ranksearch build` wrote")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path} is not JSON: {error}; export again") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        raise InvalidArgument(f"{path} has schema {found!r}, ranksearch reads {SCHEMA}; export again, use the version that wrote it")
    for name in ("files", "aliases"):
        found = manifest.get(name, {})
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise InvalidArgument(f"{path}: {name!r} does not map names to text; export again")
    return manifest


def _configuration(manifest: Mapping[str, Any], where: str) -> Configuration:
    data = manifest.get("configuration")
    if not isinstance(data, Mapping):
        raise InvalidArgument(f"{where}: 'configuration' is missing; it maps sites to [decomposition, rank]")
    return Configuration.from_json(json.dumps(data))


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state, every tensor once, and which names stand for which: {alias: name}. Tensors that overlap in part
    become tensors of their own."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise InvalidModel(f"model: its state {name!r} is no tensor but {type(value).__name__}; safetensors cannot hold it")
        key = (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def _write_network(model: nn.Module, folder: Path, tensors: dict[str, Tensor], aliases: dict[str, str]) -> dict[str, Any]:
    """Write the weights, and code that loads them without ranksearch where there can be such; returns what the manifest is to say of it."""
    facts: dict[str, Any] = {
        "tensors": {name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for name, t in tensors.items()}
    }
    if pretrained.saves_itself(model):
        with suppress(InvalidModel):  # a class that no folder can import, or layers without a plain form: then what follows
            pretrained.save_pretrained(model, folder, max_shard_size="1000GB")
            return facts | {"loads": {"without_ranksearch": f"{pretrained.auto_classes(model)[0]}.from_pretrained"}}
    _write_weights(tensors, folder / WEIGHTS)
    paths = pretrained.factorized_layers(model)
    try:
        code = plain_source(model, paths, pretrained.first_names(model), aliases, weights=WEIGHTS)
    except InvalidModel as error:  # weights and programs can be had
        return facts | {"loads": {"not_without_ranksearch": str(error)}}
    (folder / MODELING).write_text(code, encoding="utf-8")
    if not paths:
        pretrained.write_config(model, folder)
    return facts | {"loads": {"without_ranksearch": f"{MODELING}: load(network)"}}


def _write_weights(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_tensors(tensors, path, {"format": "pt"})
    except SafetensorError as error:
        raise InvalidModel(f"model: its weights cannot be written as safetensors: {error}") from error


def _write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Write the manifest of the files that are in ``folder``."""
    record = {
        **manifest,
        "schema": SCHEMA,
        "ranksearch": __version__,
        "torch": torch.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
    }
    try:
        text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"manifest is not JSON: {error}") from error
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Shape:
    shape: tuple[int, ...]
    dtype: str

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=getattr(torch, self.dtype))


def _describe(example: Any) -> dict[str, Any]:
    """What an input looks like, as JSON: its container, and shape and dtype of every tensor."""

    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        return {"value": value} if value is None or isinstance(value, (bool, int, float, str)) else {"type": type(value).__name__}

    if isinstance(example, Mapping):
        return {"kind": "mapping", "inputs": {key: one(value) for key, value in example.items()}}
    if isinstance(example, (tuple, list)) and not hasattr(example, "_fields"):  # a named tuple is one argument
        return {"kind": "sequence", "inputs": [one(value) for value in example]}
    return {"kind": "tensor", "inputs": one(example)}


def _revive(manifest: Mapping[str, Any], folder: Path) -> Any:
    """An input of zeros as the manifest describes it."""

    def one(value: Mapping[str, Any]) -> Any:
        if "shape" not in value:
            return value["value"]
        if math.prod(value["shape"]) > LARGEST:
            raise TypeError(f"shape {value['shape']}: more than {LARGEST:,} numbers")
        return _Shape(tuple(value["shape"]), value["dtype"]).zeros()

    try:
        described = manifest["example"]
        inputs = described["inputs"]
        if described["kind"] == "mapping":
            return {key: one(value) for key, value in inputs.items()}
        return tuple(one(value) for value in inputs) if described["kind"] == "sequence" else one(inputs)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InvalidArgument(f"{folder / MANIFEST} does not describe an input that can be made up; pass example") from error


def _move(folder: Path, target: Path, aside: Path) -> None:
    """Put ``folder`` in the place of ``target``; if that fails, what was there is there again."""
    if target.exists():
        os.rename(target, aside)
    try:
        os.rename(folder, target)
    except OSError:
        if aside.exists():
            os.rename(aside, target)
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
