"""Multiply-adds of a forward pass, counted over the operators that run, one rule per operator. A product is counted in
full, whatever is masked, padded or zero in it; products without a rule are named, so that a total is never short in silence."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Arguments = Mapping[str, Any]  # of an operator, by the names of its schema
MacRule = Callable[[Arguments, Any], int]  # (arguments, result) -> multiply-adds of one call


def _product(left: str, right: str) -> MacRule:
    """Matrix products, batched or not: every row of ``left`` with every column of ``right``; stored values of a sparse one."""

    def rule(given: Arguments, out: Any) -> int:
        a, b = given[left], given[right]
        if a.layout is not torch.strided:
            return a._nnz() * b.shape[-1] if b.ndim > 1 else a._nnz()
        columns = b.shape[-1] if b.ndim > 1 else 1
        return a.numel() * columns

    return rule


def _convolution(given: Arguments, out: Any) -> int:
    """Every weight of a filter once per output position; transposed, once per input position."""
    weight = given["weight"]
    positions = given["input"] if given.get("transposed") else out
    return positions.numel() * math.prod(weight.shape[1:])


def _attention(given: Arguments, out: Any) -> int:
    """q k^T and a v, of every query with every key: shapes (..., heads, L, E), (..., S, E) and (..., S, V)."""
    q, k, v = given["query"], given["key"], given["value"]
    return math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _attention_forward(given: Arguments, out: Any) -> int:
    """The same where heads come after positions, (N, L, heads, E), or sequences of several lengths stand in a row,
    (sum of lengths, heads, E), with their starts."""
    q, k, v = given["query"], given["key"], given["value"]
    q_starts, k_starts = (given.get(f"cum_seq_{x}") if f"cum_seq_{x}" in given else given.get(f"cu_seqlens_{x}") for x in "qk")
    heads, width = q.shape[-2], q.shape[-1] + v.shape[-1]
    if q_starts is None or k_starts is None:
        return q.shape[0] * q.shape[1] * k.shape[1] * heads * width
    return int((q_starts.diff() * k_starts.diff()).sum()) * heads * width


def _packed_attention(given: Arguments, out: Any) -> int:
    """``nn.MultiheadAttention`` in one operator: the packed projections, the two products, the output projection."""
    q, k = given["query"], given["key"]
    d = given["embed_dim"]
    projections = (q.numel() + k.numel() + given["value"].numel() + q.numel()) * d
    return projections + 2 * q.shape[0] * q.shape[1] * k.shape[1] * d


def _encoder_layer(given: Arguments, out: Any) -> int:
    x, d = given["src"], given["embed_dim"]
    feed_forward = x.numel() * given["ffn_weight_1"].shape[0] * 2
    return 4 * x.numel() * d + 2 * x.shape[0] * x.shape[1] ** 2 * d + feed_forward


def _recurrent(*names: str) -> MacRule:
    """Every weight matrix once per time step and sequence; ``names`` are of tensors, or of lists of them."""

    def rule(given: Arguments, out: Any) -> int:
        values = [value for name in names for value in (given[name] if isinstance(given[name], (list, tuple)) else [given[name]])]
        steps = math.prod(given["input"].shape[:-1])
        return steps * sum(value.numel() for value in values if value.ndim == 2)

    return rule


def _grouped(left: str, right: str) -> MacRule:
    """A matrix product per group (per expert): each row with the matrix of its group alone. ``offs`` are the ends of the groups
    along the dimension that is ragged; rows past the last one are in no group."""

    def rule(given: Arguments, out: Any) -> int:
        a, b, ends = given[left], given[right], given.get("offs")
        if a.ndim == 3 and b.ndim == 3:
            return a.numel() * b.shape[-1]
        used = int(ends[-1]) if ends is not None and ends.numel() else 0
        if a.ndim == 2 and b.ndim == 3:  # rows are ragged: shapes (rows, k), (groups, k, n)
            return used * a.shape[-1] * b.shape[-1]
        if a.ndim == 3:  # columns are ragged: (groups, m, k), (k, columns)
            return used * a.shape[-1] * a.shape[-2]
        return used * a.shape[0] * b.shape[-1]  # the inner dimension is ragged: (m, k), (k, n)

    return rule


def _trilinear(given: Arguments, out: Any) -> int:
    """``nn.Bilinear``: y_o = sum over i, j of a_i W_oij b_j, one multiply-add per weight and position. The operator broadcasts
    its three operands, after inserting dimensions, and sums; its work is the size of the broadcast."""
    shapes = []
    for operand, inserted in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        shape = list(given[operand].shape)
        for position in sorted(given[inserted]):
            shape.insert(position, 1)
        shapes.append(shape)
    return math.prod(torch.broadcast_shapes(*shapes))


def _linear(weight: str) -> MacRule:
    return lambda given, out: given["input"].numel() * given[weight].shape[0]


def _by_output(inner: str) -> MacRule:
    """Products whose second operand is packed: every output is a sum over the last dimension of ``inner``."""
    return lambda given, out: out.numel() * given[inner].shape[-1]


RULES: dict[str, MacRule] = {
    "aten::mm": _product("self", "mat2"),
    "aten::addmm": _product("mat1", "mat2"),
    "aten::_addmm_activation": _product("mat1", "mat2"),
    "aten::_sparse_addmm": _product("mat1", "mat2"),
    "aten::_int_mm": _product("self", "mat2"),
    "aten::_scaled_mm": _product("self", "mat2"),
    "aten::_weight_int8pack_mm": _by_output("self"),
    "aten::_weight_int4pack_mm": _by_output("self"),
    "aten::_weight_int4pack_mm_for_cpu": _by_output("self"),
    "aten::bmm": _product("self", "mat2"),
    "aten::baddbmm": _product("batch1", "batch2"),
    "aten::addbmm": _product("batch1", "batch2"),
    "aten::mv": _product("self", "vec"),
    "aten::addmv": _product("mat", "vec"),
    "aten::dot": _product("self", "tensor"),
    "aten::vdot": _product("self", "other"),
    "aten::linear": _linear("weight"),
    "aten::mkldnn_linear": lambda given, out: given["self"].numel() * given["weight"].shape[0],
    "mkldnn::_linear_pointwise": lambda given, out: out.numel() * given["X"].shape[-1],
    "quantized::linear": _by_output("X"),
    "quantized::linear_relu": _by_output("X"),
    "quantized::linear_dynamic": _by_output("X"),
    "quantized::linear_relu_dynamic": _by_output("X"),
    "quantized::linear_dynamic_fp16": _by_output("X"),
    "aten::_grouped_mm": _grouped("self", "mat2"),
    "aten::_scaled_grouped_mm": _grouped("self", "mat2"),
    "transformers::grouped_mm_fallback": _grouped("input", "weight"),
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_overrideable": _convolution,
    "aten::mkldnn_convolution": lambda given, out: out.numel() * math.prod(given["weight"].shape[1:]),
    "aten::conv_tbc": lambda given, out: out.numel() * math.prod(given["weight"].shape[:2]),
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::_scaled_dot_product_attention_math_for_mps": _attention,
    "aten::_flash_attention_forward": _attention_forward,
    "aten::_efficient_attention_forward": _attention_forward,
    "aten::_native_multi_head_attention": _packed_attention,
    "aten::_transformer_encoder_layer_fwd": _encoder_layer,
    "aten::mkldnn_rnn_layer": _recurrent("weight0", "weight1"),
    "aten::_cudnn_rnn": _recurrent("weight"),
    "aten::miopen_rnn": _recurrent("weight"),
    "aten::_lstm_mps": _recurrent("params"),
    "aten::_trilinear": _trilinear,
    "flex_attention": _attention,
}

# names of operators that multiply matrices or solve with them; what is in `RULES` is counted before these are asked
_PRODUCTS = re.compile(
    r"(^|_)(\w*mm|mv|addmv|matmul|conv\w*|\w*attention|linear|dot|lstm|gru|rnn|trilinear|cdist|euclidean_dist|fft|einsum|solve\w*|svd|qr|eigh?"
    r"|inv|inverse|cholesky|lu|matrix_exp|lstsq|pinv)(_|\d|$)"
)
_NO_PRODUCTS = re.compile(r"_thnn_fused_|_backward|^aten::(lu_unpack|linalg_vector_norm|_nested|new_|empty|fft_fftfreq|fft_rfftfreq)")
_OWN = ("aten", "prim", "prims", "profiler", "debugprims", "inductor", "c10d", "_c10d_functional")


class MacCounter(TorchDispatchMode):
    """Counts the multiply-adds of all operators that run within it.

    Attributes:
        macs: by operator.
        uncounted: how often operators ran that look like products, or are no operators of torch, and have no rule."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch asks; a mode that says yes, the default, imports the compiler at the first operator: a second for nothing."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Multiply-adds of everything that ran."""
        return self.macs.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            name = func.name() if callable(getattr(func, "name", None)) else str(func)
            out = func(*args, **kwargs)
            self._count(name, dict(zip(("query", "key", "value"), args, strict=False)), out)
            return out
        name = func._schema.name
        rule = _rule(name)
        if rule is None and not name.startswith("prim::"):
            with self:  # an operator made of others is counted by its parts
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._count(name, _arguments(func, args, kwargs) if rule else {}, out)
        return out

    def _count(self, name: str, given: Arguments, out: Any) -> None:
        rule = _rule(name)
        if rule is not None:
            self.macs[name] += int(rule(given, out))
        elif looks_like_a_product(name):
            self.uncounted[name] += 1


def _rule(name: str) -> MacRule | None:
    """The rule of an operator or of its in-place variant."""
    return RULES.get(name) or RULES.get(name.removesuffix("_"))


def looks_like_a_product(name: str) -> bool:
    """Whether an operator without a rule may do multiply-adds: by its name, or since it is not torch's."""
    space, _, short = name.rpartition("::")
    if _NO_PRODUCTS.search(name):
        return False
    return space not in _OWN or _PRODUCTS.search(short) is not None


def _arguments(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)
