"""What a layer or a network costs: a vector with a name for every entry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ranksearch.errors import InvalidArgument

Amount = int | float  # an int for what is counted, a float for what is measured


@dataclass(frozen=True, init=False, repr=False)
class Cost(Mapping[str, Amount]):
    """A mapping from the names of costs to amounts, with ``+`` and ``-``: ``Cost(params=10, macs=90)["macs"]``.

    Amounts that are counted are Python integers, of any size and exact; others are floats. Two costs are equal if they
    have the same names, in one order, with equal amounts.

    Raises:
        InvalidArgument: a sum or difference of costs with different names.
    """

    entries: tuple[tuple[str, Amount], ...]

    def __init__(self, amounts: Mapping[str, Amount] | None = None, /, **named: Amount) -> None:
        object.__setattr__(self, "entries", tuple({**(amounts or {}), **named}.items()))

    def __getitem__(self, name: str) -> Amount:
        for key, amount in self.entries:
            if key == name:
                return amount
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __add__(self, other: Cost) -> Cost:
        self._check(other)
        return Cost({name: amount + other[name] for name, amount in self.entries})

    def __sub__(self, other: Cost) -> Cost:
        self._check(other)
        return Cost({name: amount - other[name] for name, amount in self.entries})

    def _check(self, other: Cost) -> None:
        if set(self) != set(other):
            raise InvalidArgument(f"costs of {', '.join(self)} and of {', '.join(other)} cannot be added: both need the same names")

    @property
    def params(self) -> int:
        """Stored parameters."""
        return int(self["params"])

    @property
    def macs(self) -> int:
        """Multiply-adds for one example."""
        return int(self["macs"])

    def share(self, name: str, dense: Mapping[str, Amount]) -> float:
        """An amount as a share of the dense network's; NaN where that has none."""
        return self[name] / dense[name] if dense[name] else math.nan

    def __repr__(self) -> str:
        return f"Cost({', '.join(f'{name}={amount}' for name, amount in self.entries)})"
