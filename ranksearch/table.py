"""Scores of configurations from a table (site, option) -> value: 10^6 configurations by indexing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ranksearch.errors import InvalidArgument

Reduction = Literal["sum", "max"]


@dataclass(frozen=True)
class Table:
    """A score that is the sum, or the largest, of one value per site."""

    values: tuple[np.ndarray, ...]  # one per site, float64, shape: (n_options,), in the ladder's order
    reduction: Reduction = "sum"
    offset: float = 0.0  # added to every score: what does not depend on the configuration

    def score(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Score option indices of shape (..., n_sites); returns float64 of shape (...). O(configurations x sites)."""
        indices = np.asarray(indices)
        if indices.shape[-1:] != (len(self.values),):
            raise InvalidArgument(f"indices of shape {indices.shape}: the last axis must have one entry per site, {len(self.values)}")
        total = np.zeros(indices.shape[:-1])
        # a block of configurations at a time, so that the running total stays in cache
        flat, out = indices.reshape(-1, len(self.values)), total.reshape(-1)
        combine = np.add if self.reduction == "sum" else np.maximum
        for start in range(0, len(flat), 8192):
            block, partial = flat[start : start + 8192], out[start : start + 8192]
            for site, values in enumerate(self.values):
                combine(partial, values[block[:, site]], out=partial)
        total += self.offset
        return total
