"""Recurrent layers are unpacked, so that every matrix of an LSTM, a GRU or a plain RNN is a site of its own. The outputs stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidModel
from ranksearch.sites.copies import copied
from ranksearch.sites.forward import preserved_randomness
from ranksearch.sites.layers import Rule, matches
from ranksearch.sites.ties import parameter_users

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest value


class UnpackedRecurrent(nn.Module):
    """What ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` compute, with a linear layer for each of their matrices: ``ih_l0`` for
    ``weight_ih_l0`` and ``bias_ih_l0``, ``hh_l0``, ``hr_l0`` where there are projections, and so on with the ends of torch's names for
    further layers and the other direction. Arguments and results are the same: with or without a batch, ``batch_first``, packed
    sequences, initial states.

    ``ih`` layers are called once, with all time steps; ``hh`` and ``hr`` once per step, so that a factorized one does the work of its
    factors and no more. That loop is Python's, which small layers lose more to than factors gain. Where ``kernel`` is set, every matrix is
    put together from its layer once per call and torch's own kernel runs: the work of the dense layer, stored as factors."""

    def __init__(self, fused: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.input_size, self.hidden_size, self.proj_size = fused.mode, fused.input_size, fused.hidden_size, fused.proj_size
        self.num_layers, self.bidirectional, self.bias = fused.num_layers, fused.bidirectional, fused.bias
        self.batch_first, self.dropout = fused.batch_first, fused.dropout
        self.kernel = False
        for layer in range(self.num_layers):
            for end in self._ends(layer):
                for part in ("ih", "hh", "hr"):
                    weight, bias = (fused._parameters.get(f"{what}_{part}_{end}") for what in ("weight", "bias"))
                    if weight is not None:
                        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
                        linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
                        if bias is not None:
                            linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
                        self.add_module(f"{part}_{end}", linear)
        self.train(fused.training)

    def _ends(self, layer: int) -> list[str]:
        """How the names of a layer's matrices end, by direction."""
        return [f"l{layer}", f"l{layer}_reverse"] if self.bidirectional else [f"l{layer}"]

    def flatten_parameters(self) -> None:
        """Nothing: there is no kernel that wants all weights in one piece of memory."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("weight_", "bias_")):
            kind, _, end = name.partition("_")
            raise AttributeError(f"{name} is {end}.{kind} here, which a factorized layer need not have: the recurrent layer is unpacked")
        return super().__getattr__(name)

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """
        Args:
            input: shape (time, batch, d), with ``batch_first`` (batch, time, d), without a batch (time, d), or a ``PackedSequence``.
            hx: initial states, shape (layers * directions, batch, hidden), a pair of them for an LSTM; None: zeros.
        """
        packed = input if isinstance(input, nn.utils.rnn.PackedSequence) else None
        sizes = None if packed is None else packed.batch_sizes.tolist()
        given: Any = input if packed is None else packed.data
        batched = packed is not None or given.dim() == 3
        rows = given if packed is not None or (batched and self.batch_first) else given.transpose(0, 1) if batched else given.unsqueeze(0)
        states = self._states(hx, rows, rows.shape[0] if sizes is None else sizes[0], batched)
        if packed is not None and packed.sorted_indices is not None and hx is not None:
            states = [state.index_select(1, packed.sorted_indices) for state in states]
        if self.kernel:
            rows, states = self._by_kernel(rows, None if packed is None else packed.batch_sizes, states)
        else:
            rows, states = self._layers(rows, sizes, states)
        if packed is not None:
            output = nn.utils.rnn.PackedSequence(rows, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
            if packed.unsorted_indices is not None:
                states = [state.index_select(1, packed.unsorted_indices) for state in states]
        elif not batched:
            output, states = rows.squeeze(0), [state.squeeze(1) for state in states]
        else:
            output = rows if self.batch_first else rows.transpose(0, 1)
        return output, tuple(states) if self.mode == "LSTM" else states[0]

    def _states(self, hx: Any, rows: Tensor, batch: int, batched: bool) -> list[Tensor]:
        """Initial states, shape (layers * directions, batch, size) each."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        sizes = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if self.mode == "LSTM" else 1]
        if hx is None:
            return [rows.new_zeros(count, batch, size) for size in sizes]
        states = list(hx) if self.mode == "LSTM" else [hx]
        states = states if batched else [state.unsqueeze(1) for state in states]
        for state, size in zip(states, sizes, strict=True):
            if tuple(state.shape) != (count, batch, size):
                raise RuntimeError(f"hx has shape {tuple(state.shape)}, expected {(count, batch, size)}")
        return states

    def _layers(self, rows: Tensor, sizes: list[int] | None, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """All layers: outputs of the last one and the last states of all."""
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            outputs = []
            for end in self._ends(layer):
                steps, state = self._run(end, rows, sizes, tuple(each[len(last)] for each in states))
                outputs.append(torch.stack(steps, dim=1) if sizes is None else torch.cat(steps))
                last.append(state)
            rows = torch.cat(outputs, dim=-1)
            if self.dropout and layer + 1 < self.num_layers:
                rows = nn.functional.dropout(rows, self.dropout, self.training)
        return rows, [torch.stack(each) for each in zip(*last, strict=True)]

    def _run(self, end: str, rows: Tensor, sizes: list[int] | None, state: tuple[Tensor, ...]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """One layer in one direction: the outputs of every step in the order of time, and the last state. Steps of packed sequences have
        fewer rows the later they are: those of sequences that are over, or have not begun, keep their state."""
        gates = self.get_submodule(f"ih_{end}")(rows)
        steps = list(gates.unbind(1) if sizes is None else gates.split(sizes))
        backwards = end.endswith("_reverse")
        outputs = []
        for step in reversed(steps) if backwards else steps:
            if sizes is None:
                state = self._cell(end, step, state)
                outputs.append(state[0])
            else:
                new = self._cell(end, step, tuple(each[: len(step)] for each in state))
                outputs.append(new[0])
                state = tuple(torch.cat([one, each[len(step) :]]) for one, each in zip(new, state, strict=True))
        return outputs[::-1] if backwards else outputs, state

    def _cell(self, end: str, step: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The state after a step, from what the inputs add to the gates, shape (batch, gates * hidden)."""
        hidden = state[0]
        recurrent = self.get_submodule(f"hh_{end}")(hidden)
        if self.mode == "LSTM":
            i, f, g, o = (step + recurrent).chunk(4, dim=1)
            cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            return self.get_submodule(f"hr_{end}")(hidden) if self.proj_size else hidden, cell
        if self.mode == "GRU":
            (r, z, n), (hr, hz, hn) = step.chunk(3, dim=1), recurrent.chunk(3, dim=1)
            new = (n + (r + hr).sigmoid() * hn).tanh()
            return (new + (z + hz).sigmoid() * (hidden - new),)
        return ((step + recurrent).tanh() if self.mode == "RNN_TANH" else (step + recurrent).relu(),)

    def _by_kernel(self, rows: Tensor, sizes: Tensor | None, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What `_layers` gives, by torch's own kernel."""
        weights = []
        for layer in range(self.num_layers):
            for end in self._ends(layer):
                found = [self._affine(self.get_submodule(f"{part}_{end}"), size) for part, size in self._inputs(layer)]
                weights += [weight for weight, _ in found[:2]] + [bias for _, bias in found[:2] if self.bias] + [w for w, _ in found[2:]]
        run = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[self.mode]
        hx = states if self.mode == "LSTM" else states[0]
        given = (weights, self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        output, *last = run(rows, hx, *given, True) if sizes is None else run(rows, sizes, hx, *given)
        return output, last

    @staticmethod
    def _affine(layer: nn.Module, inputs: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the affine map that a layer computes."""
        if isinstance(layer, nn.Linear):
            return layer.weight, layer.bias
        like = next(layer.parameters())
        bias = layer(like.new_zeros(1, inputs))
        return (layer(torch.eye(inputs, dtype=like.dtype, device=like.device)) - bias).T.contiguous(), bias[0]

    def _inputs(self, layer: int) -> list[tuple[str, int]]:
        """The matrices of a layer in one direction, and how many inputs each has."""
        hidden = self.proj_size or self.hidden_size
        below = self.input_size if layer == 0 else hidden * (2 if self.bidirectional else 1)
        return [("ih", below), ("hh", hidden), ("hr", self.hidden_size)][: 3 if self.proj_size else 2]

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}, layers={self.num_layers}, bidirectional={self.bidirectional}"


def unpack_recurrent(model: nn.Module, *, exclude: Rule | Sequence[Rule] = ()) -> nn.Module:
    """A deep copy of ``model`` with every ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` as an `UnpackedRecurrent`, so that each of their matrices
    is a linear site, at ``<path>.ih_l0``, ``<path>.hh_l0`` and so on. Outputs, gradients, parameters and counted costs are the same. Hooks
    on the layer itself are not carried over.

    MACs of a recurrent matrix are those of all time steps of the example. Its input moments are those of the hidden states.

    Args:
        model: any module, which may itself be such a layer; not changed.
        exclude: which layers to leave as they are: glob on the module path, type, or ``predicate(path, module)``.

    Raises:
        InvalidModel: a layer whose weights are no plain parameters or are used by something else, or that computes something else.
    """
    chosen = {p: m for p, m in model.named_modules() if isinstance(m, nn.RNNBase) and not matches(p, m, exclude)}
    users = parameter_users(model)
    memo: dict[int, Any] = {}
    for path, module in chosen.items():
        reason = _objection(path, module, users)
        unpacked = None if reason else UnpackedRecurrent(module)
        if unpacked is not None:
            reason = _difference(module, unpacked)
        if reason is not None:
            raise InvalidModel(f"model: recurrent layer {path!r} cannot be unpacked: {reason}; leave it as it is with exclude={path!r}")
        memo[id(module)] = unpacked
    return copied(model, memo)


def _objection(path: str, module: nn.RNNBase, users: dict[int, list[str]]) -> str | None:
    names = [name for names in module._all_weights for name in names]
    if getattr(module, "parametrizations", None) or any(module._parameters.get(name) is None for name in names):
        return "its weights are no plain parameters (parametrized, normalised or pruned): bake them in first"
    shared = [user for name in names for user in users[id(module._parameters[name])] if user != path]
    if shared:
        return f"its weights are also used by {shared[0]!r}"
    other = [name for name in module._parameters if name not in names] + [name for name, _ in module.named_children()]
    return f"it holds {other[0]!r} besides its matrices, which the unpacked form would not have" if other else None


def _difference(fused: nn.RNNBase, unpacked: UnpackedRecurrent) -> str | None:
    """What is not the same in both on a sequence made for it; None: nothing."""
    weight = unpacked.get_submodule("ih_l0").get_parameter("weight")
    values = torch.sin(torch.arange(1, 6 * fused.input_size + 1, dtype=torch.float64) ** 2)
    sequence = values.reshape(3, 2, fused.input_size).to(weight)
    training = fused.training, unpacked.training
    try:
        with preserved_randomness(fused), torch.no_grad():
            fused.training = unpacked.training = False
            outputs = [layer.forward(sequence) for layer in (fused, unpacked)]
        (wanted, _), (got, _) = outputs
        tolerance = TOLERANCE.get(weight.dtype, 1e-2) * float(wanted.abs().max())
        same = got.shape == wanted.shape and torch.allclose(got, wanted, rtol=0, atol=tolerance)
    except Exception as error:  # a forward pass with other arguments or results
        return f"its forward pass is another ({type(error).__name__}: {error})"
    finally:
        fused.training, unpacked.training = training
    return None if same else "its forward pass computes something else"
