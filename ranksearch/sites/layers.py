"""Single layers: which of them can be a site, why others cannot, and the site that a layer and its calls make."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ranksearch.errors import InvalidModel
from ranksearch.sites.forward import FLOATS
from ranksearch.sites.site import Call, Kind, Pair, Site, Skipped, Window
from ranksearch.sites.subclasses import scale_of

Rule = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # of one call's input and output
WINDOWED: dict[Kind, type[nn.Module]] = {
    "conv3d": nn.Conv3d, "conv_transpose1d": nn.ConvTranspose1d, "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}  # fmt: skip
_PLAIN = (nn.Conv2d, nn.Conv1d, nn.Linear, nn.Embedding, *WINDOWED.values())
_LORA = re.compile(r"(^|\.)lora_(A|B|down|up|embedding_A|embedding_B)(\.|$)")
_PACKED = ("_packed_params", "qweight", "qzeros", "weight_packed")  # what layers with quantized weights hold them in


def module_kind(module: nn.Module) -> Kind | None:
    """Which kind of site a module can be, or None."""
    if isinstance(module, nn.Conv2d):
        return "conv2d"
    if isinstance(module, nn.Conv1d):
        return "conv1d"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    for kind, layer in WINDOWED.items():
        if isinstance(module, layer):
            return kind
    # transformers' Conv1D is recognised by name so that transformers stays an optional package
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        return "transformers_conv1d"
    return None


def matches(path: str, module: nn.Module, rules: Rule | Sequence[Rule]) -> bool:
    """Whether one of ``rules`` (see `find_sites`) holds for a module."""
    if isinstance(rules, (str, type)) or callable(rules):
        rules = (rules,)
    for rule in rules:
        if isinstance(rule, str):
            if fnmatch.fnmatchcase(path, rule):
                return True
        elif isinstance(rule, type):
            if isinstance(module, rule):
                return True
        elif rule(path, module):
            return True
    return False


def own_forward(module: nn.Module) -> bool:
    """Whether a layer computes something else than torch's layer of its kind: by its class, or by a ``forward`` set on it."""
    if any(name in vars(module) for name in ("forward", "_conv_forward")):
        return True
    plain = next((base for base in _PLAIN if isinstance(module, base)), None)
    names = ("forward", "_conv_forward", "__call__", "_call_impl")
    return plain is not None and any(getattr(type(module), name, None) is not getattr(plain, name, None) for name in names)


def multiplier(module: nn.Module) -> float | None:
    """By which number the outputs of torch's layer of its kind are multiplied in this one: 1 for a plain layer; None where it computes
    something else."""
    if not own_forward(module):
        return 1.0
    plain = next((base for base in _PLAIN if isinstance(module, base)), None)
    others = ("_conv_forward", "__call__", "_call_impl")
    same = all(getattr(type(module), name, None) is getattr(plain, name, None) for name in others)
    return None if plain is None or not same or "forward" in vars(module) else scale_of(module, plain)


def holds_weights(module: nn.Module) -> bool:
    """Whether a module has weights of its own, in whatever form."""
    if any(True for _ in module.parameters(recurse=False)) or packed(module):
        return True
    return module_kind(module) is not None  # parametrized, or with weights that are no parameters


def fused_experts(module: nn.Module) -> bool:
    """Whether a module is what transformers makes of the experts of a layer: their matrices in tensors of three dimensions."""
    down = module._parameters.get("down_proj")
    known = all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm"))
    return known and down is not None and down.ndim == 3


def packed(module: nn.Module) -> bool:
    """Whether a module holds its weight quantized, in a form of its own."""
    return any(getattr(module, name, None) is not None for name in _PACKED)


def objection(path: str, module: nn.Module) -> str | None:
    """What speaks against a module as a site, whatever the model does with it; None: nothing."""
    kind = module_kind(module)
    if packed(module):
        return f"{type(module).__name__} holds its weight quantized: give the network before quantization"
    if _LORA.search(path):
        return "already low-rank (a matrix of a LoRA): merge it into its layer first"
    if kind is None:
        hint = ": see ranksearch.sites.attention.unpack_attention" if isinstance(module, nn.MultiheadAttention) else ""
        hint = ": see ranksearch.sites.unpack_experts" if fused_experts(module) else hint
        hint = ": see ranksearch.sites.unpack_recurrent" if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) else hint
        own = [name for name, value in module._parameters.items() if value is not None and name not in ("weight", "bias")]
        held = f", which holds {', '.join(map(repr, own))} itself, in no layer" if own and not hint else ""
        return f"no decomposition is defined for {type(module).__name__}{held}{hint}"
    if multiplier(module) is None:
        own = "a forward set on it" if "forward" in vars(module) else "a forward pass of its own"
        return f"{type(module).__name__} has {own}, which a factorized layer would not have"
    return _weight_objection(module) or _state_objection(module)


def _weight_objection(module: nn.Module) -> str | None:
    weight = module._parameters.get("weight")
    if getattr(module, "parametrizations", None) or weight is None:
        return "its weight is not a plain parameter (parametrized, normalised or pruned): bake it in first"
    if type(weight) is not nn.Parameter or type(weight.data) is not Tensor:
        return f"its weight is a {type(weight.data).__name__}, no plain tensor (quantized or distributed): give it as a plain one"
    if weight.is_complex():
        return f"its weight is complex ({weight.dtype}); decompositions are of real weights"
    if weight.dtype not in FLOATS:
        return f"its weight is {weight.dtype} (quantized): give the network before quantization"
    if not weight.numel():
        return f"its weight is empty, shape {tuple(weight.shape)}"
    if getattr(module, "max_norm", None) is not None or getattr(module, "sparse", False):
        return "an embedding with max_norm or sparse gradients has no factorized equal"
    return None


def _state_objection(module: nn.Module) -> str | None:
    """What it holds that a factorized layer would lose."""
    bias = module._parameters.get("bias")
    if bias is None and getattr(module, "bias", None) is not None:
        return "its bias is no parameter (a buffer, a plain tensor, pruned or parametrized): make it one first"
    for name, parameter in module._parameters.items():
        if parameter is not None and (parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)):
            return f"its {name} has a gradient hook, which factors would not have"
    buffers = () if own_forward(module) else module._buffers  # of a subclass it is a number, which a factorized layer takes over
    other = [*(n for n in module._parameters if n not in ("weight", "bias")), *buffers, *module._modules]
    other = [name for name in other if getattr(module, name, None) is not None]
    if other:
        return f"it holds {', '.join(map(repr, other))} besides weight and bias, which a factorized layer would not have"
    return None


def check_finite(path: str, module: nn.Module) -> None:
    """Raises InvalidModel where the weight or the bias of a layer holds NaN or infinity."""
    for name, parameter in module.named_parameters(recurse=False):
        if not bool(parameter.isfinite().all()):
            raise InvalidModel(f"model: the {name} of {path!r} holds NaN or infinite values; load sound weights")


def skip(path: str, module: nn.Module, reason: str) -> Skipped:
    """The entry of a module that is no site."""
    return Skipped(path, type(module).__name__, sum(p.numel() for p in module.parameters(recurse=False)), reason)


def site_of(path: str, module: Any, shapes: Sequence[Shapes], batch: int) -> Site:
    """The site of a layer that was called on inputs of these shapes.

    Raises:
        ValueError: the number of positions does not grow with the batch; the message says what to do.
    """
    kind = module_kind(module)
    assert kind is not None
    bias = getattr(module, "bias", None) is not None
    if kind in ("conv2d", "conv1d"):
        pad = module.padding
        return Site(
            path, kind, module.out_channels, module.in_channels,
            kernel=_pair(module.kernel_size, 1), stride=_pair(module.stride, 1),
            padding=(0, 0) if pad == "valid" else "same" if pad == "same" else _pair(pad, 0),
            padding_mode=module.padding_mode, dilation=_pair(module.dilation, 1), groups=module.groups, bias=bias,
            batched=all(len(i) == (4 if kind == "conv2d" else 3) for i, _ in shapes),
            calls=tuple(_conv_call(i, o, 2 if kind == "conv2d" else 1, batch) for i, o in shapes),
        )  # fmt: skip
    if kind in WINDOWED:
        dims, pad = len(module.kernel_size), module.padding
        window = Window(
            tuple(module.kernel_size), tuple(module.stride), "same" if pad == "same" else (0,) * dims if pad == "valid" else tuple(pad),
            tuple(module.dilation), tuple(module.output_padding), bool(module.transposed), module.padding_mode,
        )  # fmt: skip
        return Site(
            path, kind, module.out_channels, module.in_channels, kernel=(1, math.prod(window.kernel)), groups=module.groups, bias=bias,
            batched=all(len(i) == dims + 2 for i, _ in shapes), calls=tuple(_conv_call(i, o, dims, batch) for i, o in shapes),
            window=window,
        )  # fmt: skip
    if kind == "embedding":
        rows, dim = module.weight.shape
        calls = tuple(Call(_per_example(math.prod(i), batch), (1, 1), (1, 1)) for i, _ in shapes)
        return Site(path, kind, dim, rows, bias=False, calls=calls, scale=multiplier(module) or 1.0)
    c_out, c_in = module.weight.shape if kind == "linear" else module.weight.shape[::-1]
    calls = tuple(Call(_per_example(math.prod(i) // c_in, batch), (1, 1), (1, 1)) for i, _ in shapes)
    return Site(path, kind, c_out, c_in, bias=bias, calls=calls)


def _conv_call(input_shape: tuple[int, ...], output_shape: tuple[int, ...], dims: int, batch: int) -> Call:
    images = math.prod(input_shape[: -dims - 1])  # 1 for an unbatched input
    size, out = (s[-2:] if dims == 2 else (1, math.prod(s[-dims:])) for s in (input_shape, output_shape))
    return Call(_per_example(images, batch), (size[0], size[1]), (out[0], out[1]))


def _per_example(count: int, batch: int) -> int:
    if count % batch:
        raise ValueError(f"applied {count} times to a batch of {batch}: give an example with a batch of 1, or say batch_dim")
    return count // batch


def _pair(value: Sequence[int], fill: int) -> Pair:
    return (fill, value[0]) if len(value) == 1 else (value[0], value[1])
