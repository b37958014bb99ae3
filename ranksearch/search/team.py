"""Several searches of one study at once, over a store on a server. Each leaves to the others what they work on, and learns from what they
have found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ranksearch.errors import StoreUnreachable
from ranksearch.search.known import Known
from ranksearch.store import Store


class Others(Protocol):
    """The other searches of a study, as the loop sees them."""

    def claim(self, id: str) -> bool:
        """Whether this search may evaluate a configuration."""
        ...

    def news(self) -> Mapping[str, Known]:
        """What others have found since they were last asked."""
        ...

    def busy(self) -> int:
        """How many evaluations others are about."""
        ...


class Nobody:
    """No other search: the store has one writer."""

    def claim(self, id: str) -> bool:
        return True

    def news(self) -> Mapping[str, Known]:
        return {}

    def busy(self) -> int:
        return 0


@dataclass
class Team:
    """The other searches that write to a store on a server. While it does not answer nobody is asked: an evaluation may then be made twice,
    and is stored once."""

    store: Store
    fidelity: str
    seed: int
    read: Callable[[set[str]], Mapping[str, Known]]  # what the store knows of configurations
    again: set[str]  # what failed and is tried again
    seen: set[str]  # what this search knows of already
    _busy: int = 0

    def claim(self, id: str) -> bool:
        """See `Others`."""
        try:
            mine = self.store.claim(id, self.fidelity, self.seed, again=id in self.again)
        except StoreUnreachable:
            mine = True
        if mine:
            self.seen.add(id)
        return mine

    def news(self) -> Mapping[str, Known]:
        """See `Others`."""
        try:
            # in this order: what ends meanwhile counts twice until the next look, not never
            self._busy = self.store.others(self.fidelity, self.seed)
            new = self.store.new_ids(self.fidelity, self.seed, self.seen)
            found = self.read(new) if new else {}
        except StoreUnreachable:
            return {}
        self.seen |= found.keys()
        return found

    def busy(self) -> int:
        """See `Others`."""
        return self._busy
