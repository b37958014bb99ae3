"""The metric of a weight whose kernel taps are folded, some into the rows and some into the columns of a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ranksearch.decompositions.folding import Folding
from ranksearch.decompositions.kronecker import Kronecker, Matrix, times
from ranksearch.decompositions.metric import Moments, half
from ranksearch.sites import Site


@dataclass(frozen=True)
class FoldedMetric:
    """Conditioned moments in the order of a folding."""

    input: Matrix  # A, shape: (groups, s, c, s, c); of a product the channels', and the taps' with those of the rows first
    output_half: Tensor | None  # C_G, lower triangular, shape: (groups, o, o); None: identity
    taps: Tensor  # marginal of A over c, shape: (groups, s, s); taps (x) channels has the trace of A
    channels: Matrix  # marginal of A over s, shape: (groups, c, c)

    @property
    def exact(self) -> bool:
        """Whether A is the product of its marginals: one of channels and taps, with no taps among the columns."""
        return isinstance(self.input, Kronecker) and isinstance(self.channels, Tensor)


def fold_metric(moments: Moments, folding: Folding, site: Site) -> FoldedMetric | None:
    """Conditioned moments in the order of a folding whose rows are (o, s) and columns c; None without an input moment."""
    if moments.input is None:
        return None
    order, patch, (groups, rows, c) = folding.patch_order, site.shape[1:], folding.shape(site)
    s = rows // (site.c_out // site.groups)
    output_half = None if moments.output is None else half(moments.output)
    if isinstance(moments.input, Kronecker):
        return _fold_product(moments.input, [axis - 1 for axis in order if axis], patch[1:], s, output_half)
    a = moments.input.reshape(groups, *patch, *patch)
    a = a.permute(0, *(1 + i for i in order), *(4 + i for i in order)).reshape(groups, s, c, s, c)
    channels = torch.einsum("gscsd->gcd", a)
    taps = torch.einsum("gsctc->gst", a)
    taps = taps / taps.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    return FoldedMetric(a, output_half, taps, channels)


def _fold_product(a: Kronecker, order: list[int], kernel: tuple[int, ...], s: int, output_half: Tensor | None) -> FoldedMetric:
    """The metric of a product of channels and taps: its taps in ``order``, the first of them, s in number, with the rows."""
    groups = len(a.tap)
    tap = a.tap.reshape(groups, *kernel, *kernel).permute(0, *(1 + i for i in order), *(3 + i for i in order))
    tap = tap.reshape(groups, s, -1, s, a.tap.shape[1] // s)
    within = torch.einsum("gshsk->ghk", tap)
    channels = a.channel * within if within.shape[1] == 1 else Kronecker(a.channel, within)
    taps = torch.einsum("gshth->gst", tap)
    taps = taps / taps.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    return FoldedMetric(Kronecker(a.channel, tap.reshape(a.tap.shape)), output_half, taps, channels)


def applied(metric: FoldedMetric, weight: Tensor) -> Tensor:
    """W A of a folded weight, shape (groups, o, s, c)."""
    groups, o, s, c = weight.shape
    if isinstance(metric.input, Tensor):
        return (weight.reshape(groups, o, s * c) @ metric.input.reshape(groups, s * c, s * c)).reshape(weight.shape)
    by_channel = weight.reshape(groups, o, s, metric.input.channel.shape[1], -1).transpose(2, 3)  # (groups, o, channel, s, side)
    seen = times(by_channel.flatten(2), metric.input).reshape(by_channel.shape)
    return seen.transpose(2, 3).reshape(weight.shape)
