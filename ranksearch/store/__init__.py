"""The evaluations of a study, in a database."""

from __future__ import annotations

from ranksearch.store.store import Record, Store

__all__ = ["Record", "Store"]
