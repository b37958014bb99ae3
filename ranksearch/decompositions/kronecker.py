"""Second moments of large patches as a Kronecker product of a channel and a tap factor, and products with them that never make the
whole matrix. Every function takes a plain matrix as well, so that who uses a moment need not know in which form it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.linalg import solve_triangular


@dataclass(frozen=True)
class Kronecker:
    """channel (x) tap, in patch order (channel, kh, kw): entry ((i, s), (j, t)) is channel[i, j] tap[s, t]."""

    channel: Tensor  # shape: (..., c, c); of a `block` (..., c_rows, c_columns)
    tap: Tensor  # shape: (..., k, k)

    def __getitem__(self, place: Any) -> Kronecker:
        """Some of a batch."""
        return Kronecker(self.channel[place], self.tap[place])

    @property
    def shape(self) -> torch.Size:
        rows, columns = (n * self.tap.shape[-1] for n in self.channel.shape[-2:])
        return torch.Size((*self.channel.shape[:-2], rows, columns))

    @property
    def device(self) -> torch.device:
        return self.channel.device

    @property
    def nbytes(self) -> int:
        return self.channel.nbytes + self.tap.nbytes

    def to(self, *args: Any) -> Kronecker:
        """The same on a device, or in a dtype, as of `torch.Tensor.to`."""
        return Kronecker(self.channel.to(*args), self.tap.to(*args))

    @property
    def mT(self) -> Kronecker:  # as of tensors
        """Transposed."""
        return Kronecker(self.channel.mT, self.tap.mT)

    def repeat(self, *sizes: int) -> Kronecker:
        """A batch repeated, as by `torch.Tensor.repeat`."""
        return Kronecker(self.channel.repeat(*sizes), self.tap.repeat(*sizes))

    def largest(self) -> float:
        """The largest magnitude of an entry."""
        return float((self.channel.abs().amax((-1, -2)) * self.tap.abs().amax((-1, -2))).max())

    def __mul__(self, factor: float) -> Kronecker:
        return Kronecker(self.channel * factor, self.tap)


Matrix = Tensor | Kronecker


def times(rows: Tensor, matrix: Matrix) -> Tensor:
    """rows @ matrix; of a product O(m c k (c + k)) instead of O(m (c k)^2).

    Args:
        rows: shape (..., m, c k).
    """
    if isinstance(matrix, Tensor):
        return rows @ matrix
    k = matrix.tap.shape[-1]
    by_channel = rows.unflatten(-1, (-1, k)).flatten(-3, -2) @ matrix.tap  # (..., m c, k)
    by_tap = _turned(by_channel, rows.shape[-2]).flatten(-3, -2) @ matrix.channel  # (..., m k, c)
    return _turned(by_tap, rows.shape[-2]).flatten(-2)


def solve_half(rows: Tensor, triangle: Matrix) -> Tensor:
    """rows @ triangle^-1, of a lower triangular matrix or a product of two."""
    if isinstance(triangle, Tensor):
        return solve_triangular(triangle, rows, upper=False, left=False)
    k = triangle.tap.shape[-1]
    by_channel = solve_triangular(triangle.tap, rows.unflatten(-1, (-1, k)).flatten(-3, -2), upper=False, left=False)
    by_tap = solve_triangular(triangle.channel, _turned(by_channel, rows.shape[-2]).flatten(-3, -2), upper=False, left=False)
    return _turned(by_tap, rows.shape[-2]).flatten(-2)


def solve_moment(rows: Tensor, triangle: Matrix) -> Tensor:
    """rows @ (C C^T)^-1 for a lower triangular half C of a moment."""
    if isinstance(triangle, Tensor):
        return torch.cholesky_solve(rows.mT, triangle).mT
    k = triangle.tap.shape[-1]
    by_channel = torch.cholesky_solve(rows.unflatten(-1, (-1, k)).flatten(-3, -2).mT, triangle.tap).mT
    by_tap = torch.cholesky_solve(_turned(by_channel, rows.shape[-2]).flatten(-3, -2).mT, triangle.channel).mT
    return _turned(by_tap, rows.shape[-2]).flatten(-2)


def _turned(flat: Tensor, rows: int) -> Tensor:
    """(..., m a, b) to (..., m, b, a)."""
    return flat.unflatten(-2, (rows, -1)).transpose(-1, -2)


def block(matrix: Matrix, rows: slice, columns: slice) -> Matrix:
    """A block of a moment, whose bounds are those of channels."""
    if isinstance(matrix, Tensor):
        return matrix[..., rows, columns]
    k = matrix.tap.shape[-1]
    first, second = (slice(part.start // k, part.stop // k) for part in (rows, columns))
    return Kronecker(matrix.channel[..., first, second], matrix.tap)


@overload
def diagonal_blocks(matrix: Tensor, count: int) -> Tensor: ...
@overload
def diagonal_blocks(matrix: Matrix, count: int) -> Matrix: ...
def diagonal_blocks(matrix: Matrix, count: int) -> Matrix:
    """The ``count`` diagonal blocks, equally large, of a moment (n, n): shape (count, n / count, n / count)."""
    if isinstance(matrix, Tensor):
        return _diagonal_blocks(matrix, count)
    return Kronecker(_diagonal_blocks(matrix.channel, count), matrix.tap.expand(count, -1, -1))


def _diagonal_blocks(matrix: Tensor, count: int) -> Tensor:
    return matrix.unflatten(0, (count, -1)).unflatten(2, (count, -1)).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def channel_blocks(matrix: Matrix, channels: int) -> Tensor:
    """The blocks of a moment (n, n) that couple the taps of one channel, shape (channels, taps, taps)."""
    if isinstance(matrix, Tensor):
        return _diagonal_blocks(matrix, channels)
    return matrix.channel.diagonal()[:, None, None] * matrix.tap


def permuted(matrix: Matrix, order: Tensor) -> Matrix:
    """A moment (1, n, n) with its channels in another order, int64, shape (channels,)."""
    if isinstance(matrix, Tensor):
        taps = matrix.shape[-1] // len(order)
        columns = (order[:, None] * taps + torch.arange(taps, device=order.device)).flatten()
        return matrix[:, columns][:, :, columns]
    return Kronecker(matrix.channel[:, order][:, :, order], matrix.tap)


def trace(matrix: Matrix) -> Tensor:
    """Shape (...)."""
    if isinstance(matrix, Tensor):
        return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace(matrix.channel) * trace(matrix.tap)
