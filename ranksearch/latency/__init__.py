"""Latency as a cost: tables of what layers take on a device, measured here or imported, and what they predict of networks."""

from __future__ import annotations

from ranksearch.latency.break_even import BreakEven, break_even
from ranksearch.latency.cost import Latency
from ranksearch.latency.files import read_table, write_table
from ranksearch.latency.measured import TableLatency
from ranksearch.latency.rounding import suggested_round_to
from ranksearch.latency.runtimes import RUNTIMES, Runtime
from ranksearch.latency.table import LatencyTable
from ranksearch.latency.timing import Precision

__all__ = [
    "RUNTIMES", "BreakEven", "Latency", "LatencyTable", "Precision", "Runtime", "TableLatency", "break_even", "read_table",
    "suggested_round_to", "write_table",
]  # fmt: skip
