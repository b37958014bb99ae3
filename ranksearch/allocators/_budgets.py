"""What choices take of the budgets, in the smallest integers that tell them apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ranksearch.allocators._options import Options


@dataclass(frozen=True)
class Budgets:
    """The budgets without what every choice costs, in units of the greatest common divisor of what choices differ by."""

    rows: np.ndarray  # what each option takes, int64, shape: (n, n_budgets)
    room: np.ndarray  # what all may take together, int64, shape: (n_budgets,)
    prices: np.ndarray  # of a unit, shape: (n_budgets,)
    base: float  # price of the rest of the budgets, smaller than a unit, that no choice can use

    @classmethod
    def of(cls, options: Options, prices: np.ndarray, limits: np.ndarray) -> Budgets:
        over, room = options.beyond_least(limits)
        divisor = np.array([max(int(np.gcd.reduce(column)), 1) for column in over.T])
        return cls(over // divisor, room // divisor, prices * divisor, float((room - room // divisor * divisor) @ prices))

    def hold(self, picked: np.ndarray) -> bool:
        """Whether a choice is within the budgets, in integers."""
        return bool((self.rows[picked].sum(axis=0) <= self.room).all())
