"""Facts column by column: what tables of many evaluations are made of, without a value for every row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from ranksearch.store.database import attempts_table, configurations_table, evaluations_table
from ranksearch.store.record import COLUMNS, Record, further_costs, result_of

BLOCK = 4000  # rows at a time: their tuples are gone before the collector of garbage looks at them
_NAMED_AT_ONCE = 500  # ids in one query; databases limit how many values one has
Columns = dict[str, list[Any]]


def facts(connection: sa.Connection, known: Collection[str], names: Sequence[str], conditions: Sequence[sa.ColumnElement[bool]]) -> Columns:
    """The named columns of ``ranksearch_evaluations``, in the order the evaluations were added.

    Args:
        known: columns that the store has; others are None throughout.
        conditions: of rows.
    """
    return _named(connection, evaluations_table, known, names, *conditions)


def attempts(connection: sa.Connection, known: Collection[str], names: Sequence[str]) -> Columns:
    """The named columns of ``ranksearch_attempts``, in the order they were added; ``known`` as for `facts`."""
    return _named(connection, attempts_table, known, names)


def merged(first: Columns, later: Columns, result: Collection[str], *, every: bool) -> Columns:
    """Facts with what came of trying them again.

    Args:
        first: with ``number``.
        later: with ``evaluation``, the number of the fact that an attempt belongs to, and the columns of ``result``.
        every: a row for every attempt, in order, each with ``attempt`` (from 1) and ``last``; else one row for every fact, with
            the result of its last attempt.
    """
    position = {number: row for row, number in enumerate(first["number"])}
    tried: dict[int, list[int]] = {}  # row of a fact -> rows of its further attempts
    for row, number in enumerate(later["evaluation"]):
        if number in position:
            tried.setdefault(position[number], []).append(row)
    if not every:
        for row, again in tried.items():
            for name in result:
                first[name][row] = later[name][again[-1]]
        return first
    found: Columns = {name: [] for name in (*first, "attempt", "last")}
    for row in range(len(first["number"])):
        again = tried.get(row, [])
        for count, source in enumerate((None, *again), start=1):
            for name in first:
                found[name].append(later[name][source] if source is not None and name in result else first[name][row])
            found["attempt"].append(count)
            found["last"].append(count == len(again) + 1)
    return found


def of_records(tried: Sequence[Sequence[Record]], names: Sequence[str], *, every: bool) -> Columns:
    """The same columns of records: of every evaluation all that it came to, in order, or the last of that."""
    found: Columns = {name: [] for name in names}
    for attempts_of in tried:
        for number, record in enumerate(attempts_of, start=1):
            if every or number == len(attempts_of):
                row = {"attempt": number, "last": number == len(attempts_of), "costs": further_costs(record)}
                row |= {name: record.costs[name] for name in COLUMNS} | result_of(record)
                for name, values in found.items():
                    values.append(row[name] if name in row else getattr(record, name))
    return found


def configurations(connection: sa.Connection, ids: Collection[str] | None) -> Iterator[tuple[list[str], list[str]]]:
    """Blocks of ids and the canonical JSON of their configurations: of all, or of those that are named."""
    columns = configurations_table.c
    query = sa.select(columns.id, columns.json)
    named = None if ids is None else list(dict.fromkeys(ids))
    queries = (
        [query]
        if named is None
        else [query.where(columns.id.in_(named[start : start + _NAMED_AT_ONCE])) for start in range(0, len(named), _NAMED_AT_ONCE)]
    )
    for each in queries:
        for rows in _blocks(connection, each):
            found, texts = zip(*rows, strict=True)
            yield list(found), list(texts)


def _named(
    connection: sa.Connection, table: sa.Table, known: Collection[str], names: Sequence[str], *where: sa.ColumnElement[bool]
) -> Columns:
    present = [name for name in names if name in known]
    query = sa.select(*(table.c[name] for name in present)).where(*where).order_by(table.c.number)
    found = dict(zip(present, _columns(connection, query, len(present)), strict=True))
    rows = len(found[present[0]])
    return {name: found.get(name, [None] * rows) for name in names}


def _columns(connection: sa.Connection, query: sa.Select[*tuple[Any, ...]], count: int) -> list[list[Any]]:
    columns: list[list[Any]] = [[] for _ in range(count)]
    for rows in _blocks(connection, query):
        for column, values in zip(columns, zip(*rows, strict=True), strict=True):
            column.extend(values)
    return columns


def _blocks(connection: sa.Connection, query: sa.Select[*tuple[Any, ...]]) -> Iterator[Sequence[Any]]:
    """The rows of a query in blocks, as the driver gives them."""
    result = connection.execute(query)
    cursor = result.cursor
    assert cursor is not None  # of a query that gives rows
    while rows := cursor.fetchmany(BLOCK):
        yield rows
    result.close()
