"""The options with which a store is opened, and what is released when it is closed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ranksearch.errors import InvalidArgument, StoreError
from ranksearch.store.claims import Claims
from ranksearch.store.database import SCHEMA, study_table
from ranksearch.store.lock import WriterLock
from ranksearch.store.record import is_object


@dataclass(frozen=True)
class Wanted:
    """What a store is to be of, see `Store.open`."""

    study: str | None
    fingerprint: str | None
    formerly: str | None
    details: Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]] | None

    def described(self, known: Mapping[str, Any]) -> str | None:
        """The details that a store is to have which has those that are known, as text."""
        return as_json(self.details(known) if callable(self.details) else self.details)


def as_json(details: Mapping[str, Any] | None) -> str | None:
    try:
        return None if details is None else json.dumps(details, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"details: must be JSON: {error}") from error


def checked_row(engine: sa.Engine, shown: str, wanted: Wanted) -> sa.Row[Any]:
    """The study's row, if schema, study and fingerprint are those asked for."""
    study, fingerprint = wanted.study, wanted.fingerprint
    with engine.connect() as connection:
        version = sa.select(study_table.c.schema_version).where(study_table.c.id == 1)
        if not sa.inspect(connection).has_table(study_table.name) or (found := connection.scalar(version)) is None:
            raise StoreError(f"store {shown!r} is a database without a study in it; give another --store")
        if not 1 <= found <= SCHEMA:
            raise StoreError(
                f"store {shown!r} has schema version {found}, this ranksearch reads versions 1 to {SCHEMA}; "
                f"use the {'newer' if found > SCHEMA else 'older'} ranksearch that wrote it, or another --store"
            )
        row = connection.execute(study_table.select().where(study_table.c.id == 1)).one()
    if study is not None and row.name != study:
        raise StoreError(f"store {shown!r} belongs to study {row.name!r}, not to {study!r}; use another --store")
    if not is_object(row.details):
        raise StoreError(f"store {shown!r} is damaged: its details are not a JSON object; restore a copy, or use another --store")
    wanted.described(json.loads(row.details))
    if fingerprint is not None and row.fingerprint not in (fingerprint, wanted.formerly):
        raise StoreError(
            f"store {shown!r} belongs to study {row.name!r} with fingerprint {row.fingerprint}, but study {row.name!r} now has fingerprint "
            f"{fingerprint}: weights, data, fine-tuning or the metric of the space differ; use another --store, or what it was made with"
        )
    return row


def let_go(engine: sa.Engine | None, lock: WriterLock | None) -> None:
    if isinstance(lock, Claims):  # it needs the connections
        lock.release()
    if engine is not None:
        engine.dispose()
    if lock is not None:  # a file's lock outlives the last checkpoint
        lock.release()


def quick_check(engine: sa.Engine, shown: str) -> None:
    with engine.connect() as connection:
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if verdict != "ok":
        raise StoreError(f"store {shown!r} is corrupt: {verdict}; restore a copy, or use another --store")
