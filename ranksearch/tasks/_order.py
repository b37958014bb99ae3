"""Whether training data come sorted by class, so that their first batches, which networks are calibrated with, stand for few classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FEWEST = 64  # targets that say something
CHANGES = 0.5  # of those that a random order has between neighbours; sorted data have fewer
SURE = 5.0  # and fewer than these by so many times the square root of their number


def sorted_by_class(targets: Sequence[Any]) -> str | None:
    """What is wrong with the order of targets, batch by batch; None where nothing is seen to be, or they are not one whole number per
    example, shape (n,) or (n, 1).

    Neighbours in a random order differ with probability 1 - sum of p_c^2, c being the classes; of sorted data few do."""
    if not all(isinstance(one, Tensor) and one.ndim and one.shape[1:] in ((), (1,)) and not one.is_complex() for one in targets):
        return None
    every = torch.cat([one.flatten().cpu().double() for one in targets]) if targets else torch.empty(0)
    if len(every) < FEWEST or not torch.equal(every, every.round()):
        return None
    classes, counts = every.unique(return_counts=True)
    expected = (len(every) - 1) * (1 - float((counts / len(every)).square().sum()))
    if len(classes) == 1:
        seen = f"are all {int(classes[0])}"
    elif int((every.diff() != 0).sum()) < min(CHANGES * expected, expected - SURE * expected**0.5):
        seen = f"are sorted, and of {len(classes)} classes"
    else:
        return None
    return f"the first {len(every)} training targets {seen}: networks are calibrated with these examples"
