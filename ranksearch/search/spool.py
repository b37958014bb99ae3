"""Nothing measured is lost: a worker writes down what it has measured before it hands it on, so that the measurement is there when the
driver is killed meanwhile, or the database is away. The next driver stores it, and what is stored is removed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranksearch.errors import StoreUnreachable
from ranksearch.evaluation import Evaluate, Fidelity, Outcome, Point, Progress, Request
from ranksearch.home import replacing
from ranksearch.space import Configuration
from ranksearch.store import Record, Store

WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds between tries to store what is left at the end


@dataclass(frozen=True)
class Spool:
    """A folder of outcomes of one study that are done and may not be stored yet.

    Attributes:
        folder: private to its owner; of a file beside it. Workers on machines that do not see it write nothing down.
        fingerprint: of the study.
    """

    folder: Path
    fingerprint: str

    def open(self) -> None:
        """Make the folder."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def close(self) -> None:
        """Remove the folder, unless something is in it."""
        with suppress(OSError):
            self.folder.rmdir()

    def put(self, outcome: Outcome) -> None:
        """Write an outcome down: it is on the disk when this returns.

        Raises:
            OSError: it cannot be written."""
        request = outcome.request
        text = json.dumps({
            "fingerprint": self.fingerprint, "configuration": request.configuration.to_json(), "fidelity": request.fidelity.key,
            "seed": request.seed, "origin": request.origin, "metrics": outcome.metrics, "seconds": outcome.seconds,
            "provenance": outcome.provenance, "curve": [[point.epochs, dict(point.metrics)] for point in outcome.curve],
        })  # fmt: skip
        with replacing(self._place(request, "json"), durable=True) as path:
            path.write_text(text)

    def checkpoint(self, request: Request) -> Path:
        """Where a request that is under way has its checkpoint."""
        return self._place(request, "checkpoint")

    def drop(self, request: Request) -> None:
        """The outcome of a request is stored."""
        for kind in ("json", "checkpoint"):
            with suppress(OSError):  # where it is not there; what cannot be removed is found again, and known to be stored
                self._place(request, kind).unlink()

    def outcomes(self) -> Iterator[Outcome]:
        """What is there of the study. What cannot be read stays where it is."""
        for path in sorted(self.folder.glob("*.json")):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                found: dict[str, Any] = json.loads(path.read_text())
                if found["fingerprint"] != self.fingerprint:
                    continue
                configuration = Configuration.from_json(found["configuration"])
                request = Request(configuration, Fidelity.parse(found["fidelity"]), int(found["seed"]), str(found["origin"]))
                metrics = {str(name): float(value) for name, value in found["metrics"].items()}
                curve = tuple(Point(float(epochs), dict(measured)) for epochs, measured in found.get("curve", ()))
                seconds = float(found["seconds"])
                yield Outcome(request, "done", metrics, seconds=seconds, provenance=found["provenance"], curve=curve)

    def _place(self, request: Request, kind: str) -> Path:
        key = json.dumps([self.fingerprint, request.configuration.id, request.fidelity.key, request.seed])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.{kind}"


@dataclass(frozen=True)
class Spooling:
    """An evaluator that writes down what is done before it hands it on. As picklable as the one in it."""

    evaluate: Evaluate
    spool: Spool

    def __call__(self, request: Request) -> Outcome | Iterator[Progress | Outcome]:
        found = self.evaluate(request)
        return self._put(found) if isinstance(found, Outcome) else self._parts(found)

    def _parts(self, found: Iterator[Progress | Outcome]) -> Iterator[Progress | Outcome]:
        for part in found:
            yield self._put(part) if isinstance(part, Outcome) else part

    def _put(self, outcome: Outcome) -> Outcome:
        # a failure is not worth keeping; on another machine the folder is not there, and a full disk must not cost the outcome
        if outcome.status == "done" and self.spool.folder.is_dir():
            with suppress(OSError):
                self.spool.put(outcome)
        return outcome


class Keeper:
    """Stores outcomes, also where the server is away for a while: they are then written down, and stored when it is back."""

    def __init__(
        self, store: Store, spool: Spool | None, again: Collection[str], tell: Callable[[str], None], *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        """
        Args:
            again: configurations whose evaluation failed and is tried again.
            tell: hears that the server is away, and that it is back.
        """
        self._store, self._spool, self._again, self._tell, self._sleep = store, spool, set(again), tell, sleep
        self._waiting: list[tuple[Request, Record]] = []

    def keep(self, outcome: Outcome, record: Record) -> None:
        """Store an outcome, after those that wait. Where the server is away it waits too, and what is done is on the disk.

        Raises:
            StoreError: it cannot be stored, for another reason."""
        self._waiting.append((outcome.request, record))
        away = len(self._waiting) > 1
        try:
            self._store_all()
        except StoreUnreachable as error:
            if self._spool is None:
                raise
            if outcome.status == "done":
                self._spool.put(outcome)
            if not away:
                self._tell(f"{error}; what is measured meanwhile is written down in {self._spool.folder} and stored when it is back")
        else:
            if away:
                self._tell(f"store {self._store.url!r} is back")

    def finish(self) -> None:
        """Store what waits; it is tried for about a minute.

        Raises:
            StoreUnreachable: the server is still away; what is done is stored by the next run."""
        for pause in (*WAITS, None):
            try:
                return self._store_all()
            except StoreUnreachable as error:
                if pause is None:
                    raise StoreUnreachable(f"{error}; {len(self._waiting)} outcomes are not stored yet: run again then") from error
                self._sleep(pause)

    def _store_all(self) -> None:
        while self._waiting:
            request, record = self._waiting[0]
            add = self._store.add_attempt if record.configuration_id in self._again else self._store.add
            add(record)
            self._waiting.pop(0)
            if self._spool is not None:
                self._spool.drop(request)
