"""What is below the store: its tables, where a database is (a SQLite file, a server), and how a file is made in one piece."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.pool import QueuePool, StaticPool

from ranksearch.errors import StoreError, StoreUnreachable
from ranksearch.home import home, move
from ranksearch.printable import without_password
from ranksearch.store.lock import FileLock, NoLock, WriterLock

SCHEMA = 5  # of stores that are made; earlier ones are read as they are, and brought to it when they are written
RACE = 100_000_000  # nanoseconds: two writes closer together may have the same time
PATIENCE = 10  # seconds for a connection to a server
SINCE = {"costs": 2, "error_kind": 3, "provenance": 4, "curve": 5}  # the version of stores in which a column is for the first time
APPLICATION_ID = 0x52414E4B  # "RANK", in the header of every SQLite store: tells a store from any other database

metadata = sa.MetaData()
_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers rows by themselves only for INTEGER
study_table = sa.Table(
    "ranksearch_study", metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
)  # fmt: skip
configurations_table = sa.Table(
    "ranksearch_configurations", metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("json", sa.Text, nullable=False),
)  # fmt: skip
evaluations_table = sa.Table(
    "ranksearch_evaluations", metadata,
    sa.Column("number", _number, primary_key=True, autoincrement=True),
    sa.Column("configuration_id", sa.ForeignKey("ranksearch_configurations.id"), nullable=False),
    sa.Column("fidelity", sa.String(255), nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("params", sa.BigInteger, nullable=False),
    sa.Column("macs", sa.BigInteger, nullable=False),
    sa.Column("costs", sa.Text),  # JSON of the costs that have no column of their own; since version 2
    sa.Column("error", sa.Text),
    sa.Column("error_kind", sa.String(16)),  # whose fault it was; since version 3
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("created", sa.String(40), nullable=False),
    sa.Column("provenance", sa.Text),  # JSON: where it was evaluated; since version 4
    sa.Column("curve", sa.Text),  # JSON: pairs of epochs and metrics, measured on the way; since version 5
    sa.UniqueConstraint("configuration_id", "fidelity", "seed", "fingerprint", name="ranksearch_one_fact_per_key"),
)  # fmt: skip
# what came of trying an evaluation again that failed: it counts instead of the row that it belongs to, which stays; since version 3
attempts_table = sa.Table(
    "ranksearch_attempts", metadata,
    sa.Column("number", _number, primary_key=True, autoincrement=True),
    sa.Column("evaluation", sa.ForeignKey("ranksearch_evaluations.number"), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("error_kind", sa.String(16)),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("created", sa.String(40), nullable=False),
    sa.Column("provenance", sa.Text),
    sa.Column("curve", sa.Text),
)  # fmt: skip
# evaluations that a process is about: of a database on a server, where several write; since version 4
claims_table = sa.Table(
    "ranksearch_claims", metadata,
    sa.Column("configuration_id", sa.String(64), primary_key=True),
    sa.Column("fidelity", sa.String(255), primary_key=True),
    sa.Column("seed", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("token", sa.String(32), nullable=False),  # of the process
    sa.Column("holder", sa.Text, nullable=False),  # in words
    sa.Column("expires", sa.Double, nullable=False),  # seconds since the epoch, by the server's clock
)  # fmt: skip


class Place:
    """Where a database is: a path or URL. SQLite databases are looked at, made and locked as files, those on servers by their rows.

    Raises:
        StoreError: the URL cannot be used.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        self.shown = without_password(text)
        try:
            parsed = sa.make_url(text) if "://" in text else sa.URL.create("sqlite", database=os.path.expanduser(text))
            parsed.get_dialect().import_dbapi()
        except exc.NoSuchModuleError as error:
            message = f"SQLAlchemy knows no database {parsed.drivername!r}; give a path, or a URL such as sqlite:///study.db or postgresql+psycopg://host/name"
            raise StoreError(f"store {self.shown!r}: {message}") from error
        except ImportError as error:
            raise StoreError(f"store {self.shown!r}: the driver for {parsed.drivername!r} is not installed: {error}") from error
        except (exc.SQLAlchemyError, ValueError, RuntimeError) as error:
            raise StoreError(f"store {self.shown!r} is neither a path nor a database URL: {error}") from error
        sqlite = parsed.get_backend_name() == "sqlite"
        database = parsed.database
        if sqlite and parsed.get_driver_name() != "pysqlite":
            raise StoreError(f"store {self.shown!r}: for SQLite give a path or a sqlite:/// URL, without a driver name")
        if not text or "\0" in text or (sqlite and str(database).startswith("file:")):
            raise StoreError(f"store {self.shown!r}: give the path of a file, or a URL like sqlite:///name.db")
        self.path: Path | None = None
        self.shared: sa.Engine | None = None  # one for all uses of a server, or of memory
        if not sqlite:
            seconds = {"connect_timeout": PATIENCE} if parsed.get_backend_name() in ("postgresql", "mysql", "mariadb") else {}
            self.shared = sa.create_engine(parsed, pool_pre_ping=True, connect_args=seconds)
        elif database in (None, "", ":memory:"):
            self.shared = sa.create_engine("sqlite://", poolclass=StaticPool)
        else:
            self.path = Path(os.path.realpath(os.path.expanduser(str(database))))  # links are followed, so that one database has one lock

    @property
    def spool(self) -> Path | None:
        """A folder for what is measured and not yet stored: beside a file, for a server in `home`; None for a database in memory."""
        if self.path is not None:
            return Path(f"{self.path}.spool")
        assert self.shared is not None
        if self.shared.dialect.name == "sqlite":
            return None
        return home().absolute() / "spool" / hashlib.sha256(self.shown.encode()).hexdigest()[:16]

    def stamp(self) -> Hashable:
        """What a file and its log look like from outside; None where there is no file, or times do not tell its last two writes apart."""
        if self.path is None:
            return None
        found = []
        for path in (self.path, Path(f"{self.path}-wal")):
            with suppress(FileNotFoundError):
                state = path.stat()
                if state.st_size:
                    found.append((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
        latest = max((max(times) for *_, times in ((*state[:3], state[3:]) for state in found)), default=0)
        return tuple(found) if time.time_ns() - latest > RACE else None

    def exists(self) -> bool:
        """Whether there is a store, or, for a path, anything."""
        with refusing(self.shown, "opened"):
            if self.shared is not None:
                return sa.inspect(self.shared).has_table(study_table.name)
            assert self.path is not None
            try:
                self.path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def check(self) -> None:
        """Refuse what is no store. A file is told by its header alone: SQLite never gets to open a foreign one."""
        missing = f"store {self.shown!r} does not exist; run a search first, or give another --store"
        if self.path is None:
            if not self.exists():
                raise StoreError(missing)
            return
        try:
            with _Connection.guard:
                if _Connection.reads(self.path):  # it was looked at before; see `_Connection`
                    return
                with open(self.path, "rb") as file:
                    header = file.read(100)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(missing) from error
        except IsADirectoryError as error:
            raise StoreError(f"store {self.shown!r} is a directory; give the path of a file") from error
        except OSError as error:
            raise StoreError(f"store {self.shown!r} cannot be read: {error.strerror}; give another --store") from error
        if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
            raise StoreError(f"store {self.shown!r} is a file but not a database; give another --store")
        if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
            raise StoreError(f"store {self.shown!r} is a database but not a ranksearch store; give another --store")

    def engine(self, *, write: bool) -> sa.Engine:
        """An engine for a store that exists; the caller disposes of it."""
        if self.shared is not None:
            return self.shared
        assert self.path is not None
        return _sqlite(self.path, "mode=rw", query_only=False) if write else _reader(self.path)

    def lock(self) -> WriterLock | None:
        """The right to write to a file, taken; None for a server, where several processes write."""
        if self.path is None:
            assert self.shared is not None
            return NoLock() if self.shared.dialect.name == "sqlite" else None
        made = [p for p in (self.path.parent, *self.path.parent.parents) if not p.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return FileLock(self.path, self.shown)
        except BaseException:
            for directory in made:
                with suppress(OSError):  # another process may have put something there
                    directory.rmdir()
            raise

    def create(self, row: Mapping[str, Any]) -> None:
        """Make the store. A file is made under another name and moved into place: a half-made one is never seen."""
        if self.path is None:
            assert self.shared is not None
            fill(self.shared, row)
            return
        for suffix in ("-wal", "-journal"):
            remains = Path(f"{self.path}{suffix}")
            if remains.exists() and remains.stat().st_size:  # SQLite would play it into the new database
                raise StoreError(f"store {self.shown!r}: {self.path}{suffix} is left of a deleted database; delete it too")
        draft = self.path.with_name(f".{self.path.name}.draft")
        try:
            _remove(draft)  # left by a process that was killed; the writer's place is ours
            engine = _sqlite(draft, "mode=rwc", query_only=False)
            try:
                fill(engine, row)
                with engine.connect() as connection:
                    connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
                    connection.commit()
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            finally:
                engine.dispose()
            move(draft, self.path, durable=True)
        finally:
            _remove(draft)


def _remove(database: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)


class _Connection(sqlite3.Connection):
    """A connection that this process knows of while it is open. As long as there is one, nobody here may open and close the file
    otherwise: that would drop the locks of all connections (POSIX drops a process's locks on a file when it closes it once), and another
    process that then closes the database takes itself for the last one and removes the log from under them, with what is added later."""

    guard = threading.Lock()
    _open: ClassVar[Counter[tuple[int, int]]] = Counter()
    _file: tuple[int, int] | None = None

    @classmethod
    def to(cls, path: Path, mode: str) -> Self:
        with cls.guard:
            made = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, timeout=30.0, check_same_thread=False, factory=cls)
            made._file = _identity(path)
            cls._open[made._file] += 1
        return made

    @classmethod
    def reads(cls, path: Path) -> bool:
        """Whether this process has a connection to the file."""
        return cls._open[_identity(path)] > 0

    def close(self) -> None:
        super().close()
        with self.guard:
            if self._file is not None:
                self._open[self._file] -= 1
                self._file = None


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _sqlite(path: Path, mode: str, *, query_only: bool) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        connection = _Connection.to(path, mode)
        connection.execute("PRAGMA foreign_keys = ON")
        # FULL: a commit is on disk, not only in the kernel; an evaluation costs far more than an fsync
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA query_only = {int(query_only)}")
        return connection

    return sa.create_engine("sqlite://", creator=connect, poolclass=QueuePool)


def _reader(path: Path) -> sa.Engine:
    """An engine for reading. Readers of a WAL database need its shared memory file, so that they must open the database for writing
    although they never write. Where that is forbidden (another user's store, a read-only disk) and nobody writes, the file is read
    as it is."""
    if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        return _sqlite(path, "mode=rw", query_only=True)
    return _sqlite(path, "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1", query_only=True)


def fill(engine: sa.Engine, row: Mapping[str, Any]) -> None:
    """Make the tables, and the study's row, in one transaction where the database can. Where another process was faster, its stay."""
    with engine.begin() as connection:
        _alone(connection)
        metadata.create_all(connection)
        if connection.scalar(sa.select(study_table.c.id)) is None:
            connection.execute(study_table.insert().values(**row))


def _alone(connection: sa.Connection) -> None:
    """Let other processes wait that would make the same tables at the same moment, up to the end of the transaction."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(APPLICATION_ID)))


def upgrade(engine: sa.Engine) -> None:
    """Bring a store of an earlier version to `SCHEMA`, in one transaction where the database can; what it holds stays."""
    with engine.begin() as connection:
        _alone(connection)
        old = study_table.update().where(study_table.c.id == 1, study_table.c.schema_version < SCHEMA)
        if not connection.execute(old.values(schema_version=SCHEMA)).rowcount:
            return
        for table in (attempts_table, claims_table):
            table.create(connection, checkfirst=True)
        connection.execute(sa.text("DROP TABLE IF EXISTS ranksearch_writer"))  # before version 4 a server had one writer
        for table in (evaluations_table, attempts_table):
            known = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
            for column in table.c:
                if column.name in SINCE and column.name not in known:
                    kind = column.type.compile(connection.dialect)
                    connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))


# -- refusing ------------------------------------------------------------------------------------------------------


_ROOM = "free some disk space and run again: what was finished before is kept"
_REMEDIES = {
    "Too many levels of symbolic links": "a link has the name of its lock file: remove it",
    "is full": _ROOM,
    "No space left": _ROOM,
    "locked": "another program holds the database; close it and run again",
    "malformed": "the file is damaged: restore a copy, or use another --store",
}


@contextmanager
def refusing(shown: str, doing: str) -> Iterator[None]:
    """Turn what databases and files raise into a StoreError with a remedy."""
    try:
        yield
    except (exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        remedy = next((text for sign, text in _REMEDIES.items() if sign in reason), "check it, or use another --store")
        away = isinstance(error, (exc.OperationalError, exc.InterfaceError)) and not isinstance(error.orig, sqlite3.Error)
        kind = StoreUnreachable if away else StoreError
        raise kind(f"store {shown!r} could not be {doing}: {reason}; {remedy}") from error
