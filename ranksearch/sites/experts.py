"""Fused experts are unpacked, so that every matrix of every expert is a site of its own. The outputs stay the same."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidModel
from ranksearch.sites.copies import copied
from ranksearch.sites.forward import preserved_randomness
from ranksearch.sites.layers import Rule, fused_experts, matches
from ranksearch.sites.ties import parameter_users

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest value


class UnpackedExperts(nn.Module):
    """The experts of a layer as two linear layers each, ``up`` (gate and up in one) and ``down``, where transformers holds all of them in
    tensors of three dimensions (``gate_up_proj``, ``down_proj``). Each token runs through the experts that it is routed to alone; an
    expert that gets no token is called with none.

    What lies between the two, a gate or an activation, is that of the fused module: ``rule``, which has no weights any more."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        first: Any = fused.gate_up_proj if fused.has_gate else fused.up_proj
        first_bias: Any = (fused.gate_up_proj_bias if fused.has_gate else fused.up_proj_bias) if fused.has_bias else None
        second: Any = fused.down_proj
        second_bias: Any = fused.down_proj_bias if fused.has_bias else None
        self.up = self._layers(first, first_bias, fused.is_transposed)
        self.down = self._layers(second, second_bias, fused.is_transposed)
        self.rule = copy.copy(fused)
        vars(self.rule).update(_parameters={}, _modules=dict(fused._modules))
        self.training = fused.training

    @staticmethod
    def _layers(weights: Any, biases: Any, transposed: Any) -> nn.ModuleList:
        layers = []
        for k in range(weights.shape[0]):
            weight = weights[k].T if transposed else weights[k]
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=biases is not None, device="meta", dtype=weight.dtype)
            layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), weights.requires_grad)
            if biases is not None:
                layer.bias = nn.Parameter(biases[k].detach().clone(), biases.requires_grad)
            layers.append(layer)
        return nn.ModuleList(layers)

    def forward(
        self,
        hidden: Tensor,  # shape: (tokens, d)
        indices: Tensor,  # the experts of each token, shape: (tokens, k)
        weights: Tensor,  # of each of them, shape: (tokens, k)
    ) -> Tensor:  # shape: (tokens, d)
        rule: Any = self.rule
        out = torch.zeros_like(hidden)
        for k in range(len(self.up)):
            tokens, places = torch.where(indices == k)
            inner = self.up[k](hidden[tokens])
            value = self.down[k](rule._apply_gate(inner) if rule.has_gate else rule.act_fn(inner))
            if rule.has_post_expert_norm:
                value = rule.post_expert_norm(value)
            out = out.index_add(0, tokens, (value * weights[tokens, places, None]).to(out.dtype))
        return out


def unpack_experts(model: nn.Module, *, exclude: Rule | Sequence[Rule] = ()) -> nn.Module:
    """A deep copy of ``model`` with fused experts of transformers (Mixtral, Qwen, OLMoE, GPT-OSS: modules whose ``down_proj`` has three
    dimensions) as `UnpackedExperts` each: every matrix is a site, at ``<path>.up.0`` and so on. Outputs and costs are the same; one
    expert after the other is slower than a kernel for all of them.

    Costs of an expert are those of the tokens that the example routes to it. The example is to have a batch of one, since the tokens
    of an expert need not divide by another.

    Args:
        model: any module; not changed.
        exclude: which experts to leave as they are: glob on the module path, type, or ``predicate(path, module)``.

    Raises:
        InvalidModel: experts with a forward pass that this form does not compute, or whose weights something else uses.
    """
    chosen = {path: module for path, module in model.named_modules() if fused_experts(module) and not matches(path, module, exclude)}
    users = parameter_users(model)
    memo: dict[int, Any] = {}
    for path, module in chosen.items():
        shared = [user for p in module.parameters(recurse=False) for user in users[id(p)] if user != path]
        unpacked = None if shared else UnpackedExperts(module)
        reason = f"its weights are also used by {shared[0]!r}" if unpacked is None else _difference(module, unpacked)
        if reason is not None:
            raise InvalidModel(f"model: experts {path!r} cannot be unpacked: {reason}; leave them as they are with exclude={path!r}")
        memo[id(module)] = unpacked
    return copied(model, memo)


def _difference(fused: nn.Module, unpacked: UnpackedExperts) -> str | None:
    """What is not the same in both on tokens made for it; None: nothing."""
    down = fused.get_parameter("down_proj")
    experts, width = len(unpacked.down), unpacked.up[0].get_parameter("weight").shape[1]
    values = torch.sin(torch.arange(1, 2 * experts * width + 1, dtype=torch.float64) ** 2)
    hidden = values.reshape(2 * experts, width).to(down)
    routed = torch.arange(2 * experts, device=down.device)
    indices = torch.stack([routed % experts, (routed + 1) % experts], dim=1)
    weights = torch.linspace(0.1, 0.9, 4 * experts, dtype=torch.float64).reshape(-1, 2).to(down)
    try:
        with preserved_randomness(fused), torch.no_grad():
            wanted, got = fused(hidden, indices, weights), unpacked(hidden, indices, weights)
    except Exception as error:  # a forward pass with other arguments
        return f"its forward pass is another ({type(error).__name__}: {error})"
    tolerance = TOLERANCE.get(down.dtype, 1e-2) * float(wanted.abs().max())
    same = got.shape == wanted.shape and torch.allclose(got, wanted, rtol=0, atol=tolerance)
    return None if same else "its forward pass computes something else"
