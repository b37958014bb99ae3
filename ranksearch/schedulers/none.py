"""No early stopping."""

from __future__ import annotations

from typing import final

import numpy as np

from ranksearch.schedulers.scheduler import Scheduler


@final
class NoStopping(Scheduler):
    """Every evaluation goes on to its end, and none is looked at before."""

    name = "none"

    def rungs(self, length: float) -> tuple[float, ...]:
        """None."""
        return ()

    def _goes_on(self, values: np.ndarray) -> bool:
        return True
