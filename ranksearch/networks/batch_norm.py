"""Statistics of batch norms, re-estimated: a network whose layers were replaced sees other activations than its running
statistics were made for (Decomposable-Net, arXiv 1910.13141, recomputes them; better than a closed form)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ranksearch.errors import InvalidArgument
from ranksearch.sites import evaluating, run
from ranksearch.tensors import pieces

Norm = _BatchNorm | _InstanceNorm


def running_norms(model: nn.Module) -> dict[str, Norm]:
    """The modules of ``model``, by path, that normalize by running statistics in evaluation mode: batch norms, and instance
    norms that track them."""
    norms = ((path, module) for path, module in model.named_modules() if isinstance(module, (_BatchNorm, _InstanceNorm)))
    return {path: norm for path, norm in norms if norm.running_mean is not None}


def recalibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Re-estimate the running statistics of every norm that has them, in place, in one pass over ``batches`` of inputs; nothing
    else of the model changes, and nothing at all if a forward pass raises.

    The new statistics of a batch norm are the mean and the unbiased variance of all values that it sees, taken together in
    float64: batches count by their examples, however unequal they are. Those of an instance norm are the averages over
    examples of each example's own. Meanwhile every norm normalizes by the statistics of the batch at hand, as in training; a
    batch that has one value per channel, which has no variance, by those of the batches before it.

    Args:
        model: any module; all else runs in evaluation mode.
        batches: inputs of forward passes, see `ranksearch.sites.run`. Drawn from only if there is a norm.

    Returns:
        how many norms were re-estimated: those that the batches reached. The others keep their statistics.

    Raises:
        InvalidArgument: no batches.
    """
    norms = list(running_norms(model).values())
    if not norms:
        return 0
    estimates = {norm: _Estimate(norm) for norm in norms}
    with evaluating(model), _kept_unless_done(norms), _hooked(estimates):
        seen = 0
        for batch in batches:
            run(model, batch)
            seen += 1
        if not seen:
            raise InvalidArgument("batches is empty: batch-norm statistics need at least one batch")
        return sum(estimate.write() for estimate in estimates.values())


class _Estimate:
    """Pooled mean and squared deviations of one norm's input (Chan, Golub and LeVeque, 1979), per channel."""

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.calls = 0
        self.count = 0  # values per channel of a batch norm, examples of an instance norm
        self.mean: Tensor | float = 0.0
        self.square: Tensor | float = 0.0  # sum of squared deviations; of an instance norm the sum of variances

    def add(self, x: Tensor) -> None:
        """Take in one input of the norm, and let the norm normalize by it."""
        self.calls += 1
        if isinstance(self.norm, _BatchNorm):
            count, mean, square = _deviations(x)
            shift = mean - self.mean
            self.square = self.square + square + shift.square() * (self.count * count / max(self.count + count, 1))
            alone = square / max(count, 1)
        else:
            values = (x if x.dim() == _dimensions(self.norm) else x[None]).double().flatten(2)  # (examples, channels, values)
            count, mean = len(values), values.mean(dim=2).mean(dim=0)
            variance = values.var(dim=2, correction=min(1, values.shape[2] - 1))
            self.square = self.square + variance.sum(dim=0)
            shift, alone = mean - self.mean, variance.mean(dim=0)
        self.mean = self.mean + shift * (count / max(self.count + count, 1))
        self.count += count
        if isinstance(self.norm, _InstanceNorm) or count > 1:
            self._set(mean, alone)
        elif self.count > 1:
            self._set(torch.as_tensor(self.mean), torch.as_tensor(self.square) / self.count)

    def write(self) -> bool:
        """Make the estimate the norm's running statistics; False if it saw nothing."""
        if not self.count:
            return False
        left = max(self.count - 1, 1) if isinstance(self.norm, _BatchNorm) else self.count
        self._set(torch.as_tensor(self.mean), torch.as_tensor(self.square) / left)
        if self.norm.num_batches_tracked is not None:
            self.norm.num_batches_tracked.fill_(self.calls)
        return True

    def _set(self, mean: Tensor, variance: Tensor) -> None:
        for buffer, value in ((self.norm.running_mean, mean), (self.norm.running_var, variance)):
            assert buffer is not None  # `running_norms` took none without
            buffer.copy_(value)


def _deviations(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many values of shape (batch, channels, ...) every channel has, their mean and the sum of their squared deviations from it,
    float64; piece by piece, by the same formula as batch by batch."""
    count, mean, square = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for (part,) in pieces(x):
        values = part.transpose(0, 1).flatten(1).double()  # (channels, values)
        new, here = values.shape[1], values.mean(dim=1)
        shift = here - mean
        square = square + (values - here[:, None]).square().sum(dim=1) + shift.square() * (count * new / max(count + new, 1))
        mean = mean + shift * (new / max(count + new, 1))
        count += new
    return count, mean, square


def _dimensions(norm: _InstanceNorm) -> int:
    """Of a batched input."""
    kinds = ((nn.InstanceNorm1d, 3), (nn.InstanceNorm2d, 4), (nn.InstanceNorm3d, 5))
    return next((dimensions for kind, dimensions in kinds if isinstance(norm, kind)), 0)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms normalize by their batch although they are in evaluation mode, which is what re-estimated statistics converge to;
    by their running statistics where a batch has one value per channel. These are afterwards as they were."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(norm, vars(norm).get("forward"), norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:  # no hook, after which another may let other batches pass (`lockstep`)
        vars(norm)["forward"] = _by_batch(norm, norm.forward, (norm.running_mean, norm.running_var))
    try:
        yield
    finally:
        for norm, forward, mean, variance in kept:
            norm.running_mean, norm.running_var = mean, variance
            if forward is None:
                del vars(norm)["forward"]
            else:
                vars(norm)["forward"] = forward


def _by_batch(norm: _BatchNorm, forward: Callable[..., Tensor], running: tuple[Tensor | None, Tensor | None]) -> Callable[..., Tensor]:
    """A norm's forward pass by the statistics of its batch, which evaluation takes where there are no others."""

    def passed(*args: Any, **kwargs: Any) -> Tensor:
        x = args[0] if args else kwargs["input"]
        norm.running_mean, norm.running_var = running if x.numel() <= x.shape[1] else (None, None)
        return forward(*args, **kwargs)

    return passed


@contextmanager
def re_estimated(network: nn.Module, batches: Iterable[Any]) -> Iterator[None]:
    """Running statistics are those that `recalibrate` gives; afterwards they are as they were."""
    norms = list(running_norms(network).values())
    kept = _copies(norms)
    recalibrate(network, batches)
    try:
        yield
    finally:
        _restore(norms, kept)


@contextmanager
def _hooked(estimates: dict[Norm, _Estimate]) -> Iterator[None]:
    def before(estimate: _Estimate) -> Any:
        return lambda _norm, args, kwargs: estimate.add(args[0] if args else kwargs["input"])

    handles = [norm.register_forward_pre_hook(before(estimate), with_kwargs=True) for norm, estimate in estimates.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _kept_unless_done(norms: list[Norm]) -> Iterator[None]:
    kept = _copies(norms)
    try:
        yield
    except BaseException:
        _restore(norms, kept)
        raise


def _copies(norms: Sequence[Norm]) -> list[dict[str, Tensor]]:
    return [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]


@torch.no_grad()
def _restore(norms: Sequence[Norm], kept: Sequence[dict[str, Tensor]]) -> None:
    for norm, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            norm.get_buffer(name).copy_(buffer)
