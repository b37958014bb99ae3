"""Running a model in another mode than it is in, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.amp.autocast_mode import is_autocast_available

from ranksearch.sites.forward import device_of


@contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Each module of ``model`` has afterwards the mode that it had, whatever the block did to it."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """``model`` in training or evaluation mode; afterwards each of its modules has the mode that it had. Modules of one
    model need not agree: a frozen batch norm stays in evaluation mode."""
    with preserved_modes(model):
        model.train(training)
        yield


@contextmanager
def unfused() -> Iterator[None]:
    """Attention and transformer layers call their submodules: PyTorch's fused kernel for evaluation mode bypasses them, so that
    hooks on them would see nothing."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def outside_autocast(model: nn.Module) -> Iterator[None]:
    """Everything in the type that it has, also where the caller is within `torch.autocast`: that keeps casts of weights to its end, and
    sees none of what is written into these meanwhile. Nor are casts kept within a model that has an autocast of its own."""
    with ExitStack() as entered:
        for kind in {"cpu", device_of(model).type}:
            if is_autocast_available(kind):
                entered.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode, without gradients and without fused kernels; all is afterwards as it was."""
    with mode(model, training=False), unfused(), torch.no_grad():
        yield
