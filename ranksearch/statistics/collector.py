"""What one site's hooks add up in a calibration pass: second moments of its lowered inputs and of the gradients at its
outputs. Accumulators are float64; everything that feeds them is float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch.sites import Site, mode, unfused
from ranksearch.statistics.inputs import SharedInputs, mean_square
from ranksearch.statistics.moments import gradients, images, lower, to_patch_order
from ranksearch.statistics.shrinkage import Noise


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
    """What is collected at one site in a pass over the data.

    Args:
        inputs: of all sites of the pass.
        limit: bytes of lowered inputs held at a time.
    """

    def __init__(self, site: Site, inputs: SharedInputs, limit: int, *, gradient: bool, diagonal: bool) -> None:
        self.site, self.limit = site, limit
        self._inputs = inputs
        self.diagonal = diagonal and site.kind != "embedding"
        self.examples = self.sampled = self.size = 0
        g, d, o = site.groups, site.c_in // site.groups * site.kernel[0] * site.kernel[1], site.c_out // site.groups
        self.gradient = torch.zeros(g, o, o, dtype=torch.float64) if gradient else None
        self.output_noise = Noise(g, o)
        self.squares = torch.zeros(g, o, d, dtype=torch.float64) if self.diagonal else None
        self._weight_gradient: Tensor | None = None  # of the batch at hand, per example, summed over calls

    def begin(self, size: int) -> None:
        self.size = size
        self.examples += size

    def observe_input(self, value: Tensor) -> None:
        self._inputs.observe(self.site, value)

    def observe_gradient(self, gradient: Tensor, value: Tensor) -> None:
        site = self.site
        g = gradients(site, gradient)  # (batch, c_out, positions)
        blocks = g.unflatten(1, (site.groups, -1)).permute(1, 2, 0, 3)  # (g, o, batch, positions)
        rows = blocks.flatten(2)
        assert self.gradient is not None
        self.gradient = self.gradient.to(rows.device)
        self.gradient += (rows @ rows.mT).double()
        seen = self.output_noise.probes(rows.device, lambda: mean_square(rows)) @ rows
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
        """Add the weight gradient of every example. The rows of an example, such as the tokens of a linear layer, are summed by the
        product itself: a matrix for each of them would take as many times the memory."""
        site, inputs = self.site, images(self.site, value)
        rows = len(inputs) // examples
        size = max(1, self.limit // (4 * site.c_in * site.kernel[0] * site.kernel[1] * max(g.shape[2], 1) * rows))
        per_example = []
        for start in range(0, len(inputs), size * rows):
            chosen = slice(start, start + size * rows)
            matrix = lower(site, inputs[chosen]).unflatten(2, (-1, rows)).flatten(3)  # (g, d, n, rows x p)
            part = g[chosen].unflatten(0, (-1, rows)).unflatten(2, (site.groups, -1))  # (n, rows, g, o, p)
            per_example.append(part.permute(0, 2, 3, 1, 4).flatten(3) @ matrix.permute(2, 0, 3, 1))  # (n, g, o, d)
        gradient = torch.cat(per_example)
        self._weight_gradient = gradient if self._weight_gradient is None else self._weight_gradient + gradient

    def end_sample(self) -> None:
        """Square the weight gradients, which are complete once a backward pass has gone through all calls."""
        self.sampled += self.size
        if self.squares is not None and self._weight_gradient is not None:
            squares = torch.zeros_like(self._weight_gradient[0], dtype=torch.float64)
            for example in self._weight_gradient:  # one by one: in float64 all take twice the memory
                squares += example.double().square()
            self.squares += squares.to(self.squares)
        self._weight_gradient = None

    def result(self) -> SiteStatistics:
        """What was collected, once the inputs of the pass are settled."""
        site, inputs = self.site, self._inputs.of(self.site)
        squares = None
        if self.squares is not None:
            squares = to_patch_order(site, self.squares, (2,)).reshape(site.shape)
        return SiteStatistics(
            self.examples, inputs.rows, self.sampled, inputs.input, inputs.mean, inputs.shrinkage,
            None if self.gradient is None else self.gradient.cpu(), None if self.gradient is None else self.output_noise.weight(),
            inputs.channel, inputs.tap, inputs.counts, squares,
        )  # fmt: skip


@contextmanager
def observing(model: nn.Module, collectors: Mapping[str, Collector], *, backward: bool) -> Iterator[None]:
    """The model runs in evaluation mode, its weights are frozen, so that backward passes compute no weight gradients, and the
    collectors are hooked to its sites. Afterwards all this is undone."""
    trainable = {p: p.requires_grad for p in model.parameters()}
    with mode(model, training=False), unfused(), ExitStack() as undone:
        for parameter, flag in trainable.items():
            undone.callback(parameter.requires_grad_, flag)
        model.requires_grad_(False)
        for collector in collectors.values():
            for module in {model.get_submodule(path) for path in (collector.site.name, *collector.site.aliases)}:
                handle = module.register_forward_hook(_hook(collector, backward), with_kwargs=True)
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
