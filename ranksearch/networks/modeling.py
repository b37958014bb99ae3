"""The text of a Python file that makes a network with factorized layers, with torch alone (and transformers, for networks of theirs)."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ranksearch import __version__
from ranksearch.decompositions.grouped_svd_learned import Reordered
from ranksearch.decompositions.quantized_layer import QuantizedLayer
from ranksearch.decompositions.tensor_train import TrainLinear
from ranksearch.errors import InvalidModel
from ranksearch.networks.layers import ReadableChain, TransposedLinear, last_bias
from ranksearch.sites import WINDOWED, Scale, UnpackedCell, UnpackedExperts, UnpackedRecurrent, linear_of, next_state
from ranksearch.sites.attention import PlainAttention, SplitLinear
from ranksearch.sites.sequences import OneSequence, PackedSequences, Sequences, sequences

VARIANT = "factorized"  # weights are in model.factorized.safetensors
# forms that a folder makes of the modules of the dense network again, and what their source needs besides torch
UNPACKED: Mapping[type[nn.Module], tuple[Any, ...]] = {
    UnpackedExperts: (UnpackedExperts,),
    UnpackedRecurrent: (linear_of, next_state, Sequences, OneSequence, PackedSequences, sequences, UnpackedRecurrent),
    UnpackedCell: (linear_of, next_state, UnpackedCell),
}  # fmt: skip
_MODULE_STATE = frozenset(vars(nn.Module()))
# what the source of a module of ours needs besides torch
_SOURCES: dict[type[nn.Module], tuple[Any, ...]] = {
    ReadableChain: (last_bias, ReadableChain), TransposedLinear: (TransposedLinear,), Scale: (Scale,), TrainLinear: (TrainLinear,),
    QuantizedLayer: (QuantizedLayer,), Reordered: (Reordered,),
}  # fmt: skip

_TEMPLATE = '''"""{name}: {base} of transformers with factorized layers, written by ranksearch {version}.
It needs torch and transformers alone:

    from transformers import {auto}
    model = {auto}.from_pretrained(FOLDER, trust_remote_code=True)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from {module} import {base}
{sources}

def layers() -> dict[str, nn.Module]:
    """The layers that are others than those of {base}, by path."""
    return {{
{layers}
    }}


UNPACKED = {unpacked}  # modules of {base} in a form of layers
ATTRIBUTES = {attributes}
SAME = {same}  # modules that are one, by path
PATHS = {paths}
TIED = {tied}  # parameters that are one, by name


class {name}({base}):
    _tied_weights_keys = dict(TIED)

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        for path, form in UNPACKED.items():
            self.set_submodule(path, form(self.get_submodule(path)))
        for path, layer in layers().items():
            vars(layer).update(ATTRIBUTES.get(path, {{}}))
            self.set_submodule(path, layer)
        for path, first in SAME.items():
            self.set_submodule(path, self.get_submodule(first))
        for module in self.modules():
            if "all_tied_weights_keys" in vars(module):
                module.all_tied_weights_keys = {{}}
        self.all_tied_weights_keys = dict(TIED)
        self._is_factorized = True
        self.tie_weights()

    def get_expanded_tied_weights_keys(self, all_submodels=False):
        return dict(TIED)

    def tie_weights(self, missing_keys=None, **kwargs):
        if "_is_factorized" not in vars(self):  # called while the dense network is made
            return
        for name, first in TIED.items():
            path, _, last = name.rpartition(".")
            setattr(self.get_submodule(path), last, self.get_parameter(first))
        if missing_keys is not None:
            missing_keys.difference_update(TIED)

    def _initialize_missing_keys(self, *args, **kwargs):
        """Nothing is missing, but buffers are set up here; where a network would set up a dense weight on the way, it finds one that is."""
        stand_in = torch.empty(1, 1, 1, 1, device="meta")
        stand_in._is_hf_initialized = True
        replaced = map(self.get_submodule, PATHS)
        kinds = [(layer, type(layer)) for layer in replaced if isinstance(layer, nn.Sequential)]
        for layer, _ in kinds:
            layer.__class__ = nn.Sequential
            vars(layer).update(weight=stand_in, bias=stand_in)
        try:
            super()._initialize_missing_keys(*args, **kwargs)
        finally:
            for layer, kind in kinds:
                layer.__class__ = kind
                del vars(layer)["weight"], vars(layer)["bias"]

    @classmethod
    def from_pretrained(cls, *args, output_loading_info=False, **kwargs):
        """As of transformers, but keys and shapes that do not fit are an error."""
        kwargs.setdefault("variant", "{variant}")
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        wrong = {{what: sorted(map(str, info[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(what)}}
        if wrong:
            raise RuntimeError(f"the weights are not those of {{cls.__name__}}: {{wrong}}")
        return (model, info) if output_loading_info else model

    def save_pretrained(self, *args, **kwargs):
        kwargs.setdefault("variant", "{variant}")
        return super().save_pretrained(*args, **kwargs)
'''


_PLAIN = '''"""{name} with factorized layers, written by ranksearch {version}. It needs torch and safetensors alone:

    import sys
    sys.path.insert(0, FOLDER)
    from modeling import load
    network = load(network)  # a dense {name} of yours, with any weights, in place
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
{sources}

def layers() -> dict[str, nn.Module]:
    """The layers that are others than those of the dense network, by path."""
    return {{
{layers}
    }}


UNPACKED = {unpacked}  # modules of the dense network in a form of layers
ATTRIBUTES = {attributes}
SAME = {same}  # modules that are one, by path
TIED = {tied}  # parameters that are one, by name
ALIASES = {aliases}  # further names of stored tensors


def load(network: nn.Module, folder: Path = Path(__file__).parent) -> nn.Module:
    """``network`` with factorized layers in the places of its own and the stored weights, in evaluation mode. It is changed in place;
    keys and shapes that do not fit are an error."""
    for path, form in UNPACKED.items():
        network.set_submodule(path, form(network.get_submodule(path)))
    for path, layer in layers().items():
        vars(layer).update(ATTRIBUTES.get(path, {{}}))
        network.set_submodule(path, layer)
    for path, first in SAME.items():
        network.set_submodule(path, network.get_submodule(first))
    for name, first in TIED.items():
        path, _, last = name.rpartition(".")
        setattr(network.get_submodule(path), last, network.get_parameter(first))
    tensors = load_file(folder / "{weights}")
    tensors |= {{name: tensors[first] for name, first in ALIASES.items()}}
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name in tensors:
            tensor.data = tensor.data.to(tensors[name].dtype)
    network.load_state_dict(tensors, strict=True)
    return network.eval()
'''


def source(model: nn.Module, name: str, paths: Sequence[str], first_names: Mapping[str, str], *, auto: str) -> str:
    """The text of the file.

    Args:
        model: a network of transformers.
        name: of the class that the file defines, a subclass of the network's.
        paths: of the layers that are not those of its class.
        first_names: the first name of every parameter, by each of its names.
        auto: the class of transformers that a user would load it by.

    Raises:
        InvalidModel: a layer has no plain form, or the network's class is no class of transformers.
    """
    base = type(model)
    if not base.__module__.startswith("transformers."):
        raise InvalidModel(f"model: {base.__name__} is defined in {base.__module__}; a folder can import classes of transformers alone")
    return _TEMPLATE.format(
        name=name, base=base.__name__, module=base.__module__, version=__version__, auto=auto, variant=VARIANT,
        **_parts(model, paths, first_names),
    )  # fmt: skip


def plain_source(
    model: nn.Module, paths: Sequence[str], first_names: Mapping[str, str], aliases: Mapping[str, str], *, weights: str
) -> str:  # fmt: skip
    """The text of a file that puts the layers of ``model`` and its stored weights into a dense network of the user's own.

    Args:
        model: a network of any class.
        paths, first_names: as for `source`.
        aliases: further names of stored tensors, by name.
        weights: the file of the weights, beside this one.

    Raises:
        InvalidModel: a layer has no plain form, or the model was taken apart by ranksearch (`unpack_attention`, `split_linear`).
    """
    foreign = [path for path, module in model.named_modules() if isinstance(module, (PlainAttention, SplitLinear))]
    if foreign:
        raise InvalidModel(f"model: {foreign[0]!r} was unpacked or split, so that the dense network has no such layer")
    if "" in paths:
        raise InvalidModel("model: it is a single layer, in the place of which another one stands")
    named = {"name": type(model).__name__, "version": __version__, "weights": weights, "aliases": _pretty(dict(aliases))}
    return _PLAIN.format(**named, **_parts(model, paths, first_names))


def _parts(model: nn.Module, paths: Sequence[str], first_names: Mapping[str, str]) -> dict[str, Any]:
    """What both templates say of layers."""
    lines: list[str] = []
    attributes: dict[str, dict[str, Any]] = {}
    same: dict[str, str] = {}
    first: dict[int, str] = {}
    unpacked = {path: type(module) for path, module in model.named_modules() if isinstance(module, tuple(UNPACKED))}
    used: dict[str, Any] = {each.__name__: each for form in unpacked.values() for each in UNPACKED[form]}
    for path in paths:
        layer = model.get_submodule(path)
        if id(layer) in first:
            same[path] = first[id(layer)]
            continue
        first[id(layer)] = path
        expression = _expression(path, layer, used)
        lines.append(f"        {path!r}: {expression},")
        if extra := _attributes(path, layer, expression):
            attributes[path] = extra
    tied = {name: one for name, one in first_names.items() if name != one}
    forms = ", ".join(f"{path!r}: {form.__name__}" for path, form in unpacked.items())
    return {
        "layers": "\n".join(lines), "paths": tuple(first.values()), "unpacked": f"{{{forms}}}", "attributes": _pretty(attributes),
        "same": _pretty(same), "tied": _pretty(tied), "sources": "".join(f"\n\n{inspect.getsource(each)}" for each in used.values()),
    }  # fmt: skip


def _pretty(value: dict[str, Any]) -> str:
    return "{\n" + "".join(f"    {key!r}: {item!r},\n" for key, item in value.items()) + "}" if value else "{}"


def _expression(path: str, layer: Any, used: dict[str, Any]) -> str:
    """The Python expression that makes a layer of these sizes; the sources of modules of ours that it needs go to ``used``."""
    kind = type(layer)
    for each in _SOURCES.get(kind, ()):
        used[each.__name__] = each
    if kind in (nn.Sequential, ReadableChain):
        parts = ", ".join(_expression(path, part, used) for part in layer)
        return f"nn.Sequential({parts})" if kind is nn.Sequential else f"ReadableChain([{parts}], {tuple(layer._shape)})"
    if kind is nn.Linear:
        return f"nn.Linear({layer.in_features}, {layer.out_features}, bias={layer.bias is not None})"
    if kind is nn.Embedding:
        padding = "" if layer.padding_idx is None else f", padding_idx={layer.padding_idx}"
        return f"nn.Embedding({layer.num_embeddings}, {layer.embedding_dim}{padding})"
    if kind in (nn.Conv1d, nn.Conv2d):
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        options = ", ".join(f"{name}={getattr(layer, name)!r}" for name in names)
        return f"nn.{kind.__name__}({layer.in_channels}, {layer.out_channels}, {options}, bias={layer.bias is not None})"
    if kind in WINDOWED.values():
        last = "output_padding" if layer.transposed else "padding_mode"
        names = ("kernel_size", "stride", "padding", "dilation", "groups", last)
        options = ", ".join(f"{name}={getattr(layer, name)!r}" for name in names)
        return f"nn.{kind.__name__}({layer.in_channels}, {layer.out_channels}, {options}, bias={layer.bias is not None})"
    if kind is nn.ChannelShuffle:
        return f"nn.ChannelShuffle({layer.groups})"
    if kind is Scale:
        return f"Scale({layer.scale!r})"
    if kind is Reordered:
        return f"Reordered({len(layer.order)}, {layer.dims})"
    if kind is QuantizedLayer:
        return f"QuantizedLayer({_expression(path, layer.layer, used)}, {layer.bits})"
    if kind is TransposedLinear:
        return f"TransposedLinear(nn.Parameter(torch.empty({tuple(layer.weight.shape)})))"
    if kind is TrainLinear:
        cores = ", ".join(f"torch.empty({shape})" for shape in layer.core_shapes)
        return f"TrainLinear([{cores}], {None if layer.bias is None else f'torch.empty({len(layer.bias)})'})"
    raise InvalidModel(
        f"model: {path!r} holds a {kind.__name__}, which no file of plain torch can make (types that are stored composed are such): leave "
        "the type out of the space, or export a program (torch_export, onnx)"
    )


def _attributes(path: str, layer: nn.Module, expression: str) -> dict[str, Any]:
    """What is on a layer besides what it is made with: what it took over of the layer that it replaces."""
    names = {kind.__name__: kind for kind in _SOURCES} | {"nn": nn, "torch": torch}
    with torch.device("meta"):
        known = vars(eval(expression, names))  # the text is ours, made of numbers
    found = {name: value for name, value in vars(layer).items() if name not in _MODULE_STATE and name not in known}
    for name, value in found.items():
        try:
            plain = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            plain = False
        if not plain:
            raise InvalidModel(f"model: the attribute {name!r} of {path!r} is a {type(value).__name__}, which no file can hold")
    return found
