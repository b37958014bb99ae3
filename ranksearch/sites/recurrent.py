"""Recurrent layers and cells are unpacked, so that every matrix of an LSTM, a GRU or a plain RNN is a site of its own. The outputs stay the
same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.errors import InvalidModel
from ranksearch.sites.copies import copied
from ranksearch.sites.forward import preserved_randomness, tensors_of
from ranksearch.sites.layers import Rule, matches
from ranksearch.sites.sequences import Sequences, sequences
from ranksearch.sites.ties import parameter_users

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest value


def linear_of(fused: nn.Module, part: str) -> nn.Linear:
    """A linear layer with copies of ``weight_<part>`` and ``bias_<part>`` of a recurrent layer."""
    weight, bias = fused._parameters[f"weight_{part}"], fused._parameters.get(f"bias_{part}")
    assert weight is not None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return linear


def next_state(mode: str, step: Tensor, recurrent: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The state after a step, hidden state first, each of shape (batch, hidden).

    Args:
        mode: as ``nn.RNNBase.mode``.
        step, recurrent: what the inputs and the hidden state add to the gates, shape (batch, gates * hidden).
    """
    if mode == "LSTM":
        i, f, g, o = (step + recurrent).chunk(4, dim=1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    if mode == "GRU":
        (r, z, n), (hr, hz, hn) = step.chunk(3, dim=1), recurrent.chunk(3, dim=1)
        new = (n + (r + hr).sigmoid() * hn).tanh()
        return (new + (z + hz).sigmoid() * (state[0] - new),)
    return ((step + recurrent).tanh() if mode == "RNN_TANH" else (step + recurrent).relu(),)


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
                for part in ("ih", "hh", "hr")[: 3 if self.proj_size else 2]:
                    self.add_module(f"{part}_{end}", linear_of(fused, f"{part}_{end}"))
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
        given = sequences(input, batch_first=self.batch_first)
        run = self._by_kernel if self.kernel else self._layers
        rows, states = run(given.rows, given.sizes, self._states(hx, given))
        states = tuple(given.last(state) for state in states)
        return given.output(rows), states if self.mode == "LSTM" else states[0]

    def _states(self, hx: Any, given: Sequences) -> list[Tensor]:
        """Initial states, shape (layers * directions, batch, size) each."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        sizes = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if self.mode == "LSTM" else 1]
        if hx is None:
            return [given.rows.new_zeros(count, given.batch, size) for size in sizes]
        states = [given.batched(state) for state in (hx if self.mode == "LSTM" else (hx,))]
        for state, size in zip(states, sizes, strict=True):
            if tuple(state.shape) != (count, given.batch, size):
                raise RuntimeError(f"hx has shape {tuple(state.shape)}, expected {(count, given.batch, size)}")
        return [given.ordered(state) for state in states]

    def _layers(self, rows: Tensor, sizes: Tensor | None, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """All layers: outputs of the last one and the last states of all."""
        lengths = None if sizes is None else sizes.tolist()
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            outputs = []
            for end in self._ends(layer):
                steps, state = self._run(end, rows, lengths, tuple(each[len(last)] for each in states))
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
        recurrent = self.get_submodule(f"hh_{end}")(state[0])
        new = next_state(self.mode, step, recurrent, state)
        return (self.get_submodule(f"hr_{end}")(new[0]), *new[1:]) if self.proj_size else new

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


class UnpackedCell(nn.Module):
    """What ``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell`` compute, with a linear layer for each of their matrices: ``ih`` for
    ``weight_ih`` and ``bias_ih``, and ``hh``. Arguments and results are the same, with or without a batch."""

    def __init__(self, fused: nn.RNNCellBase) -> None:
        super().__init__()
        plain = f"RNN_{fused.nonlinearity.upper()}" if isinstance(fused, nn.RNNCell) else ""
        self.mode = "LSTM" if isinstance(fused, nn.LSTMCell) else plain or "GRU"
        self.input_size, self.hidden_size, self.bias = fused.input_size, fused.hidden_size, fused.bias
        self.ih, self.hh = linear_of(fused, "ih"), linear_of(fused, "hh")
        self.train(fused.training)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("weight_", "bias_")):
            kind, _, end = name.partition("_")
            raise AttributeError(f"{name} is {end}.{kind} here, which a factorized layer need not have: the recurrent cell is unpacked")
        return super().__getattr__(name)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """
        Args:
            input: shape (batch, d), or (d,).
            hx: the state before, shape (batch, hidden) or (hidden,), a pair of them for an LSTM; None: zeros.
        """
        rows = input if input.dim() == 2 else input.unsqueeze(0)
        if hx is None:
            state = (rows.new_zeros(len(rows), self.hidden_size),) * (2 if self.mode == "LSTM" else 1)
        else:
            state = tuple(each if input.dim() == 2 else each.unsqueeze(0) for each in (hx if self.mode == "LSTM" else (hx,)))
        state = next_state(self.mode, self.ih(rows), self.hh(state[0]), state)
        state = state if input.dim() == 2 else tuple(each.squeeze(0) for each in state)
        return state if self.mode == "LSTM" else state[0]

    def extra_repr(self) -> str:
        return f"{self.mode}, {self.input_size}, {self.hidden_size}"


def unpack_recurrent(model: nn.Module, *, exclude: Rule | Sequence[Rule] = ()) -> nn.Module:
    """A deep copy of ``model`` with every ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` as an `UnpackedRecurrent`, so that each of their matrices
    is a linear site, at ``<path>.ih_l0``, ``<path>.hh_l0`` and so on; and every ``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell`` as an
    `UnpackedCell`, with sites at ``<path>.ih`` and ``<path>.hh``. Outputs, gradients, parameters and counted costs are the same. Hooks
    on the layer itself are not carried over.

    MACs of a recurrent matrix are those of all time steps of the example. Its input moments are those of the hidden states.

    Args:
        model: any module, which may itself be such a layer; not changed.
        exclude: which layers to leave as they are: glob on the module path, type, or ``predicate(path, module)``.

    Raises:
        InvalidModel: a layer whose weights are no plain parameters or are used by something else, or that computes something else.
    """
    chosen = {p: m for p, m in model.named_modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase)) and not matches(p, m, exclude)}
    users = parameter_users(model)
    memo: dict[int, Any] = {}
    for path, module in chosen.items():
        reason = _objection(path, module, users)
        unpacked = None if reason else UnpackedRecurrent(module) if isinstance(module, nn.RNNBase) else UnpackedCell(module)
        if unpacked is not None:
            reason = _difference(module, unpacked)
        if reason is not None:
            raise InvalidModel(f"model: recurrent layer {path!r} cannot be unpacked: {reason}; leave it as it is with exclude={path!r}")
        memo[id(module)] = unpacked
    return copied(model, memo)


def _objection(path: str, module: nn.RNNBase | nn.RNNCellBase, users: dict[int, list[str]]) -> str | None:
    if isinstance(module, nn.RNNBase):
        names = [name for names in module._all_weights for name in names]
    else:
        if not isinstance(module, (nn.LSTMCell, nn.GRUCell, nn.RNNCell)):
            return f"{type(module).__name__} is another kind of cell"
        names = [f"{what}_{part}" for what in ("weight", "bias")[: 2 if module.bias else 1] for part in ("ih", "hh")]
    if getattr(module, "parametrizations", None) or any(module._parameters.get(name) is None for name in names):
        return "its weights are no plain parameters (parametrized, normalised or pruned): bake them in first"
    shared = [user for name in names for user in users[id(module._parameters[name])] if user != path]
    if shared:
        return f"its weights are also used by {shared[0]!r}"
    held = [name for name, value in module._parameters.items() if value is not None]
    other = [name for name in held if name not in names] + [name for name, _ in module.named_children()]
    return f"it holds {other[0]!r} besides its matrices, which the unpacked form would not have" if other else None


def _difference(fused: nn.RNNBase | nn.RNNCellBase, unpacked: UnpackedRecurrent | UnpackedCell) -> str | None:
    """What is not the same in both on inputs made for it; None: nothing."""
    cell = isinstance(unpacked, UnpackedCell)
    weight = unpacked.get_submodule("ih" if cell else "ih_l0").get_parameter("weight")
    values = torch.sin(torch.arange(1, 6 * fused.input_size + 1, dtype=torch.float64) ** 2)
    given = values.reshape(6, fused.input_size) if cell else values.reshape(3, 2, fused.input_size)
    training = fused.training, unpacked.training
    try:
        with preserved_randomness(fused), torch.no_grad():
            fused.training = unpacked.training = False
            wanted, got = (list(tensors_of(layer.forward(given.to(weight)))) for layer in (fused, unpacked))
        same = len(got) == len(wanted) and all(_close(one, other) for (_, one), (_, other) in zip(got, wanted, strict=True))
    except Exception as error:  # a forward pass with other arguments or results
        return f"its forward pass is another ({type(error).__name__}: {error})"
    finally:
        fused.training, unpacked.training = training
    return None if same else "its forward pass computes something else"


def _close(got: Tensor, wanted: Tensor) -> bool:
    tolerance = TOLERANCE.get(wanted.dtype, 1e-2) * float(wanted.abs().max())
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol=0, atol=tolerance)
