"""What a recurrent layer takes, in the one form that its steps work on, and its results in the form that they are expected in."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Sequences:
    """Sequences of one length, shape (batch, time, d) or, without ``batch_first``, (time, batch, d).

    Attributes:
        rows: the inputs, shape (batch, time, d); of packed sequences (rows, d), those of all steps one after the other.
        sizes: of packed sequences, how many rows each step has; None: all the same.
    """

    sizes: Tensor | None = None

    def __init__(self, given: Tensor, batch_first: bool) -> None:
        self._batch_first = batch_first
        self.rows = self._turned(given)

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return self.rows.shape[0]

    def batched(self, state: Tensor) -> Tensor:
        """An initial state as it is given, as one of shape (layers * directions, batch, size)."""
        return state

    def ordered(self, state: Tensor) -> Tensor:
        """An initial state of that shape, in the order of the rows."""
        return state

    def output(self, rows: Tensor) -> Any:
        """Outputs of the form of `rows`, as the inputs were given."""
        return self._turned(rows)

    def last(self, state: Tensor) -> Tensor:
        """A last state, shape (layers * directions, batch, size) in the order of the rows, as initial states are given."""
        return state

    def _turned(self, rows: Tensor) -> Tensor:
        return rows if self._batch_first else rows.transpose(0, 1)


class OneSequence(Sequences):
    """A single sequence, shape (time, d); states have no batch either."""

    def __init__(self, given: Tensor) -> None:
        super().__init__(given.unsqueeze(0), batch_first=True)

    def batched(self, state: Tensor) -> Tensor:
        """See `Sequences.batched`."""
        return state.unsqueeze(1)

    def output(self, rows: Tensor) -> Tensor:
        """See `Sequences.output`."""
        return rows.squeeze(0)

    def last(self, state: Tensor) -> Tensor:
        """See `Sequences.last`."""
        return state.squeeze(1)


class PackedSequences(Sequences):
    """Sequences of several lengths, the longest first whatever their order was."""

    def __init__(self, given: nn.utils.rnn.PackedSequence) -> None:
        super().__init__(given.data, batch_first=True)
        self.sizes: Tensor = given.batch_sizes
        self._sorted, self._unsorted = given.sorted_indices, given.unsorted_indices

    @property
    def batch(self) -> int:
        """See `Sequences.batch`."""
        return int(self.sizes[0])

    def ordered(self, state: Tensor) -> Tensor:
        """See `Sequences.ordered`."""
        return state if self._sorted is None else state.index_select(1, self._sorted)

    def output(self, rows: Tensor) -> nn.utils.rnn.PackedSequence:
        """See `Sequences.output`."""
        return nn.utils.rnn.PackedSequence(rows, self.sizes, self._sorted, self._unsorted)

    def last(self, state: Tensor) -> Tensor:
        """See `Sequences.last`."""
        return state if self._unsorted is None else state.index_select(1, self._unsorted)


def sequences(given: Tensor | nn.utils.rnn.PackedSequence, *, batch_first: bool) -> Sequences:
    """The inputs of a recurrent layer."""
    if isinstance(given, nn.utils.rnn.PackedSequence):
        return PackedSequences(given)
    return Sequences(given, batch_first) if given.dim() == 3 else OneSequence(given)
