"""Moments that are made when they are asked for, so that those of all sites are never in memory at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ranksearch.decompositions import Moments
from ranksearch.statistics.memory import machine_memory

SHARE = 1 / 16  # of the machine's memory that moments which were made take; the least recently used are made again


class MadeMoments(Mapping[str, Moments]):
    """Moments by site, each made by a function when it is first asked for, and again once it had to give way to others."""

    def __init__(self, makers: Mapping[str, Callable[[], Moments]]) -> None:
        self._makers = dict(makers)
        self._held: OrderedDict[str, Moments] = OrderedDict()

    def __len__(self) -> int:
        return len(self._makers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __getitem__(self, name: str) -> Moments:
        if name not in self._held:
            self._held[name] = self._makers[name]()
            while len(self._held) > 1 and sum(map(_bytes, self._held.values())) > SHARE * machine_memory():
                self._held.popitem(last=False)
        self._held.move_to_end(name)
        return self._held[name]

    def forget(self) -> None:
        """Hold none: they are made again when they are asked for."""
        self._held.clear()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": OrderedDict()}  # made again where it is needed


class Chosen(Mapping[str, Moments]):
    """Those of some sites."""

    def __init__(self, moments: Mapping[str, Moments], names: Iterable[str]) -> None:
        self._moments, self._names = moments, dict.fromkeys(names)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Moments:
        if name not in self._names:
            raise KeyError(name)
        return self._moments[name]

    def forget(self) -> None:
        """Hold none that can be made again."""
        if isinstance(self._moments, MadeMoments | Chosen):
            self._moments.forget()


def _bytes(moments: Moments) -> int:
    """Of a site's moments, and of the same once they are floored."""
    return 2 * sum(m.nbytes for m in (moments.input, moments.output) if m is not None)
