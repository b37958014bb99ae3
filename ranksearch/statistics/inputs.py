"""What is added up of the inputs of sites: second moments of lowered inputs. Sites that are given the very same tensors, such as the
projections of an attention, share one sum. Accumulators are float64; everything that feeds them is float32."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ranksearch.sites import Site
from ranksearch.statistics.moments import chunks, displaced, displaced_gram, gram, images, lower, pad, symmetrize, to_patch_order
from ranksearch.statistics.shrinkage import Noise

LARGEST = 4608  # im2col dimensions above this are kept as a Kronecker product of a channel and a tap factor


def factored(site: Site) -> bool:
    """Whether the second moment of a site's inputs is kept as two factors, one of channels and one of taps."""
    taps = site.kernel[0] * site.kernel[1]
    return site.kind != "embedding" and taps > 1 and site.c_in // site.groups * taps > LARGEST


class InputSums:
    """The accumulators of what one site, or several, are given."""

    def __init__(self, site: Site, limit: int) -> None:
        self.site, self.limit = site, limit
        self.taps, self.channels = site.kernel[0] * site.kernel[1], site.c_in // site.groups
        self.rows = 0
        g, d = site.groups, self.channels * self.taps
        double = torch.float64
        large = factored(site)
        plain = site.kind != "embedding" and not large
        self.input = torch.zeros(g, d, d, dtype=double) if plain else None
        self.channel = torch.zeros(g, self.channels, self.channels, dtype=double) if large else None
        self.tap = torch.zeros(g, self.taps, self.taps, dtype=double) if large else None
        self.counts = torch.zeros(site.c_in, dtype=double) if site.kind == "embedding" else None
        self.mean = torch.zeros(g, d, dtype=double)
        self.noise = Noise(g, d, self.taps)
        self.shrinkage = torch.zeros(g, dtype=double)

    def add(self, value: Tensor, size: int) -> None:
        """Add the inputs of one call in a forward pass of ``size`` examples."""
        site = self.site
        if len(value) == 1 < size:  # one input for the whole batch, such as the indices of positions
            value = value.expand(size, *value.shape[1:])
        if self.counts is not None:
            indices = value.detach().flatten()
            self.counts += torch.bincount(indices, minlength=site.c_in).to(self.counts)
            self.rows += indices.numel()
            return
        value = images(site, value)
        self._note(value, size)
        if self.input is not None and displaced(site, value.shape[2], value.shape[3]):
            for part in value.split(max(1, self.limit // (4 * value[0].numel()))):
                self._add_displaced(part)
            return
        for part in chunks(site, value, self.limit):
            matrix = lower(site, part).flatten(2)  # (g, taps * c, n)
            self.rows += matrix.shape[2]
            self.mean += matrix.sum(dim=2).to(self.mean)
            if self.input is not None:
                self.input = self.input.to(matrix.device)
                gram(matrix, self.input)
            else:
                assert self.channel is not None and self.tap is not None
                blocks = matrix.unflatten(1, (self.taps, self.channels))
                over_taps = blocks.transpose(1, 2).flatten(2)
                self.channel += (over_taps @ over_taps.mT).to(self.channel)
                over_channels = blocks.flatten(2)
                self.tap += (over_channels @ over_channels.mT).to(self.tap)

    def _add_displaced(self, value: Tensor) -> None:
        """Add the sums that lowered rows would give, without lowering."""
        site = self.site
        assert self.input is not None
        self.input = self.input.to(value.device)
        self.rows += displaced_gram(site, value, self.input)
        padded = pad(site, value)
        windows = lower(site, padded.sum(dim=0, keepdim=True), padded=True)
        self.mean += windows.sum(dim=(2, 3)).to(self.mean)

    def _note(self, value: Tensor, size: int) -> None:
        """Show inputs, shape (batch, c_in, height, width), to the estimate of their noise."""
        site, noise = self.site, self.noise
        probes = noise.probes(value.device, lambda: mean_square(value.transpose(0, 1).reshape(site.groups, self.channels, -1)))
        if site.kind in ("linear", "transformers_conv1d"):
            noise.add(probes @ value.flatten(1).mT, examples=size, batch=size, sequences=True, per_position=True)
            return
        kernels = probes.reshape(-1, self.channels, *site.kernel)
        for part in value.split(max(1, self.limit // (4 * len(kernels) * max(value[0, 0].numel(), 1)))) if len(kernels) else ():
            seen = F.conv2d(pad(site, part), kernels, stride=site.stride, dilation=site.dilation, groups=site.groups)
            by_group = seen.unflatten(1, (site.groups, -1)).permute(1, 2, 0, 3, 4).flatten(2)
            noise.add(by_group, examples=len(part), batch=len(value), sequences=site.kind == "conv1d", per_position=True)

    def settle(self) -> None:
        """Bring what was added into the form in which it is kept: whole symmetric matrices, patches in (c_in, kh, kw) order."""
        if self.input is not None:
            self.input = to_patch_order(self.site, symmetrize(self.input.cpu()), (1, 2))
        if self.counts is None:
            self.mean = to_patch_order(self.site, self.mean, (1,))
        self.shrinkage = self.noise.weight()


class SharedInputs:
    """Which sites of a pass over the data share their inputs: those of one geometry to which every call brings the tensor that the
    same call of another one brought, unchanged. That is found in the forward pass in which a site is called first; a site of which it does
    not hold in a later one is `apart`, and what it was given is to be collected in another pass.

    Args:
        limit: bytes, see `InputSums`.
        sharing: False: every site has sums of its own.
    """

    def __init__(self, limit: int, *, sharing: bool) -> None:
        self._limit, self._sharing = limit, sharing
        self._sums: dict[str, InputSums] = {}
        self._leaders: dict[str, str] = {}  # the site whose sums a site has: itself, or the first with these inputs
        self._calls: dict[str, list[tuple[weakref.ref[Tensor], int] | None]] = {}  # of this forward pass, by site
        self._fresh: set[str] = set()  # sites that had no call before this forward pass
        self._size = 0
        self.apart: set[str] = set()

    def begin(self, size: int) -> None:
        """A forward pass of ``size`` examples begins."""
        self.end()
        self._calls, self._fresh, self._size = {}, set(), size

    def end(self) -> None:
        """A forward pass is done: sites that share were called equally often."""
        for site, leader in self._leaders.items():
            if len(self._calls.get(site, ())) != len(self._calls.get(leader, ())):
                self.apart.add(site)

    def observe(self, site: Site, value: Tensor) -> None:
        """One call of a site."""
        calls = self._calls.setdefault(site.name, [])
        calls.append(_identity(value) if self._sharing else None)
        if site.name not in self._leaders:
            self._fresh.add(site.name)
            self._leaders[site.name] = self._leader(site, value)
        leader = self._leaders[site.name]
        if leader != site.name:
            others = self._calls.get(leader, [])
            if len(others) < len(calls) or not _same(others[len(calls) - 1], value):
                self.apart.add(site.name)
            return
        if site.name not in self._sums:
            self._sums[site.name] = InputSums(site, self._limit)
        self._sums[site.name].add(value, self._size)

    def _leader(self, site: Site, value: Tensor) -> str:
        """The site with sums that was first called in this forward pass too, with this very tensor; or the site itself."""
        if self._sharing and site.kind != "embedding":
            for name in self._fresh & self._sums.keys():
                if _geometry(self._sums[name].site) == _geometry(site) and _same(self._calls[name][0], value):
                    return name
        return site.name

    def settle(self) -> None:
        """The pass over the data is done; see `InputSums.settle`."""
        self.end()
        for sums in self._sums.values():
            sums.settle()

    def of(self, site: Site) -> InputSums:
        """The settled sums of a site; of one that was never called they are zero."""
        leader = self._leaders.get(site.name)
        if leader is None:
            sums = InputSums(site, self._limit)
            sums.settle()
            return sums
        return self._sums[leader]


def _geometry(site: Site) -> tuple[Any, ...]:
    """All that decides what a site's kernel sees of a tensor."""
    return (
        site.kind, site.c_in, site.groups, site.kernel, site.stride, site.padding, site.padding_mode, site.dilation, site.batched,
        site.window,
    )  # fmt: skip


def _identity(value: Tensor) -> tuple[weakref.ref[Tensor], int] | None:
    """A tensor, not kept alive, and how often it was changed in place; None of one that does not count changes."""
    return None if value.is_inference() else (weakref.ref(value), value._version)


def _same(seen: tuple[weakref.ref[Tensor], int] | None, value: Tensor) -> bool:
    return seen is not None and seen[0]() is value and seen[1] == value._version


def mean_square(vectors: Tensor) -> Tensor:
    """Of every channel of (groups, channels, vectors), float64, also where squares are too small for float32."""
    largest = vectors.abs().amax() if vectors.numel() else vectors.new_ones(())
    unit = largest if bool(largest > 0) and bool(largest.isfinite()) else torch.ones_like(largest)
    return (vectors / unit).square().mean(dim=2).double() * unit.double().square()
