"""Numbers over seeds, as tables show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """Mean and, of several values, their standard deviation; ``-`` of none.

    Args:
        sign: ``+`` for differences.
    """
    if not values:
        return "-"
    mean = f"{np.mean(values):{sign}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"
