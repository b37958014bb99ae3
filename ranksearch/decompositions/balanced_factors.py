"""Dimensions split into factors: how a matrix is read as a tensor (Novikov et al. 2015)."""

from __future__ import annotations

import math


def balanced_factors(size: int, count: int) -> tuple[int, ...] | None:
    """The most balanced ``count`` factors above 1 of ``size``, largest first; None where there are none."""
    if count == 1:
        return (size,) if size > 1 else None
    best: tuple[int, ...] | None = None
    for divisor in range(2, math.isqrt(size) + 1):
        if size % divisor == 0 and (rest := balanced_factors(size // divisor, count - 1)) is not None:
            candidate = tuple(sorted((divisor, *rest), reverse=True))
            if best is None or candidate[0] / candidate[-1] < best[0] / best[-1]:
                best = candidate
    return best
