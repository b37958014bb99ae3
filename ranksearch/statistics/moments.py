"""The arithmetic of calibration statistics: lowering of inputs to im2col rows, Gram matrices of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ranksearch.decompositions import Kronecker
from ranksearch.sites import Pair, Site, Window

PIECE = 1 << 12  # positions whose products are summed in float32, before sums are added up in float64
BLOCKS = 4  # a Gram matrix is computed in so many row blocks, from the diagonal on: (1 + 1/4) / 2 of its full price


def padding(site: Site) -> tuple[Pair, Pair]:
    """((left, right), (top, bottom)) padding of a site, "same" resolved as torch does (the odd one at the end)."""
    if site.padding == "same":
        totals = [d * (k - 1) for d, k in zip(site.dilation, site.kernel, strict=True)]
        (top, bottom), (left, right) = ((t // 2, t - t // 2) for t in totals)
        return (left, right), (top, bottom)
    height, width = site.padding
    return (width, width), (height, height)


def images(site: Site, value: Tensor) -> Tensor:
    """The input of a site as (batch, c_in, height, width), detached float32: tokens of linear layers become a batch, and the windows of a
    3-D or transposed convolution the rows of an image that is one window wide."""
    value = value.detach()
    if site.window is not None:
        return windows(site.window, value if site.batched else value.unsqueeze(0)).float()
    if site.kind == "conv2d":
        value = value if value.ndim == 4 else value.unsqueeze(0)
    elif site.kind == "conv1d":
        value = (value if value.ndim == 3 else value.unsqueeze(0)).unsqueeze(2)
    else:
        value = value.reshape(-1, site.c_in, 1, 1)
    return value.float()


def gradients(site: Site, value: Tensor) -> Tensor:
    """The gradient at a site's output as (batch, c_out, positions), detached float32."""
    value = value.detach()
    if site.window is not None or site.kind in ("conv2d", "conv1d"):
        dims = 2 if site.kind == "conv2d" else 1 if site.window is None else len(site.window.kernel)
        value = value if value.ndim == dims + 2 else value.unsqueeze(0)
        return value.flatten(2).float()
    return value.reshape(-1, site.c_out, 1).float()


def windows(window: Window, value: Tensor) -> Tensor:
    """What the kernel meets at every output position: (batch, c_in, *sizes) to (batch, c_in, positions, places of the kernel). Of a
    transposed convolution it is what an ordinary one would meet that computes the same (Dumoulin and Visin 2016, section 4): the
    input with stride - 1 zeros between its values, the kernel reversed."""
    dims = len(window.kernel)
    reach = [d * (k - 1) for d, k in zip(window.dilation, window.kernel, strict=True)]
    if window.transposed:
        assert window.padding != "same"
        for axis, stride in enumerate(window.stride, start=2):
            spread = value.new_zeros(*value.shape[:axis], (value.shape[axis] - 1) * stride + 1, *value.shape[axis + 1 :])
            spread[(slice(None),) * axis + (slice(None, None, stride),)] = value
            value = spread
        edges = [(r - p, r - p + o) for r, p, o in zip(reach, window.padding, window.output_padding, strict=True)]
    elif window.padding == "same":
        edges = [(r // 2, r - r // 2) for r in reach]
    else:
        edges = [(p, p) for p in window.padding]
    mode = "constant" if window.padding_mode == "zeros" else window.padding_mode
    value = F.pad(value, [n for pair in reversed(edges) for n in pair], mode=mode) if any(map(any, edges)) else value
    for axis in range(dims):
        step = 1 if window.transposed else window.stride[axis]
        value = value.unfold(2 + axis, reach[axis] + 1, step)[..., :: window.dilation[axis]]
    if window.transposed:
        value = value.flip(tuple(range(2 + dims, 2 + 2 * dims)))
    return value.flatten(2 + dims).flatten(2, 1 + dims)


def pad(site: Site, value: Tensor) -> Tensor:
    """The input of a site with its padding in place, which is what the kernel runs over."""
    (left, right), (top, bottom) = padding(site)
    if not (left or right or top or bottom):
        return value
    return F.pad(value, (left, right, top, bottom), mode="constant" if site.padding_mode == "zeros" else site.padding_mode)


def lower(site: Site, value: Tensor, *, padded: bool = False) -> Tensor:
    """im2col of (batch, c_in, height, width), rows in (tap, channel) order: (groups, taps * c_in / groups, batch,
    positions). The order makes every tap one contiguous copy; see `to_patch_order` for the way back."""
    value = value if padded else pad(site, value)
    kh, kw = site.kernel
    (sh, sw), (dh, dw) = site.stride, site.dilation
    height = (value.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (value.shape[3] - dw * (kw - 1) - 1) // sw + 1
    per_group = site.c_in // site.groups
    rows = value.new_empty((site.groups, kh * kw, per_group, value.shape[0], height, width))
    channels_first = value.transpose(0, 1).reshape(site.groups, per_group, *value.shape[:1], *value.shape[2:])
    for i in range(kh):
        for j in range(kw):
            top_, left_ = i * dh, j * dw
            rows[:, i * kw + j] = channels_first[
                ..., top_ : top_ + sh * (height - 1) + 1 : sh, left_ : left_ + sw * (width - 1) + 1 : sw
            ]
    return rows.reshape(site.groups, kh * kw * per_group, value.shape[0], height * width)


def chunks(site: Site, value: Tensor, limit: int) -> Iterator[Tensor]:
    """Parts of a batch whose lowered matrix stays below ``limit`` bytes (at least one example each)."""
    (left, right), (top, bottom) = padding(site)
    (sh, sw), (dh, dw), (kh, kw) = site.stride, site.dilation, site.kernel
    height = (value.shape[2] + top + bottom - dh * (kh - 1) - 1) // sh + 1
    width = (value.shape[3] + left + right - dw * (kw - 1) - 1) // sw + 1
    size = max(1, limit // (4 * site.c_in * kh * kw * max(height * width, 1)))
    yield from value.split(size)


def gram(rows: Tensor, out: Tensor) -> None:
    """Add rows @ rows^T to ``out``: rows float32 (groups, d, n), out float64 (groups, d, d). Only the blocks on and
    above the diagonal are multiplied; `symmetrize` fills the rest."""
    d = rows.shape[1]
    step = max(64, -(-d // BLOCKS))
    for start in range(0, d, step):
        out[:, start : start + step, start:] += rows[:, start : start + step] @ rows[:, start:].mT


def displaced(site: Site, height: int, width: int) -> bool:
    """Whether `displaced_gram` pays: it does where taps overlap and the border is short against the area."""
    kh, kw = site.kernel
    return site.stride == (1, 1) and kh * kw > 1 and height >= 2 * (kh - 1) * site.dilation[0] and width >= 2 * (kw - 1) * site.dilation[1]


def displaced_gram(site: Site, value: Tensor, out: Tensor) -> int:
    """Add the im2col second moment of (batch, c_in, height, width) to the upper triangle of ``out``, in (tap, channel)
    order, without lowering; returns how many rows it sums. Stride 1 only.

    The block of two taps depends on their displacement alone, but for the border: it is the autocorrelation of the
    whole input at that displacement, less the rows and columns that the first tap's window leaves out (inclusion and
    exclusion). A 3 x 3 kernel has 13 displacements for its 45 blocks, so this is several times cheaper."""
    (left, right), (top, bottom) = padding(site)
    if site.padding_mode != "zeros":
        value = pad(site, value)
        left = right = top = bottom = 0
    (kh, kw), (dh, dw) = site.kernel, site.dilation
    n, _, height, width = value.shape
    window = height + top + bottom - dh * (kh - 1), width + left + right - dw * (kw - 1)
    c = site.c_in // site.groups
    product = _Autocorrelation(value, site)
    for first in range(kh * kw):
        i, j = divmod(first, kw)
        for second in range(first, kh * kw):
            dr, dc = (second // kw - i) * dh, (second % kw - j) * dw
            rows = _left_out(i * dh - top, window[0], height, dr)
            columns = _left_out(j * dw - left, window[1], width, dc)
            block = out[:, first * c : (first + 1) * c, second * c : (second + 1) * c]
            block += product(dr, dc)
            for row in rows:
                block -= product(dr, dc, row=row)
            for column in columns:
                block -= product(dr, dc, column=column)
                for row in rows:
                    block += product(dr, dc, row=row, column=column)
    return n * window[0] * window[1]


def _left_out(start: int, length: int, size: int, shift: int) -> list[int]:
    """Positions of the input outside [start, start + length) whose partner, ``shift`` further, is inside the input."""
    return [r for r in range(max(0, -shift), size - max(0, shift)) if not start <= r < start + length]


class _Autocorrelation:
    """Sums of x_p x_q^T over positions p of the input and q at a displacement from p; every one is computed once."""

    def __init__(self, value: Tensor, site: Site) -> None:
        """
        Args:
            value: shape (batch, c_in, height, width).
        """
        self._site = site
        self._maps = value.transpose(0, 1).unflatten(0, (site.groups, -1))  # (groups, c, batch, height, width)
        convolved = site.groups == 1 and value.device.type == "cpu" and value.dtype == torch.float32
        self._everywhere = _correlations(value, site) if convolved and torch.backends.mkldnn.is_available() else None
        self._known: dict[tuple[int, int, int | None, int | None], Tensor] = {}

    def __call__(self, down: int, right: int, *, row: int | None = None, column: int | None = None) -> Tensor:
        """The sum at displacement (down, right), down at least 0, over p everywhere or in one row, one column or both; float64, shape
        (groups, c, c)."""
        key = down, right, row, column
        if key not in self._known:
            if row is None and column is None and self._everywhere is not None:
                (_, kw), (dh, dw) = self._site.kernel, self._site.dilation
                self._known[key] = self._everywhere[None, :, :, down // dh, right // dw + kw - 1]
            else:
                one, two = self._pair(*key)
                self._known[key] = (one @ two.mT).double()
        return self._known[key]

    def _pair(self, down: int, right: int, row: int | None, column: int | None) -> tuple[Tensor, Tensor]:
        """The values at p and at q, shape (groups, c, positions)."""
        if row is None and column is None:
            shift = down * self._grid.shape[4] + right
            flat = self._grid.flatten(2)
            return flat[..., : flat.shape[2] - shift], flat[..., shift:]
        height, width = self._maps.shape[3:]
        rows = slice(0, height - down) if row is None else slice(row, row + 1)
        columns = slice(max(0, -right), width - max(0, right)) if column is None else slice(column, column + 1)
        partner = self._maps[..., rows.start + down : rows.stop + down, columns.start + right : columns.stop + right]
        return self._maps[..., rows, columns].flatten(2), partner.flatten(2)

    @cached_property
    def _grid(self) -> Tensor:
        """The maps with gaps of zeros between rows and between images, so that a displacement is one shift of the flat index."""
        (kh, kw), (dh, dw) = self._site.kernel, self._site.dilation
        height, width = self._maps.shape[3:]
        grid = self._maps.new_zeros(*self._maps.shape[:3], height + dh * (kh - 1), width + dw * (kw - 1))
        grid[..., :height, :width] = self._maps
        return grid


def _correlations(value: Tensor, site: Site) -> Tensor:
    """The sums of x_p x_q^T over all positions, for every displacement that taps of a kernel have, those upwards left out: float64, shape
    (c, c, kh, 2 kw - 1). They are the gradient of the weight of a convolution over x with x as the gradient of its output, which the
    processor's library computes 1.6 times as fast as one product of matrices per displacement."""
    (kh, kw), (dh, dw) = site.kernel, site.dilation
    shape = value.shape[1], value.shape[1], kh, 2 * kw - 1
    geometry: dict[str, Any] = {"dilation": (dh, dw)}
    found = value.new_zeros(shape, dtype=torch.float64)
    for part in value.split(max(1, PIECE // (value.shape[2] * value.shape[3]))):
        part = part.contiguous(memory_format=torch.channels_last)
        around = F.pad(part, ((kw - 1) * dw, (kw - 1) * dw, 0, (kh - 1) * dh))
        found += conv2d_weight(around, shape, part, **geometry)
    return found


def symmetrize(value: Tensor) -> Tensor:
    """The full symmetric matrix of one filled by `gram`, in the memory of that."""
    value.triu_()
    return value.add_(value.triu(1).mT)


def to_patch_order(site: Site, value: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Axes ``dims`` from (tap, channel) to the canonical (channel, tap) order."""
    taps, channels = site.kernel[0] * site.kernel[1], site.c_in // site.groups
    if 1 in (taps, channels):  # the two orders are one
        return value
    found = value
    for dim in sorted(dims, reverse=True):  # views first: all axes are copied at once
        found = found.unflatten(dim, (taps, channels)).transpose(dim, dim + 1)
    return found.reshape(value.shape)


def kronecker(channel: Tensor, tap: Tensor) -> Kronecker:
    """The im2col second moment from its two marginals, channel (groups, c, c) summed over taps and tap (groups, k, k)
    summed over channels: their Kronecker product divided by the common trace."""
    trace = tap.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    return Kronecker(channel, tap / trace[:, None, None])
