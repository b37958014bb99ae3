"""What was read of a store is kept as long as nobody has written to it since, so that several questions in a row read it once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import TypeVar

from ranksearch.store import Store

T = TypeVar("T")
MOST = 6  # of what was read: evaluations are read in five ways, configurations in one


class Kept:
    """The values that were asked for last, each with the stamp of the store that it was read from (`Store.stamp`). Whoever takes one must
    not change it. Threads may share one."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, tuple[Hashable, object]] = OrderedDict()
        self._guard = Lock()

    def value(self, store: Store, key: Hashable, read: Callable[[], T]) -> T:
        """What ``read`` gives, or gave when the store was as it is now."""
        stamp = store.stamp()  # before it is read: what is written meanwhile makes the value older than its stamp says, never newer
        with self._guard:
            before, value = self._values.get(key, (None, None))
        if stamp is None or stamp != before:
            value = read()
        with self._guard:
            self._values.pop(key, None)
            if stamp is not None:
                self._values[key] = stamp, value
            while len(self._values) > MOST:
                self._values.popitem(last=False)
        return value  # pyright: ignore[reportReturnType]
