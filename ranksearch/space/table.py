"""Scores of configurations from a table (site, option) -> value: 10^6 configurations by indexing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ranksearch.errors import InvalidArgument

Reduction = Literal["sum", "max"]
_BLOCK = 8192  # configurations at a time, so that the running total stays in cache


@dataclass(frozen=True)
class Table:
    """A score that is the sum, or the largest, of one value per site."""

    values: tuple[np.ndarray, ...]  # one per site, float64, shape: (n_options,), in the ladder's order
    reduction: Reduction = "sum"
    offset: float = 0.0  # added to every score: what does not depend on the configuration

    def score(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Score option indices of shape (..., n_sites); returns float64 of shape (...). O(configurations x sites).

        Any integer dtype does; Fortran-ordered (site-major) indices are read fastest, since one column is gathered at
        a time. One flat gather per block was measured and is slower at 20 sites and no faster than that at 100.

        Raises:
            InvalidArgument: a last axis other than the number of sites, no integers, or an index outside its site.
        """
        indices = np.asarray(indices)
        if indices.shape[-1:] != (len(self.values),):
            raise InvalidArgument(f"indices of shape {indices.shape}: the last axis must have one entry per site, {len(self.values)}")
        if not np.issubdtype(indices.dtype, np.integer):
            raise InvalidArgument(f"indices of dtype {indices.dtype}: option indices are integers")
        total = np.full(indices.shape[:-1], 0.0 if self.reduction == "sum" else -np.inf)
        flat, out = (indices, total) if indices.ndim == 2 else (indices.reshape(-1, len(self.values)), total.reshape(-1))
        combine = np.add if self.reduction == "sum" else np.maximum
        for start in range(0, len(flat), _BLOCK):
            block, partial = flat[start : start + _BLOCK], out[start : start + _BLOCK]
            if block.min() < 0:  # numpy would count from the end
                raise InvalidArgument(f"indices hold {block.min()}: option indices are 0 or more")
            for site, values in enumerate(self.values):
                try:
                    picked = values[block[:, site]]
                except IndexError as error:
                    raise InvalidArgument(f"indices of site {site} reach {block[:, site].max()}: it has {len(values)} options") from error
                combine(partial, picked, out=partial)
        total += self.offset
        return total
