"""What one site's hooks add up in a calibration pass: second moments of its lowered inputs and of the gradients at its
outputs. Accumulators are float64, everything that feeds them float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ranksearch.sites import Site, Sites, mode, unfused
from ranksearch.statistics.moments import (
    chunks,
    displaced,
    displaced_gram,
    gradients,
    gram,
    images,
    lower,
    pad,
    symmetrize,
    to_patch_order,
)
from ranksearch.statistics.shrinkage import Noise

LARGEST = 4608  # im2col dimensions above this are kept as a Kronecker product of a channel and a tap factor


@dataclass(frozen=True)
class SiteStatistics:
    """What was collected at one site: sums over all that was seen, float64, with patches in (c_in, kh, kw) order.

    ``input`` is None where it is kept as ``channel`` and ``tap`` (im2col dimension over ``LARGEST``) or as ``counts``
    (embeddings); ``gradient`` is None where no gradient was asked for."""

    examples: int
    rows: int  # input vectors seen: examples x positions, over all calls
    sampled: int  # examples x label samples that ``gradient`` sums over
    input: Tensor | None  # sum of a a^T over rows, shape: (groups, d, d)
    mean: Tensor  # sum of a over rows, shape: (groups, d)
    input_shrinkage: Tensor  # weight of the diagonal that the noise of the input moment asks for, shape: (groups,)
    gradient: Tensor | None  # sum of g g^T over rows and samples, shape: (groups, c_out / groups, c_out / groups)
    output_shrinkage: Tensor | None  # the same weight for the moment of gradients, shape: (groups,)
    channel: Tensor | None = None  # sum over rows and taps, shape: (groups, c, c)
    tap: Tensor | None = None  # sum over rows and channels, shape: (groups, k, k)
    counts: Tensor | None = None  # how often each row of an embedding was looked up, shape: (c_in,)
    fisher_diagonal: Tensor | None = None  # sum over samples of (dL/dW)^2 per example, canonical weight shape


class Collector:
    """The accumulators of one site, which live as long as one `collect`."""

    def __init__(self, site: Site, limit: int, *, gradient: bool, diagonal: bool) -> None:
        self.site, self.limit = site, limit
        self.diagonal = diagonal and site.kind != "embedding"
        self.taps, self.channels = site.kernel[0] * site.kernel[1], site.c_in // site.groups
        self.examples = self.rows = self.sampled = 0
        self.size = 0
        g, d, o = site.groups, self.channels * self.taps, site.c_out // site.groups
        double = torch.float64
        self.large = d > LARGEST and site.kind != "embedding"
        plain = site.kind != "embedding" and not self.large
        self.input = torch.zeros(g, d, d, dtype=double) if plain else None
        self.channel = torch.zeros(g, self.channels, self.channels, dtype=double) if self.large else None
        self.tap = torch.zeros(g, self.taps, self.taps, dtype=double) if self.large else None
        self.counts = torch.zeros(site.c_in, dtype=double) if site.kind == "embedding" else None
        self.mean = torch.zeros(g, d, dtype=double)
        self.input_noise = Noise(g, d, self.taps)
        self.gradient = torch.zeros(g, o, o, dtype=double) if gradient else None
        self.output_noise = Noise(g, o)
        self.squares = torch.zeros(g, o, d, dtype=double) if self.diagonal else None
        self._weight_gradient: Tensor | None = None  # of the batch at hand, per example, summed over calls

    def begin(self, size: int) -> None:
        self.size = size
        self.examples += size

    def observe_input(self, value: Tensor) -> None:
        site = self.site
        if len(value) == 1 < self.size:  # one input for the whole batch, such as the indices of positions
            value = value.expand(self.size, *value.shape[1:])
        if self.counts is not None:
            indices = value.detach().flatten()
            self.counts += torch.bincount(indices, minlength=site.c_in).to(self.counts)
            self.rows += indices.numel()
            return
        value = images(site, value)
        self._note_input(value)
        if self.input is not None and displaced(site, value.shape[2], value.shape[3]):
            for part in value.split(max(1, self.limit // (4 * value[0].numel()))):
                self._observe_displaced(part)
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

    def _observe_displaced(self, value: Tensor) -> None:
        """Add the sums that lowered rows would give, without lowering."""
        site = self.site
        assert self.input is not None
        self.input = self.input.to(value.device)
        self.rows += displaced_gram(site, value, self.input)
        padded = pad(site, value)
        windows = lower(site, padded.sum(dim=0, keepdim=True), padded=True)
        self.mean += windows.sum(dim=(2, 3)).to(self.mean)

    def _note_input(self, value: Tensor) -> None:
        """Show inputs, shape (batch, c_in, height, width), to the estimate of their noise."""
        site, noise = self.site, self.input_noise
        probes = noise.probes(_mean_square(value.transpose(0, 1).reshape(site.groups, self.channels, -1)))
        if site.kind == "linear":
            noise.add(probes @ value.flatten(1).mT, examples=self.size, batch=self.size, sequences=True, per_position=True)
            return
        kernels = probes.reshape(-1, self.channels, *site.kernel)
        for part in value.split(max(1, self.limit // (4 * len(kernels) * max(value[0, 0].numel(), 1)))) if len(kernels) else ():
            seen = F.conv2d(pad(site, part), kernels, stride=site.stride, dilation=site.dilation, groups=site.groups)
            by_group = seen.unflatten(1, (site.groups, -1)).permute(1, 2, 0, 3, 4).flatten(2)
            noise.add(by_group, examples=len(part), batch=len(value), sequences=site.kind == "conv1d", per_position=True)

    def observe_gradient(self, gradient: Tensor, value: Tensor) -> None:
        site = self.site
        g = gradients(site, gradient)  # (batch, c_out, positions)
        blocks = g.unflatten(1, (site.groups, -1)).permute(1, 2, 0, 3)  # (g, o, batch, positions)
        rows = blocks.flatten(2)
        assert self.gradient is not None
        self.gradient += (rows @ rows.mT).to(self.gradient)
        seen = self.output_noise.probes(_mean_square(rows)) @ rows
        examples = 1 if len(gradient) == 1 else self.size
        self.output_noise.add(seen, examples=examples, batch=examples, sequences=site.kind != "conv2d", per_position=False)
        if self.squares is not None:
            self._accumulate_weight_gradient(g, value, self._apart(gradient, len(g)))

    def _apart(self, gradient: Tensor, rows: int) -> int:
        """How many examples a gradient of so many rows tells apart. Where all examples share one output, the gradient is the sum of
        theirs, and the mean of its square over sampled labels is the sum of their squares. Rows that are no multiple of the batch
        (packed sequences) count one by one."""
        return 1 if len(gradient) == 1 else rows if rows % self.size else self.size

    def _accumulate_weight_gradient(self, g: Tensor, value: Tensor, examples: int) -> None:
        site = self.site
        inputs = images(site, value)
        per_example = []
        count = len(inputs)
        size = max(1, self.limit // (4 * site.c_in * self.taps * max(g.shape[2], 1)))
        for start in range(0, count, size):
            matrix = lower(site, inputs[start : start + size])  # (g, d, n, p)
            part = g[start : start + size].unflatten(1, (site.groups, -1))  # (n, g, o, p)
            per_example.append(part @ matrix.permute(2, 0, 3, 1))  # (n, g, o, d)
        gradient = torch.cat(per_example)
        # a linear layer's tokens are rows of one example
        gradient = gradient.reshape(examples, -1, *gradient.shape[1:]).sum(dim=1)
        self._weight_gradient = gradient if self._weight_gradient is None else self._weight_gradient + gradient

    def end_sample(self) -> None:
        """Square the weight gradients, which are complete once a backward pass has gone through all calls."""
        self.sampled += self.size
        if self.squares is not None and self._weight_gradient is not None:
            self.squares += self._weight_gradient.double().square().sum(dim=0).to(self.squares)
        self._weight_gradient = None

    def result(self) -> SiteStatistics:
        site = self.site
        full = None if self.input is None else to_patch_order(site, symmetrize(self.input.cpu()), (1, 2))
        mean = self.mean if self.counts is not None else to_patch_order(site, self.mean, (1,))
        squares = None
        if self.squares is not None:
            squares = to_patch_order(site, self.squares, (2,)).reshape(site.shape)
        return SiteStatistics(
            self.examples, self.rows, self.sampled, full, mean, self.input_noise.weight(),
            self.gradient, None if self.gradient is None else self.output_noise.weight(),
            self.channel, self.tap, self.counts, squares,
        )  # fmt: skip


def _mean_square(vectors: Tensor) -> Tensor:
    """Of every channel of (groups, channels, vectors), float64, also where squares are too small for float32."""
    largest = vectors.abs().amax() if vectors.numel() else vectors.new_ones(())
    unit = largest if bool(largest > 0) and bool(largest.isfinite()) else torch.ones_like(largest)
    return (vectors / unit).square().mean(dim=2).double() * unit.double().square()


@contextmanager
def observing(model: nn.Module, sites: Sites, collectors: Mapping[str, Collector], *, backward: bool) -> Iterator[None]:
    """The model runs in evaluation mode, its weights are frozen, so that backward passes compute no weight gradients, and the
    collectors are hooked to its sites. Afterwards all this is undone."""
    trainable = {p: p.requires_grad for p in model.parameters()}
    with mode(model, training=False), unfused(), ExitStack() as undone:
        for parameter, flag in trainable.items():
            undone.callback(parameter.requires_grad_, flag)
        model.requires_grad_(False)
        for site in sites:
            for module in {model.get_submodule(path) for path in (site.name, *site.aliases)}:
                handle = module.register_forward_hook(_hook(collectors[site.name], backward), with_kwargs=True)
                undone.callback(handle.remove)
        yield


def _hook(collector: Collector, backward: bool) -> Callable[..., Tensor | None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor | None:
        value = args[0] if args else next(iter(kwargs.values()))
        with torch.no_grad():
            collector.observe_input(value)
        if not backward or not torch.is_grad_enabled():
            return None
        if not output.requires_grad:
            # the first site of a branch; a copy, since the model may change its output in place
            output = output.detach().requires_grad_().clone()
        kept = value.detach() if collector.diagonal else value.new_empty(0)

        def observe(gradient: Tensor) -> None:
            with torch.no_grad():
                collector.observe_gradient(gradient, kept)

        output.register_hook(observe)
        return output

    return hook
