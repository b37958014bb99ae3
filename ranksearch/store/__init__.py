"""The evaluations of a study, in a database."""

from __future__ import annotations

from ranksearch.store.store import Record, Store, read_details

__all__ = ["Record", "Store", "read_details"]
