"""A compressed network learns the dense one's answers as a whole, without labels: all parameters together make up for what fits of one
layer after the other leave over (network-wise reconstruction; the loss is that of Hinton et al., arXiv 1503.02531)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.networks.batch_norm import batch_statistics, running_norms
from ranksearch.networks.recovery.rates import factor_steps
from ranksearch.sites import BatchDim, batch_size, device_of, evaluating, mode, outside_autocast, run, tensors_of, unfused
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra
from ranksearch.statistics.memory import device_memory
from ranksearch.tasks import Task
from ranksearch.tasks.task import mean_distance

RATES = 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003  # of the longest steps, relative to weights: the first that the network bears is taken
WARM = 5  # steps in which the rate grows
PROVED = 16  # steps after which a rate is kept or given up
RISE = 1.1  # the losses of these relative to those of the network that was not trained, from which on a rate is given up
BROKEN = 3.0  # that of a single step relative to the largest of these
SMALLEST = 1e-3  # root mean square that a parameter counts as, at least (Adafactor, arXiv 1804.04235, section 8)
COPIES = 5  # of a network's parameters that are held at once: at the start, gradients, Adam's two moments, and a copy of 32 bits

ROOM = 0.5  # of the memory of the device that these may take

Divergence = Callable[[Any, Any], Tensor | None]  # (outputs, those of the dense network) -> scalar
Batches = Callable[[], Iterable[Any]]


def distill(
    network: nn.Module,
    spectra: Spectra,
    configuration: Configuration,
    batches: Batches,
    *,
    steps: int,
    divergence: Divergence | None = None,
    kept: Callable[[], bool] | None = None,
) -> float:
    """Train all parameters of a network, in place, to answer as the dense one does.

    Every step takes one batch, and no labels. No rate has to be found: Adam moves every parameter by a share of the root mean square of
    its entries (Adafactor, arXiv 1804.04235), and factors by that share of what changes their layer's weight by its own norm
    (`factor_steps`); the share grows for five steps and then falls to 0 by a cosine. Its largest is the first of ``RATES`` with which the
    losses of the first 16 steps are no more than a tenth above those of the network as it was, on the same batches; after a larger one the
    network begins anew. So a network that is far from the dense one takes long steps, and one that is near it short ones.

    The network is in evaluation mode, but for batch norms, which normalize by their batch and keep their running statistics: call
    `recalibrate` afterwards. Parameters that the user froze learn as well, as they do in `reconstruct`; for weights in half precision a
    copy of 32 bits learns. Weights of few bits stay as they are.

    Args:
        network: from `build`, with the same ``spectra`` and ``configuration``, its factors changed since or not.
        spectra: the dense network, which does not change, and its types.
        configuration: types and ranks.
        batches: gives batches of inputs, see `ranksearch.sites.run`, from the start whenever it is called: again, when all were used.
            Rates are proved on the first 16, which stay in memory: best those that the network was not fitted to, whose losses can
            only rise.
        steps: at least 0.
        divergence: of outputs from the dense network's, such as `Task.divergence`; where it gives None, and by default, the mean over the
            tensors of an output of the squared distance relative to their square.
        kept: asked once it has learned; False: what it learned is undone.

    Returns:
        the rate that it learned at; 0: the network is as it was, since there was no step, it bore no rate, no gradient comes from its
        outputs to its parameters, or what it learned was not kept.

    Raises:
        InvalidArgument: ``steps`` negative, no batches, or a network of another configuration.
        RuntimeError: torch has no gradient of what the network does, or no memory for it. The network is as it was.
    """
    checks.whole("steps", steps, least=0)
    parameters = [p for p in network.parameters() if p.is_floating_point() and p.numel()]
    if not steps or not parameters:
        return 0.0
    with outside_autocast(network):
        sizes = factor_steps(network, spectra, configuration)
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        stream = _again(_normalized(batches, network, spectra.sites.batch_dim))
        work = _Work(network, spectra.model, list(islice(stream, min(PROVED, steps))), stream, divergence, steps)
        start = [parameter.detach().clone() for parameter in parameters]

        def begin_anew() -> None:
            with torch.no_grad():
                for parameter, first in zip(parameters, start, strict=True):
                    parameter.copy_(first)

        rate, learned, done = 0.0, False, False
        try:
            with _trained(network, parameters):
                before = work.losses()
                for rate in RATES if before else ():
                    begin_anew()
                    learning = [_Learning(parameter, sizes.get(names[id(parameter)])) for parameter in parameters]
                    if learned := work.learn(learning, rate, before):
                        break
            done = learned and (kept is None or kept())
        finally:
            if not done:
                begin_anew()
        return rate if done else 0.0


@dataclass(frozen=True)
class _Work:
    """A network that is taught, and by what."""

    network: nn.Module
    model: nn.Module
    first: Sequence[Any]  # batches, on which rates are proved
    later: Iterator[Any]  # all that follow, drawn once
    divergence: Divergence | None
    steps: int

    def losses(self) -> list[float]:
        """Of the first steps' batches, by the network as it is; none where it learns nothing, since no gradient comes to its outputs."""
        found = []
        for inputs in self.first:
            loss = self._loss(inputs)
            if not loss.requires_grad:
                return []
            found.append(float(loss.detach()))
        return found

    def learn(self, learning: Sequence[_Learning], rate: float, before: Sequence[float]) -> bool:
        """Take all steps; False where losses rise, and the network is of no use."""
        optimizer = torch.optim.Adam([{"params": [one.copy], "lr": rate * one.size} for one in learning])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, self.steps))
        losses: list[float] = []
        for inputs in islice(chain(self.first, self.later), self.steps):
            loss = self._loss(inputs)
            losses.append(float(loss.detach()))
            if not _borne(losses, before):
                return False
            loss.backward()
            for one in learning:
                one.take_gradient()
            optimizer.step()
            schedule.step()
            for one in learning:
                one.write()
        return True

    def _loss(self, inputs: Any) -> Tensor:
        with evaluating(self.model):
            wanted = run(self.model, inputs)
        return apart(run(self.network, inputs), wanted, self.divergence)


def unseen_first(task: Task, count: int, *, seen: int, kept: int = 0) -> Iterator[Any]:
    """At most ``count`` batches of inputs that nothing has seen, and then those that something was fitted to: what a network is best
    taught on (`distill`).

    Args:
        task: whose `Task.calibration` gives batches.
        count: at least 1.
        seen: so many of the first batches were fitted to.
        kept: of those that follow, which are kept from it since networks are judged on them.
    """
    yield from islice(task.calibration(seen + kept + count), seen + kept, None)
    if seen:
        yield from task.calibration(seen)


def no_room(network: nn.Module) -> str | None:
    """Why there is not enough memory to train a network, or None."""
    device = device_of(network)
    needed, room = COPIES * sum(p.numel() * max(p.itemsize, 4) for p in network.parameters()), ROOM * device_memory(device)
    if needed <= room:
        return None
    return f"training it takes {needed / 2**30:.1f} GiB beside its answers, over the {room / 2**30:.1f} that are taken here"


def apart(outputs: Any, wanted: Any, divergence: Divergence | None = None) -> Tensor:
    """How far outputs are from those of the dense network, a scalar: by ``divergence``, or else by the squared distance relative to the
    square of what is wanted, the mean over all tensors of floating-point numbers."""
    found = None if divergence is None else divergence(outputs, wanted)
    if found is not None:
        return found
    errors = [mean_distance(one, other) for one, other in zip(_numbers(outputs), _numbers(wanted), strict=True)]
    return torch.stack(errors).mean() if errors else torch.zeros(())


def _numbers(outputs: Any) -> list[Tensor]:
    return [tensor for _, tensor in tensors_of(outputs) if tensor.is_floating_point()]


def _borne(losses: Sequence[float], before: Sequence[float]) -> bool:
    """Whether losses so far say nothing against a rate: the last alone, and, once there are enough, those at the full rate together."""
    if not math.isfinite(losses[-1]):
        return False
    if len(losses) > len(before):
        return True
    if len(losses) == len(before):
        first = min(WARM, len(before) - 1)
        return sum(losses[first:]) <= RISE * sum(before[first:])
    return losses[-1] <= BROKEN * max(before)


def _share(step: int, steps: int) -> float:
    """Of the longest step."""
    return min(1.0, (step + 1) / WARM) * (1 + math.cos(math.pi * step / steps)) / 2


def _again(batches: Batches) -> Iterator[Any]:
    """All batches, over and over."""
    while True:
        count = 0
        for inputs in batches():
            count += 1
            yield inputs
        if not count:
            raise InvalidArgument("batches gives none: at least one is needed")


def _normalized(batches: Batches, network: nn.Module, batch_dim: BatchDim) -> Batches:
    """Without batches of a single example, by which a norm may not be able to normalize, where there are batch norms and the first batch
    has more: the last one of a data set may be such."""
    if not running_norms(network):
        return batches

    def several() -> Iterator[Any]:
        first = 0
        for inputs in batches():
            size = batch_size(inputs, batch_dim)
            first = first or size
            if size > 1 or first == 1:
                yield inputs

    return several


class _Learning:
    """A parameter, and what the optimiser holds of it: itself, or a copy of 32 bits.

    Args:
        size: root mean square of a change of its entries that counts as 1; None: that of its entries."""

    def __init__(self, parameter: nn.Parameter, size: float | None) -> None:
        self.parameter = parameter
        self.copy = parameter if parameter.dtype.itemsize >= 4 else nn.Parameter(parameter.detach().float())
        self.size = max(float(self.copy.detach().square().mean().sqrt()), SMALLEST) if size is None else size

    def take_gradient(self) -> None:
        gradient = self.parameter.grad
        if gradient is not None and gradient.is_sparse:  # of an embedding that asks for it; Adam takes none
            gradient = gradient.to_dense()
        self.parameter.grad = None
        self.copy.grad = None if gradient is None else gradient.to(self.copy.dtype)

    @torch.no_grad()
    def write(self) -> None:
        self.copy.grad = None
        if self.copy is not self.parameter:
            self.parameter.copy_(self.copy)


@contextmanager
def _trained(network: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """All parameters take gradients, and batch norms normalize by their batch; afterwards all this is undone."""
    with mode(network, training=False), unfused(), batch_statistics(network), torch.enable_grad(), ExitStack() as undone:
        for parameter in parameters:
            undone.callback(_released, parameter, parameter.requires_grad, parameter.grad)
            parameter.grad = None
            parameter.requires_grad_(True)
        yield


def _released(parameter: nn.Parameter, flag: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(flag)
    parameter.grad = gradient
