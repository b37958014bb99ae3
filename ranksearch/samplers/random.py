"""Uniform random search: the baseline that every other sampler has to beat."""

from __future__ import annotations

import numpy as np

from ranksearch.samplers.sampler import Sampler


class Random(Sampler):
    """Uniform over the box of option indices; learns nothing."""

    name = "random"

    def _candidate(self) -> np.ndarray:
        return self._rng.integers(0, np.array(self.shape))

    def _learn(self, indices: np.ndarray, values: list[float] | None) -> None:
        """Nothing to learn."""
