"""Configurations scored per second from a table, on one core, as one line of JSON.

    python analysis/benchmarks/score.py [--sites 20] [--options 200] [--configurations 1000000] [--repeats 5] [--seed 0]

Baseline, measured in the same run: a Python loop over configurations that adds up one value per site.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

from ranksearch.space.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--options", type=int, default=200)
    parser.add_argument("--configurations", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(given.seed)
    values = tuple(rng.random(given.options) for _ in range(given.sites))
    indices = rng.integers(0, given.options, (given.configurations, given.sites))
    few = indices[: max(given.configurations // 100, 1)]

    def rate(table: Table, configurations: np.ndarray) -> float:
        rates = []
        for _ in range(given.repeats):
            start = time.perf_counter()
            table.score(configurations)
            rates.append(len(configurations) / (time.perf_counter() - start))
        return float(np.median(rates))

    def loop_rate() -> float:
        rates, rows, columns = [], few.tolist(), [v.tolist() for v in values]
        for _ in range(given.repeats):
            start = time.perf_counter()
            scores = [sum(column[i] for column, i in zip(columns, row, strict=True)) for row in rows]
            rates.append(len(rows) / (time.perf_counter() - start))
        np.testing.assert_allclose(Table(values).score(few), scores, rtol=1e-12)
        return float(np.median(rates))

    loop = loop_rate()
    total = rate(Table(values, "sum"), indices)
    print(json.dumps({
        "benchmark": "score", "sites": given.sites, "options": given.options, "configurations": given.configurations,
        "repeats": given.repeats,
        "per_second": {
            "sum": round(total), "max": round(rate(Table(values, "max"), indices)),
            "sum_site_major": round(rate(Table(values, "sum"), np.asfortranarray(indices))), "python_loop": round(loop),
        },
        "times_faster_than_loop": round(total / loop, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
