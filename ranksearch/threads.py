"""How many threads PyTorch's operations take for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALL = 1 << 18  # parameters up to which a layer is factorized, and a network trained and read from, on one thread


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within, PyTorch's operations take so many threads (intra-operator ones); None leaves them as they are."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def few(params: int) -> int | None:
    """One thread for what is small, None for what is not. Thousands of small operations lose more to waking a second thread than they gain,
    many times over on a busy machine; and what they give is the same whatever the thread count."""
    return 1 if params < SMALL else None


def few_of(model: nn.Module) -> int | None:
    """`few` of a whole network."""
    return few(sum(parameter.numel() for parameter in model.parameters()))
