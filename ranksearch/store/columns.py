"""Facts column by column: what tables of many evaluations are made of, without a value for every row. Columns are Arrow arrays, text,
int64 or float64 as the tables of `ranksearch.store.database` say."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from ranksearch.errors import StoreError
from ranksearch.store.database import attempts_table, configurations_table, evaluations_table
from ranksearch.store.record import COLUMNS, Record, further_costs, result_of

BLOCK = 4000  # rows at a time: their tuples are gone before the collector of garbage looks at them
_NAMED_AT_ONCE = 500  # ids in one query; databases limit how many values one has
Columns = dict[str, pa.Array]


class Damaged(StoreError):
    """Columns of a store hold what ranksearch did not write. `ranksearch.store.Store.columns` leaves such rows out on request."""


def facts(connection: sa.Connection, known: Collection[str], names: Sequence[str], conditions: Sequence[sa.ColumnElement[bool]]) -> Columns:
    """The named columns of ``ranksearch_evaluations``, in the order the evaluations were added.

    Args:
        known: columns that the store has; others are missing throughout.
        conditions: of rows.

    Raises:
        Damaged: a value is not of the type of its column.
    """
    return _named(connection, evaluations_table, known, names, *conditions)


def attempts(connection: sa.Connection, known: Collection[str], names: Sequence[str]) -> Columns:
    """The named columns of ``ranksearch_attempts``, in the order they were added; ``known`` as for `facts`."""
    return _named(connection, attempts_table, known, names)


def merged(first: Columns, later: Columns | None, result: Collection[str], *, every: bool) -> Columns:
    """Facts with what came of trying them again.

    Args:
        first: with ``number``.
        later: with ``evaluation``, the number of the fact that an attempt belongs to, and the columns of ``result``; None: there are
            none, or the store is of a version that had none.
        every: a row for every attempt, in order, each with ``attempt`` (from 1) and ``last``; else one row for every fact, with
            the result of its last attempt.
    """
    numbers = first["number"].to_pylist()
    position = {number: row for row, number in enumerate(numbers)}
    tried: dict[int, list[int]] = {}  # row of a fact -> rows of its further attempts, counted behind the facts
    for row, number in enumerate(later["evaluation"].to_pylist() if later else ()):
        if number in position:
            tried.setdefault(position[number], []).append(len(numbers) + row)
    each = [[row, *tried.get(row, ())] for row in range(len(numbers))]
    kept = each if every else [rows[-1:] for rows in each]
    source = np.repeat(np.arange(len(kept)), [len(rows) for rows in kept])
    of_result = np.array([row for rows in kept for row in rows], dtype=np.int64)
    found = {
        name: pa.concat_arrays([values, later[name]]).take(of_result) if later and name in result else values.take(source)
        for name, values in first.items()
    }
    if every:
        found["attempt"] = pa.array([count for rows in kept for count in range(1, len(rows) + 1)], pa.int64())
        found["last"] = pa.array([row == rows[-1] for rows in kept for row in rows], pa.bool_())
    return found


def of_records(tried: Sequence[Sequence[Record]], names: Sequence[str], *, every: bool) -> Columns:
    """The same columns of records: of every evaluation all that it came to, in order, or the last of that."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    for attempts_of in tried:
        for number, record in enumerate(attempts_of, start=1):
            if every or number == len(attempts_of):
                row = {"attempt": number, "last": number == len(attempts_of), "costs": further_costs(record)}
                row |= {name: record.costs[name] for name in COLUMNS} | result_of(record)
                for name, values in found.items():
                    values.append(row[name] if name in row else getattr(record, name))
    own = {"attempt": pa.int64(), "last": pa.bool_()}
    return {name: pa.array(values, own[name] if name in own else _kind(evaluations_table.c[name])) for name, values in found.items()}


def configurations(connection: sa.Connection, ids: Collection[str] | None) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Blocks of ids and the canonical JSON of their configurations: of all, or of those that are named."""
    columns = [configurations_table.c.id, configurations_table.c.json]
    query = sa.select(*columns)
    named = None if ids is None else list(dict.fromkeys(ids))
    queries = (
        [query]
        if named is None
        else [query.where(columns[0].in_(named[start : start + _NAMED_AT_ONCE])) for start in range(0, len(named), _NAMED_AT_ONCE)]
    )
    for each in queries:
        yield from ((block[0], block[1]) for block in _blocks(connection, columns, each))


def _named(
    connection: sa.Connection, table: sa.Table, known: Collection[str], names: Sequence[str], *where: sa.ColumnElement[bool]
) -> Columns:
    present = [table.c[name] for name in names if name in known]
    blocks = list(_blocks(connection, present, sa.select(*present).where(*where).order_by(table.c.number)))
    found = {
        column.name: pa.concat_arrays([block[place] for block in blocks]) if blocks else pa.array([], _kind(column))
        for place, column in enumerate(present)
    }
    rows = len(found[present[0].name])
    return {name: found[name] if name in found else pa.nulls(rows, _kind(table.c[name])) for name in names}


def _kind(column: sa.Column[Any]) -> pa.DataType:
    if isinstance(column.type, sa.Double):
        return pa.float64()
    return pa.int64() if isinstance(column.type, sa.Integer) else pa.string()


def _blocks(connection: sa.Connection, columns: Sequence[sa.Column[Any]], query: sa.Select[*tuple[Any, ...]]) -> Iterator[list[pa.Array]]:
    """The rows of a query in blocks, as the driver gives them.

    Raises:
        Damaged: a value is not of the type of its column."""
    result = connection.execute(query)
    cursor = result.cursor
    assert cursor is not None  # of a query that gives rows
    while rows := cursor.fetchmany(BLOCK):
        try:
            yield [pa.array(values, _kind(column)) for column, values in zip(columns, zip(*rows, strict=True), strict=True)]
        except (ValueError, TypeError, OverflowError) as error:  # Arrow's are such
            raise Damaged(f"the store holds a value that ranksearch did not write: {error}; restore a copy") from error
    result.close()
