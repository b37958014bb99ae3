"""What a command has done so far, so that it can be said when the command is interrupted."""

from __future__ import annotations

from dataclasses import dataclass

from ranksearch.home import home


@dataclass
class Session:
    """How far a command has come: the only state of the command line that changes."""

    searching: bool = False
    store: str | None = None
    counted: int | None = None  # evaluations in the store, as last heard
    training: bool = False
    trained: tuple[int, int] | None = None  # steps of a supernet's training that are made, and all of them
    interrupted: bool = False
    stop: int | None = None  # the signal that asked to stop

    def check(self) -> None:
        """Raise the KeyboardInterrupt that came at a moment when Python could not pass it on (in a destructor)."""
        if self.interrupted:
            raise KeyboardInterrupt

    @property
    def stored(self) -> int:
        """How many evaluations are stored."""
        if self.counted is not None:
            return self.counted
        if self.store is None:
            return 0
        from ranksearch.errors import RanksearchError
        from ranksearch.store import Store

        try:
            with Store.open(self.store, create=False) as store:
                return store.count()
        except RanksearchError:  # none there yet
            return 0


def default_store(name: str) -> str:
    """Where a study of that name has its store."""
    return str(home() / f"{name}.db")
