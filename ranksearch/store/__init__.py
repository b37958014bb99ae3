"""The evaluations of a study, in a database."""

from __future__ import annotations

from ranksearch.store.columns import Columns, Damaged
from ranksearch.store.record import Record
from ranksearch.store.store import Store

__all__ = ["Columns", "Damaged", "Record", "Store"]
