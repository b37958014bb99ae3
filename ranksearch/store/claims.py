"""Which process works on which evaluation, where several processes write to one database on a server. A claim ends by itself when its
process shows no life for `LEASE` seconds of the server's clock; clocks of other machines do not matter."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from ranksearch.store.database import claims_table

BEAT, LEASE = 15.0, 60.0  # seconds: claims are renewed every BEAT, and end LEASE after the last time


class Claims:
    """The claims of one process on the evaluations of a study. The right to write needs none: facts are added once, whoever adds them."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine, self._token = engine, uuid.uuid4().hex
        self._holder = f"pid {os.getpid()} on {socket.gethostname()}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ranksearch-claims", daemon=True)
        self._thread.start()

    def take(self, configuration_id: str, fidelity: str, seed: int) -> bool:
        """Claim an evaluation; False where another process has it."""
        key = {"configuration_id": configuration_id, "fidelity": fidelity, "seed": seed}
        same = [claims_table.c[name] == value for name, value in key.items()]
        try:
            with self._engine.begin() as connection:
                now = server_time(connection)
                mine = {"token": self._token, "holder": self._holder, "expires": now + LEASE}
                found = connection.execute(claims_table.select().where(*same).with_for_update()).first()
                if found is None:
                    connection.execute(claims_table.insert().values(**key, **mine))
                    return True
                if found.token != self._token and found.expires > now:
                    return False
                free = claims_table.update().where(*same, claims_table.c.token == found.token)
                return connection.execute(free.values(**mine)).rowcount == 1
        except exc.IntegrityError:  # another process was faster by a moment
            return False

    def drop(self, connection: sa.Connection, configuration_id: str, fidelity: str, seed: int) -> None:
        """Within the transaction that adds the fact: it is no longer to be made, by whomever."""
        columns = claims_table.c
        one = (columns.configuration_id == configuration_id, columns.fidelity == fidelity, columns.seed == seed)
        connection.execute(claims_table.delete().where(*one))

    def others(self, fidelity: str, seed: int) -> int:
        """How many evaluations other processes are about."""
        columns = claims_table.c
        with self._engine.connect() as connection:
            theirs = (columns.fidelity == fidelity, columns.seed == seed, columns.token != self._token)
            alive = sa.select(sa.func.count()).select_from(claims_table).where(*theirs, columns.expires > server_time(connection))
            return int(connection.scalar(alive) or 0)

    def take_over(self) -> list[str]:
        """End the claims of all other processes, whether they live or not; returns whose these were."""
        columns = claims_table.c
        with self._engine.begin() as connection:
            theirs = columns.token != self._token
            holders = sorted(set(connection.scalars(sa.select(columns.holder).where(theirs, columns.expires > server_time(connection)))))
            connection.execute(claims_table.delete().where(theirs))
        return holders

    def check(self, connection: sa.Connection) -> None:
        """Every process may write."""

    def release(self) -> None:
        """End all claims of this process; doing it twice is fine."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        # when the server is away they end by themselves
        with suppress(exc.SQLAlchemyError), self._engine.begin() as connection:
            connection.execute(claims_table.delete().where(claims_table.c.token == self._token))

    def renew(self) -> None:
        """Show life: the claims of this process last `LEASE` from now on."""
        with self._engine.begin() as connection:
            mine = claims_table.update().where(claims_table.c.token == self._token)
            connection.execute(mine.values(expires=server_time(connection) + LEASE))

    def _keep(self) -> None:
        while not self._stop.wait(BEAT):
            # a renewal that fails is made up for by the next, or others take the evaluations over, which costs time and loses nothing
            with suppress(exc.SQLAlchemyError):
                self.renew()


def holders(engine: sa.Engine) -> list[str]:
    """Who has claims that have not ended, sorted."""
    if not sa.inspect(engine).has_table(claims_table.name):  # of an earlier version
        return []
    with engine.connect() as connection:
        return sorted(set(connection.scalars(sa.select(claims_table.c.holder).where(claims_table.c.expires > server_time(connection)))))


def server_time(connection: sa.Connection) -> float:
    """Seconds since the epoch by the clock of the database; by this machine's where the database is of a kind not known here."""
    clock: dict[str, Any] = {
        "postgresql": sa.extract("epoch", sa.func.clock_timestamp()),
        "mysql": sa.func.unix_timestamp(sa.func.now(6)),
        "mariadb": sa.func.unix_timestamp(sa.func.now(6)),
        "sqlite": (sa.func.julianday("now") - 2440587.5) * 86400.0,
    }
    asked = clock.get(connection.dialect.name)
    return time.time() if asked is None else float(connection.scalar(sa.select(asked)) or 0.0)
