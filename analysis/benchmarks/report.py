"""The report of a large study: how long it takes to make and to open in a browser, and how large it is, as one line of JSON.

    python analysis/benchmarks/report.py [--evaluations 20000] [--sites 60] [--repeats 3] [--seed 0] [--keep FILE]

Opening is measured in headless Chromium, from navigation until the tables can be read (``read_seconds``), the front is drawn
(``open_seconds``), and every figure is (``drawn_seconds``), by the page's own clock, each time in a new browser context. ``cpu_seconds`` is
the processor time of the page's thread until the last. The limits of the project are 3 s and 15 MB at 20,000 evaluations. The study is made
up: random configurations of five types, whose accuracy rises with the cost. ``load`` is how many processes wanted each core while it ran:
above 1, all but the processor time is too long.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.report.data import CostName, Facts, Proxies, page_data
from ranksearch.report.page import report_page
from ranksearch.results import frames
from ranksearch.results.choices import read
from ranksearch.results.history import history
from ranksearch.results.layers import OptionTable, layers
from ranksearch.space import DENSE, Configuration

TYPES = ("svd", "spatial", "cp", "tucker2", "svd_in")
PROXIES = ("energy", "frobenius", "operator_norm", "activation", "fisher", "fwsvd")
FIDELITY = "full:epochs=1"
BASELINE = {"params": 11_000_000, "macs": 1_800_000_000}
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]


def study(evaluations: int, sites: int, seed: int) -> Facts:
    """The facts of a made-up study; one in 200 evaluations fails."""
    rng, start = np.random.default_rng(seed), datetime(2026, 1, 1, tzinfo=UTC)
    names = [f"stage{n // 15}.block{n // 3 % 5}.conv{n % 3}" for n in range(sites)]
    types, ranks = rng.integers(0, len(TYPES), (evaluations, sites)), rng.integers(1, 257, (evaluations, sites))
    shares, noise = np.append(1.0, 0.05 + 0.9 * rng.beta(2, 2, evaluations - 1)), np.append(0.0, rng.exponential(0.02, evaluations - 1))
    accuracy = np.clip(0.76 - 0.35 * (1 - shares) ** 3 - noise, 0, 1).round(4)
    configurations = [DENSE]
    for line, numbers in zip(types[1:].tolist(), ranks[1:].tolist(), strict=True):
        options: list[Any] = [(TYPES[t], (r, r) if TYPES[t] == "tucker2" else (r,)) for t, r in zip(line, numbers, strict=True)]
        configurations.append(Configuration(dict(zip(names, options, strict=True))))
    failed = [at > 0 and at % 200 == 0 for at in range(evaluations)]
    facts: dict[str, list[Any]] = {
        "configuration_id": [c.id for c in configurations], "fidelity": [FIDELITY] * evaluations, "seed": [0] * evaluations,
        "status": ["failed" if fails else "done" for fails in failed],
        "metrics": [f'{{"accuracy": {value}, "loss": {1.2 - value}}}' for value in accuracy.tolist()],
        "params": (11e6 * shares**0.8).astype(np.int64).tolist(), "macs": (1.8e9 * shares).astype(np.int64).tolist(),
        "costs": [None] * evaluations, "error": ["OutOfMemoryError: no memory" if fails else None for fails in failed],
        "error_kind": ["machine" if fails else None for fails in failed], "seconds": [30.0] * evaluations,
        "origin": ["dense" if at == 0 else f"additive:energy:macs<={at / 60:.2g}" if at < 60 else "nsga2" for at in range(evaluations)],
        "factorized": [0] + [sites] * (evaluations - 1),
        "created": [(start + timedelta(seconds=30 * at)).isoformat() for at in range(evaluations)],
    }  # fmt: skip
    evaluated = frames.evaluations(facts, BASELINE, [("accuracy", "max"), ("loss", "min")])
    chosen = read([(facts["configuration_id"], [c.to_json() for c in configurations])], {name: name for name in names})
    directions: dict[str, Any] = {"accuracy": "max", "macs": "min", "params": "min"}
    networks = frames.front(evaluated, directions, dominated=True)
    parts = np.array([rank[0] if rank else 256 for *_, rank in chosen.options])
    table = OptionTable(
        dict.fromkeys(BASELINE, parts), dict.fromkeys(BASELINE, np.full(len(parts), 256)), 1 - parts / 256, [f"r={part}" for part in parts]
    )
    attempts = facts | {"attempt": [1] * evaluations, "last": [True] * evaluations}
    return Facts(
        study="made up", store="made-up.db", stored=evaluations, fidelity=FIDELITY, directions={"accuracy": "max", "loss": "min"},
        objectives=("accuracy", "macs", "params"), networks=networks, layers=layers(evaluated, chosen, table),
        history=history(evaluated, directions), failures=frames.failures(attempts, lambda kind: True), sites=names,
        costs=[CostName("params", "params", "params", 11_000_000), CostName("macs", "MACs", "MACs", 1_800_000_000)],
        build=("ranksearch build made_up.py ", " --out made-up-", ""), made="Made up", proxies=judged(networks, rng),
        rank_shares={(site, kind, "x".join(map(str, rank))): rank[0] / 256 for site, kind, rank in chosen.options if rank},
    )  # fmt: skip


def judged(networks: pd.DataFrame, rng: np.random.Generator) -> Proxies:
    """Scores of every network by every proxy."""
    rows: Any = networks[~networks["is_dense"]]
    losses = 1 - rows["accuracy"]
    found = [rows[["id", "fidelity"]].assign(proxy=name, score=losses + rng.normal(0, 0.05, len(rows))) for name in PROXIES]
    of_costs = [f"{measure}_{cost}" for measure in ("kendall", "regret", "chance") for cost in BASELINE]
    measures = dict.fromkeys(("kendall", "spearman", "recall", *of_costs), 0.5)
    same = {"fidelity": FIDELITY, "metric": "accuracy", "count": len(rows), "k": 5, "uncovered": "", **measures}
    return Proxies(pd.DataFrame([{"proxy": name, **same} for name in PROXIES]), pd.concat(found))


WATCH = """
window.times = {};
const wanted = {read: "#front-table tbody tr", open: "#front-chart .main-svg", drawn: "main[aria-busy=false]"};
new MutationObserver(() => {
  for (const [name, selector] of Object.entries(wanted))
    if (!(name in times) && document.querySelector(selector)) times[name] = performance.now() / 1000;
}).observe(document, {childList: true, subtree: true, attributes: true, attributeFilter: ["aria-busy"]});
"""


def opening(path: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds until the tables can be read, until the front is drawn, until everything is, and processor seconds until then, each time."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or sys.exit("no chromium on the PATH")
    found: dict[str, list[float]] = {"read": [], "open": [], "drawn": [], "cpu": []}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        for _ in range(repeats):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            context.add_init_script(WATCH)
            page = context.new_page()
            session = context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(path.as_uri())
            page.wait_for_selector("main[aria-busy=false]")
            metrics = session.send("Performance.getMetrics")["metrics"]
            times = page.evaluate("times") | {"cpu": next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")}
            for name, values in found.items():
                values.append(round(times[name], 2))
            context.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--sites", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep the page in this file")
    given = parser.parse_args()
    facts = study(given.evaluations, given.sites, given.seed)
    start = time.perf_counter()
    data = page_data(facts)
    middle = time.perf_counter()
    text = report_page(data)
    end = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = given.keep or Path(folder) / "report.html"
        path.write_text(text, encoding="utf-8")
        opened = opening(path.resolve(), given.repeats)
    print(json.dumps({
        "benchmark": "report", "evaluations": given.evaluations, "sites": given.sites, "front": int(facts.networks["on_front"].sum()),
        "megabytes": round(len(text.encode()) / 1e6, 2), "of_15_megabytes": round(len(text.encode()) / 15e6, 3),
        "data_seconds": round(middle - start, 2), "page_seconds": round(end - middle, 2),
        **{f"{name}_seconds": seconds for name, seconds in opened.items()},
        "of_3_seconds": round(float(np.median(opened["open"])) / 3, 3),
        "load": round(os.getloadavg()[0] / (os.cpu_count() or 1), 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
