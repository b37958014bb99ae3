"""The database of facts: finished evaluations of one study, which are added once and never edited. It is a SQLite file in WAL mode
by default, or PostgreSQL or another database by URL, through SQLAlchemy Core. One process at a time writes to a file, several to a
server; any number read meanwhile."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy import exc

from ranksearch.errors import InvalidArgument, RanksearchWarning, StoreError
from ranksearch.printable import error_text
from ranksearch.store import columns
from ranksearch.store.claims import Claims, holders
from ranksearch.store.database import (
    SCHEMA,
    SINCE,
    Place,
    attempts_table,
    configurations_table,
    evaluations_table,
    refusing,
    study_table,
    upgrade,
)
from ranksearch.store.lock import WriterLock, file_writers
from ranksearch.store.opening import Wanted, as_json, checked_row, let_go, quick_check
from ranksearch.store.record import COLUMNS, RESULT, Record, Status, further_costs, is_object, record_of, result_of


class Store:
    """The evaluations of one study. `Store.open` makes one; as a context manager it closes itself.

    Attributes:
        claims: who is about which evaluation, of a database on a server that is open for writing; else None: a file has one writer.
    """

    def __init__(self, engine: sa.Engine, shown: str, lock: WriterLock | None, row: sa.Row[Any]) -> None:
        self._engine, self._lock, self._closed = engine, lock, False
        self.claims = lock if isinstance(lock, Claims) else None
        self._stamp: Callable[[], Hashable] = lambda: None
        self._complete: Callable[[Record], Record] = lambda record: record
        self._damaged: set[int] = set()  # rows that were told of
        # a store of an earlier version that is read lacks columns, and has nothing that was tried again
        self._columns = [c for c in evaluations_table.c if row.schema_version >= SINCE.get(c.name, 1)]
        self._attempt_columns = [c for c in attempts_table.c if row.schema_version >= SINCE.get(c.name, 1)]
        self._has_attempts = row.schema_version >= 3
        self.url = shown  # without a password
        self.spool: Path | None = None  # a folder for what is measured and not yet stored; None where there is no place for one
        self.study: str = row.name
        self.fingerprint: str = row.fingerprint
        self.details: dict[str, Any] = json.loads(row.details)

    @staticmethod
    def exists(url: str | os.PathLike[str]) -> bool:
        """Whether there is anything at ``url``; for a server, whether its database has a study.

        Raises:
            StoreError: the URL cannot be used, or the server not be asked."""
        return Place(url).exists()

    @staticmethod
    def writers(url: str | os.PathLike[str]) -> list[str]:
        """Who evaluates for the store at ``url`` now, such as ``pid 12 on host``. Nothing is locked by asking.

        Raises:
            StoreError: the URL cannot be used, or the server not be asked."""
        place = Place(url)
        with refusing(place.shown, "read"):
            if place.shared is None:
                assert place.path is not None
                return file_writers(place.path)
            try:
                return holders(place.shared)
            finally:
                place.shared.dispose()

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        *,
        study: str | None = None,
        fingerprint: str | None = None,
        formerly: str | None = None,
        details: Mapping[str, Any] | Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        create: bool = True,
        write: bool | None = None,
        complete: Callable[[Record], Record] | None = None,
    ) -> Store:
        """Open a store.

        Args:
            url: a path (SQLite), or any SQLAlchemy URL of a synchronous driver.
            study: name of the study; None: whichever is there.
            fingerprint: content hash of model and task; None: whichever is there.
            formerly: the fingerprint that an earlier version gave to the same model and task; a store that has it is accepted.
            details: JSON that describes the study (options, objectives, baseline). A writer replaces what the store
                has; None leaves it. Ignored when reading. Or a function that gives it, of what the store has (nothing, if it is
                new); it is called when reading too, and may raise StoreError to refuse the store.
            create: make the store, and its directory, if there is none; needs ``study`` and ``fingerprint``.
            write: be the one writer of a file until `close`, or a writer of a server; default: as ``create``. Readers need no such right.
            complete: applied to every record that is read, to add costs that the study has gained since it was written.

        Raises:
            StoreError: it cannot be opened, is not a store, is of another schema, study or fingerprint, or another
                process writes it. Nothing that was there has then been changed, and nothing is left behind (beside a
                damaged database SQLite may leave empty files of its own).
            InvalidArgument: ``create`` without a study or fingerprint, or details that are not JSON.
        """
        if create and (study is None or fingerprint is None):
            raise InvalidArgument(f"study={study!r}, fingerprint={fingerprint!r}: create=True needs both")
        if not callable(details):
            as_json(details)
        wanted = Wanted(study, fingerprint, formerly, details)
        place = Place(url)
        store = cls._open(place, wanted, create, create if write is None else write)
        store.spool, store._stamp = place.spool, place.stamp
        store._complete = complete or store._complete
        return store

    @classmethod
    def _open(cls, place: Place, wanted: Wanted, create: bool, write: bool) -> Store:
        missing = not place.exists()
        if not (missing and create):
            reader = cls._open_to_read(place, wanted)
            if not write:
                return reader
            reader._engine.dispose()  # a store that is refused is not even locked
        writer = cls._open_to_write(place, wanted)
        if write:
            return writer
        writer.close()
        return cls._open_to_read(place, wanted)

    @classmethod
    def _open_to_read(cls, place: Place, wanted: Wanted) -> Store:
        place.check()
        engine = place.engine(write=False)
        try:
            with refusing(place.shown, "opened"):
                return cls(engine, place.shown, None, checked_row(engine, place.shown, wanted))
        except BaseException:
            engine.dispose()
            raise

    @classmethod
    def _open_to_write(cls, place: Place, wanted: Wanted) -> Store:
        engine: sa.Engine | None = None
        lock: WriterLock | None = None
        try:
            with refusing(place.shown, "written"):
                lock = place.lock()
                if not place.exists():
                    named = {"name": wanted.study, "fingerprint": wanted.fingerprint, "details": wanted.described({}) or "{}"}
                    place.create({"id": 1, "schema_version": SCHEMA, **named})
                engine = place.engine(write=True)
                row = checked_row(engine, place.shown, wanted)
                if place.path is not None:
                    quick_check(engine, place.shown)
                if row.schema_version < SCHEMA:
                    upgrade(engine)
                    row = checked_row(engine, place.shown, wanted)
                lock = lock or Claims(engine)
                details = wanted.described(json.loads(row.details))
                if details is not None and details != row.details:
                    with engine.begin() as connection:
                        connection.execute(study_table.update().where(study_table.c.id == 1).values(details=details))
                    row = checked_row(engine, place.shown, wanted)
                return cls(engine, place.shown, lock, row)
        except BaseException:
            let_go(engine, lock)
            raise

    def add(self, record: Record) -> bool:
        """Add a fact, which is on the disk when this returns. False if the store has a fact of the same key; that one stays. Where the row
        of the key is damaged, the fact counts instead of it.

        Raises:
            StoreError: the store was opened for reading or is closed, the right to write was lost, the configuration's id belongs
                to another configuration, or the database refuses (a full disk, ...). Earlier facts are intact.
        """
        row: dict[str, Any] = {c.name: getattr(record, c.name) for c in evaluations_table.c if hasattr(record, c.name)} | result_of(record)
        row |= {name: record.costs[name] for name in COLUMNS} | {"costs": further_costs(record)}
        row |= {"fingerprint": self.fingerprint}
        try:
            return self._add(record, row)
        except StoreError as error:
            if not isinstance(error.__cause__, exc.IntegrityError):
                raise
            return self._add(record, row)  # another process has added the same at the same moment: now it is there

    def _add(self, record: Record, row: Mapping[str, Any]) -> bool:
        key = _key(record.configuration_id, record.fidelity, record.seed, self.fingerprint)
        one = configurations_table.c.id == record.configuration_id
        with self._writing() as connection:
            if self.claims is not None:
                self.claims.drop(connection, record.configuration_id, record.fidelity, record.seed)
            known = connection.scalar(sa.select(configurations_table.c.json).where(one))
            if known is None:
                connection.execute(configurations_table.insert().values(id=record.configuration_id, json=record.configuration))
            elif not is_object(known):  # damaged: an id is the hash of its configuration, so this is what it was
                connection.execute(configurations_table.update().where(one).values(json=record.configuration))
            elif known != record.configuration:
                raise StoreError(f"store {self.url!r}: id {record.configuration_id!r} is that of another configuration, {known[:60]!r}")
            number = connection.scalar(sa.select(evaluations_table.c.number).where(*key))
            if number is None:
                connection.execute(evaluations_table.insert().values(**row))
            elif any(tried for tried in self._read(connection, *key)):
                return False
            else:  # all that is there of it is damaged
                connection.execute(attempts_table.insert().values(evaluation=number, **result_of(record)))
        return True

    def add_attempt(self, record: Record) -> bool:
        """Add what came of making again an evaluation that failed or was stopped, which is on the disk when this returns: from then on
        it is the fact of its key. What was there stays, see `attempts`. False if the key has no fact, or one that is done, which is
        never tried again.

        Raises:
            StoreError: as for `add`.
        """
        key = _key(record.configuration_id, record.fidelity, record.seed, self.fingerprint)
        with self._writing() as connection:
            first = connection.execute(sa.select(evaluations_table.c.number, evaluations_table.c.status).where(*key)).first()
            if first is None:
                return False
            later = sa.select(attempts_table.c.status).where(attempts_table.c.evaluation == first.number)
            if "done" in (first.status, *connection.scalars(later)) and any(self._read(connection, *key)):
                return False
            connection.execute(attempts_table.insert().values(evaluation=first.number, **result_of(record)))
            if self.claims is not None:
                self.claims.drop(connection, record.configuration_id, record.fidelity, record.seed)
        return True

    def claim(self, configuration_id: str, fidelity: str, seed: int, *, again: bool = False) -> bool:
        """Whether this process may make an evaluation: False where another one is about it, or has made it.

        Args:
            again: it is there, failed, and is tried again.

        Raises:
            StoreUnreachable: the server does not answer."""
        if self.claims is None:
            return True
        with self._use("asked") as engine:
            if not self.claims.take(configuration_id, fidelity, seed):
                return False
            if again or self.get(configuration_id, fidelity, seed) is None:
                return True
            with engine.begin() as connection:
                self.claims.drop(connection, configuration_id, fidelity, seed)
            return False

    def others(self, fidelity: str, seed: int) -> int:
        """How many evaluations other processes are about at a fidelity and seed.

        Raises:
            StoreUnreachable: the server does not answer."""
        if self.claims is None:
            return 0
        with self._use("asked"):
            return self.claims.others(fidelity, seed)

    def new_ids(self, fidelity: str, seed: int, seen: Collection[str]) -> set[str]:
        """The configurations that have a fact at a fidelity and seed, but for those that were seen."""
        wanted = (evaluations_table.c.fidelity == fidelity, evaluations_table.c.seed == seed)
        with self._use("read") as engine, engine.connect() as connection:
            return set(connection.scalars(sa.select(evaluations_table.c.configuration_id).where(*wanted))).difference(seen)

    def attempts(self, configuration_id: str, fidelity: str, seed: int) -> list[Record]:
        """Everything that a key came to, in order: the last is the fact, those before it failed."""
        key = _key(configuration_id, fidelity, seed, self.fingerprint)
        return [record for tried in self._tried(*key) for record in tried]

    def get(self, configuration_id: str, fidelity: str, seed: int) -> Record | None:
        """The fact of a key, or None: of an evaluation that was tried again, the last attempt."""
        found = self._select(*_key(configuration_id, fidelity, seed, self.fingerprint))
        return found[0] if found else None

    def records(self, fidelity: str | None = None, status: Status | None = None) -> list[Record]:
        """All facts, or those of one fidelity or status, in the order they were added."""
        found = self._select(*([] if fidelity is None else [evaluations_table.c.fidelity == fidelity]))
        return found if status is None else [record for record in found if record.status == status]

    def columns(
        self, names: Sequence[str], *, fidelity: str | None = None, ids: Sequence[str] | None = None, every_attempt: bool = False,
        whole: bool = False,
    ) -> columns.Columns:  # fmt: skip
        """Facts column by column, in the order they were added, as Arrow arrays: ``metrics`` and ``costs`` (those without a
        column of their own, None if there are none) are JSON, ``created`` is ISO 8601, ``configuration_id`` names the configuration.
        Costs that the study has gained since are not added, as `records` does.

        Args:
            names: columns of the table ``ranksearch_evaluations``; one that a store of an earlier version lacks is missing throughout.
            fidelity: of one only.
            ids: of these configurations only, some hundreds at most.
            every_attempt: a row for each attempt at an evaluation that was tried again, with the columns ``attempt`` (from 1) and
                ``last`` besides; else there is one row for every fact.
            whole: leave out what is damaged, as `records` does, and say so: every row is then read as a value of its own.

        Raises:
            StoreError: the database cannot be read.
            Damaged: a value is not of the type of its column.
        """
        listed = [*names, *(("attempt", "last") if every_attempt else ())]
        conditions = [] if fidelity is None else [evaluations_table.c.fidelity == fidelity]
        conditions += [] if ids is None else [evaluations_table.c.configuration_id.in_(ids)]
        if whole:
            return columns.of_records(self._tried(*conditions), listed, every=every_attempt)
        wanted = list(dict.fromkeys([*names, "number"]))
        tried = [name for name in wanted if name in RESULT]  # what another attempt may have changed
        with self._use("read") as engine, engine.connect() as connection:
            later: columns.Columns | None = None
            if self._has_attempts:  # first: what it refers to is then among the facts
                known = {column.name for column in self._attempt_columns}
                later = columns.attempts(connection, known, ["evaluation", *tried])
            first = columns.facts(connection, {column.name for column in self._columns}, wanted, conditions)
        again = later is not None and len(later["evaluation"])
        found = columns.merged(first, later, tried, every=every_attempt) if again or every_attempt else first
        return {name: found[name] for name in listed}

    def configurations(self, ids: Collection[str] | None = None) -> Iterator[tuple[pa.Array, pa.Array]]:
        """Blocks of ids and the canonical JSON of their configurations: of all in the store, or of those that are named, in no order.

        Raises:
            StoreError: the database cannot be read.
        """
        with self._use("read") as engine, engine.connect() as connection:
            yield from columns.configurations(connection, ids)

    def fidelities(self) -> list[str]:
        """The fidelities that facts have, sorted."""
        with self._use("read") as engine, engine.connect() as connection:
            return sorted(connection.scalars(sa.select(evaluations_table.c.fidelity).distinct()))

    def count(self) -> int:
        """How many facts there are."""
        with self._use("read") as engine, engine.connect() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(evaluations_table)) or 0)

    def changes(self) -> int:
        """A number that grows with every fact and every attempt: as long as it is the same, so is what the store holds."""
        tables = (evaluations_table, attempts_table) if self._has_attempts else (evaluations_table,)
        with self._use("read") as engine, engine.connect() as connection:
            return sum(int(connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0) for table in tables)

    def stamp(self) -> Hashable:
        """Another value once anybody has written to the store since; None where that cannot be told without reading it: of a server, of a
        database in memory, and of a file that was written only just now."""
        with refusing(self.url, "read"):
            return self._stamp()

    def configuration(self, id_prefix: str) -> str:
        """Canonical JSON of the configuration with this id, or with an id that begins so.

        Raises:
            InvalidArgument: none or several do.
        """
        # databases take neither NUL nor lone surrogates, and no id has them
        if not isinstance(id_prefix, str) or not id_prefix.isprintable():
            raise InvalidArgument(f"id={id_prefix!r}: no id has such characters; `ranksearch front STUDY` lists ids")
        query = sa.select(configurations_table).where(configurations_table.c.id.startswith(id_prefix, autoescape=True)).limit(6)
        with self._use("read") as engine, engine.connect() as connection:
            found = connection.execute(query.order_by(configurations_table.c.id)).all()
        exact = [row for row in found if row.id == id_prefix] or found
        if len(exact) == 1:
            return exact[0].json
        if not exact or not id_prefix:
            raise InvalidArgument(f"id={id_prefix!r}: no evaluated configuration has it; `ranksearch front STUDY` lists ids")
        raise InvalidArgument(f"id={id_prefix!r} is ambiguous: {', '.join(row.id for row in exact)}; give more of it")

    def close(self) -> None:
        """Let go of the database and of the right to write. Doing it twice is fine."""
        if not self._closed:
            self._closed = True
            let_go(self._engine, self._lock)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _select(self, *conditions: sa.ColumnElement[bool]) -> list[Record]:
        return [tried[-1] for tried in self._tried(*conditions)]

    def _tried(self, *conditions: sa.ColumnElement[bool]) -> list[list[Record]]:
        """Every evaluation, and after it what came of trying it again; of damaged ones what is whole."""
        with self._use("read") as engine, engine.connect() as connection:
            return [tried for tried in self._read(connection, *conditions) if tried]

    def _read(self, connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> list[list[Record]]:
        query = sa.select(*self._columns, configurations_table.c.json).join_from(evaluations_table, configurations_table)
        query = query.where(*conditions).order_by(evaluations_table.c.number)
        again = sa.select(*self._attempt_columns).order_by(attempts_table.c.number)
        later: dict[int, list[sa.Row[Any]]] = {}
        for row in connection.execute(again) if self._has_attempts else ():  # first: what it refers to is then among the rows
            later.setdefault(row.evaluation, []).append(row)
        return [self._whole(row, [row, *later.get(row.number, [])]) for row in connection.execute(query)]

    def _whole(self, row: sa.Row[Any], results: Sequence[sa.Row[Any]]) -> list[Record]:
        """What an evaluation came to, attempt by attempt. What cannot be read is left out, and said once."""
        found = []
        for result in results:
            try:
                found.append(record_of(row, result))
            except (ValueError, TypeError, AttributeError) as error:
                self._tell_damaged(row, error)
        return [self._complete(record) for record in found]

    def _tell_damaged(self, row: sa.Row[Any], error: Exception) -> None:
        if row.number not in self._damaged:
            self._damaged.add(row.number)
            text = f"row {row.number}, an evaluation of {row.configuration_id}, is damaged and left out ({error_text(error, limit=200)})"
            warnings.warn(f"store {self.url!r}: {text}; a search that needs it evaluates it again", RanksearchWarning, stacklevel=2)

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction of the one writer."""
        if self._lock is None:
            raise StoreError(f"store {self.url!r} is open for reading; open it with write=True to add evaluations")
        with self._use("written") as engine, engine.begin() as connection:
            self._lock.check(connection)
            yield connection

    @contextmanager
    def _use(self, doing: str) -> Iterator[sa.Engine]:
        if self._closed:
            raise StoreError(f"store {self.url!r} is closed; open it again")
        with refusing(self.url, doing):
            yield self._engine


def _key(configuration_id: str, fidelity: str, seed: int, fingerprint: str) -> list[sa.ColumnElement[bool]]:
    columns = evaluations_table.c
    return [
        columns.configuration_id == configuration_id, columns.fidelity == fidelity,
        columns.seed == seed, columns.fingerprint == fingerprint,
    ]  # fmt: skip
