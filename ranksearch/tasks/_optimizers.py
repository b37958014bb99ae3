"""Torch's optimizers without torch's compiler: the first optimizer that a process makes imports ``torch._dynamo``, since its methods are
excluded from compilation there, and that takes a second. Training here runs eagerly, so the methods are taken as they are below that
exclusion; they compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _bare(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method below what torch wraps around it; the method itself where nothing is."""
    return getattr(method, "__wrapped__", method)


class _Eager(torch.optim.Optimizer):
    add_param_group = _bare(torch.optim.Optimizer.add_param_group)
    zero_grad = _bare(torch.optim.Optimizer.zero_grad)
    state_dict = _bare(torch.optim.Optimizer.state_dict)
    load_state_dict = _bare(torch.optim.Optimizer.load_state_dict)


class SGD(_Eager, torch.optim.SGD):
    """`torch.optim.SGD`."""

    step = torch.no_grad()(_bare(torch.optim.SGD.step))


class AdamW(_Eager, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    step = torch.no_grad()(_bare(torch.optim.AdamW.step))
