"""Packed projections are unpacked, so that each is a site of its own: ``nn.MultiheadAttention`` becomes plain linear layers around
``scaled_dot_product_attention``, and fused linear layers (qkv in one) become their parts. The outputs stay the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.errors import InvalidArgument, InvalidModel
from ranksearch.sites.copies import copied
from ranksearch.sites.layers import Rule, matches, module_kind, own_forward
from ranksearch.sites.ties import parameter_users


class PlainAttention(nn.Module):
    """Computes what ``nn.MultiheadAttention`` does (Vaswani et al. 2017, section 3.2.2), but calls ``q_proj``, ``k_proj``,
    ``v_proj`` and ``out_proj`` as modules, so that they can be sites. It takes the same arguments and has the same results.

    Torch's encoder layers read ``in_proj_weight``, ``in_proj_bias`` and ``_qkv_same_embed_dim`` before they take a fused path,
    which would bypass the modules; the values here make them not take it.
    """

    in_proj_weight = None
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self, q_proj: nn.Linear, k_proj: nn.Linear, v_proj: nn.Linear, out_proj: nn.Linear,
        *, num_heads: int, dropout: float = 0.0, batch_first: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q_proj, k_proj, v_proj, out_proj
        self.embed_dim, self.kdim, self.vdim = q_proj.in_features, k_proj.in_features, v_proj.in_features
        self.num_heads, self.head_dim = num_heads, self.embed_dim // num_heads
        self.dropout, self.batch_first = dropout, batch_first

    def forward(
        self,
        query: Tensor,  # shape: (L, d), (L, N, d), or with batch_first (N, L, d)
        key: Tensor,  # likewise with S and kdim
        value: Tensor,  # likewise with S and vdim
        key_padding_mask: Tensor | None = None,  # shape: (N, S) or (S,); True, or -inf added: ignored
        need_weights: bool = True,
        attn_mask: Tensor | None = None,  # shape: (L, S) or (N * num_heads, L, S); True, or -inf added: not attended to
        average_attn_weights: bool = True,
        is_causal: bool = False,  # a hint that attn_mask is the causal mask
    ) -> tuple[Tensor, Tensor | None]:
        """Output in the shape of ``query``, and the weights, shape (N, L, S) or (N, num_heads, L, S), or None."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if is_causal and attn_mask is None:
            raise InvalidArgument("is_causal=True needs attn_mask, the mask it is a hint about")
        only_hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if only_hint else self._mask(attn_mask, key_padding_mask, query)
        dropout = self.dropout if self.training else 0.0
        q, k, v = (self._heads(p(x)) for p, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value)))
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.mT
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            output = weights @ v
        else:
            output = F.scaled_dot_product_attention(q, k, v, mask, dropout, only_hint)
        output = self.out_proj(output.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        if not batched:
            return output[0], weights
        return output if self.batch_first else output.transpose(0, 1), weights

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # shape: (N, heads, length, head_dim)

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor) -> Tensor | None:
        """What is added to the scores, shape broadcastable to (N, heads, L, S)."""
        mask = None
        if attn_mask is not None:
            mask = _additive(attn_mask, query)
            mask = mask.unflatten(0, (query.shape[0], self.num_heads)) if mask.dim() == 3 else mask[None, None]
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, query)[:, None, None, :]
            mask = padding if mask is None else mask + padding
        return mask

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, dropout={self.dropout}, batch_first={self.batch_first}"


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)
    return mask


class SplitLinear(nn.Module):
    """A linear layer as one layer per block of outputs, side by side in ``parts``."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.in_features, self.out_features = parts[0].in_features, sum(part.out_features for part in parts)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([part(input) for part in self.parts], dim=-1)


def unpack_attention(model: nn.Module, *, exclude: Rule | Sequence[Rule] = ()) -> nn.Module:
    """A deep copy of ``model`` with every ``nn.MultiheadAttention`` as a `PlainAttention`, so that its projections are
    linear sites. Outputs are the same up to rounding; in inference, torch's fused encoder path, which sets the outputs at
    padded positions to zero, is off in the copy.

    Args:
        model: any module, which may itself be an attention; not changed. Weights tied between attentions stay tied.
        exclude: which attentions to leave as they are: glob on the module path, type, or ``predicate(path, module)``.

    Raises:
        InvalidModel: an attention with ``add_bias_kv``, ``add_zero_attn`` or parametrized weights, of a subclass with a
            forward pass of its own, or whose packed weight or bias something else uses.
    """
    chosen = {p: m for p, m in model.named_modules() if isinstance(m, nn.MultiheadAttention) and not matches(p, m, exclude)}
    users = parameter_users(model)
    memo: dict[int, Any] = {}
    blocks: dict[Any, nn.Parameter] = {}
    for path, module in chosen.items():
        reason = _not_plain(module)
        packed = [p for p in (module._parameters.get("in_proj_weight"), module._parameters.get("in_proj_bias")) if p is not None]
        others = [user for parameter in packed for user in users[id(parameter)] if user not in chosen]
        if others:
            reason = f"its packed weight or bias is also used by {others[0]!r}"
        if reason is not None:
            raise InvalidModel(f"model: attention {path!r} cannot be unpacked: {reason}; leave it as it is with exclude={path!r}")
        memo[id(module)] = _plain(module, memo, blocks)
    return copied(model, memo)


def split_linear(model: nn.Module, parts: Mapping[str, Sequence[int]]) -> nn.Module:
    """A deep copy of ``model`` with fused linear layers as a `SplitLinear` each: their parts are sites of their own,
    at ``<path>.parts.0`` and so on.

    Args:
        model: any module; not changed.
        parts: sizes of consecutive blocks of outputs by module path, for example ``{"attn.qkv": (64, 64, 64)}``. The
            layer is an ``nn.Linear`` or a ``Conv1D`` of transformers.

    Raises:
        InvalidArgument: no such module, no linear layer, or sizes that do not add up to its outputs.
        InvalidModel: its weight is parametrized, it has a forward pass of its own, or something else uses its parameters.
    """
    memo: dict[int, Any] = {}
    users = parameter_users(model)
    for path, sizes in parts.items():
        try:
            module: Any = model.get_submodule(path)
        except AttributeError as error:
            raise InvalidArgument(f"parts names {path!r}, which the model does not have: {error}") from error
        kind = module_kind(module)
        if kind not in ("linear", "transformers_conv1d"):
            raise InvalidArgument(f"parts names {path!r}, a {type(module).__name__}; only linear layers can be split")
        weight = module._parameters.get("weight")
        if weight is None or own_forward(module):
            found = type(module).__name__
            raise InvalidModel(f"model: {path!r} has no plain weight, or a forward pass of its own ({found}); replace it first")
        for parameter in (weight, module._parameters.get("bias")):
            if parameter is not None and len(users[id(parameter)]) > 1:
                sharing = ", ".join(users[id(parameter)])
                raise InvalidModel(f"model: the weight or bias of {path!r} is used by {sharing}; splitting one would untie them")
        rows = weight if kind == "linear" else weight.T
        if not sizes or min(sizes) < 1 or sum(sizes) != rows.shape[0]:
            raise InvalidArgument(f"parts[{path!r}]={tuple(sizes)}: positive sizes that add up to its {rows.shape[0]} outputs are needed")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        layers = []
        for start, size in zip(starts, sizes, strict=True):
            bias = None if module.bias is None else _block(module.bias, start, size, {})
            layers.append(_linear(_parameter(rows[start : start + size], weight.requires_grad), bias, module.training))
        memo[id(module)] = SplitLinear(layers).train(module.training)
    return copied(model, memo)


def _not_plain(module: nn.MultiheadAttention) -> str | None:
    if type(module).forward is not nn.MultiheadAttention.forward:
        return f"{type(module).__name__} has a forward pass of its own"
    if module.bias_k is not None or module.bias_v is not None:
        return "add_bias_kv=True appends a learned key and value, which the plain form does not"
    if module.add_zero_attn:
        return "add_zero_attn=True appends a zero key and value, which the plain form does not"
    if type(module.out_proj).forward is not nn.Linear.forward:
        return f"its out_proj is a {type(module.out_proj).__name__}, no plain linear layer"
    if getattr(module, "parametrizations", None) or getattr(module.out_proj, "parametrizations", None):
        return "its weights are parametrized: bake them in first"
    return None


def _plain(module: Any, memo: dict[int, Any], blocks: dict[Any, nn.Parameter]) -> PlainAttention:
    size = module.embed_dim
    if module._qkv_same_embed_dim:
        weights = [_block(module.in_proj_weight, i * size, size, blocks) for i in range(3)]
    else:
        weights = [copy.deepcopy(w, memo) for w in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)]
    bias = module.in_proj_bias
    biases = [None if bias is None else _block(bias, i * size, size, blocks) for i in range(3)]
    layers = [_linear(w, b, module.training) for w, b in zip(weights, biases, strict=True)]
    out = module.out_proj
    layers.append(_linear(copy.deepcopy(out.weight, memo), copy.deepcopy(out.bias, memo), out.training))
    plain = PlainAttention(*layers, num_heads=module.num_heads, dropout=module.dropout, batch_first=module.batch_first)
    plain.training = module.training
    return plain


def _block(packed: nn.Parameter, start: int, size: int, blocks: dict[Any, nn.Parameter]) -> nn.Parameter:
    """Some rows of a parameter as one of its own, the same one for the same rows."""
    key = (id(packed), start, size)
    if key not in blocks:
        blocks[key] = _parameter(packed[start : start + size], packed.requires_grad)
    return blocks[key]


def _parameter(value: Tensor, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format), requires_grad=requires_grad)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None, training: bool) -> nn.Linear:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta", dtype=weight.dtype)  # nothing is drawn or stored
    layer.weight = weight
    layer.bias = bias  # type: ignore[assignment]
    return layer.train(training)
