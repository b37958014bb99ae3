"""A study's facts without a study: frames of records made up here, with names that mean harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.report.data import CostName, Facts, Proxies, page_data
from ranksearch.results import frames
from ranksearch.results.choices import read
from ranksearch.results.history import history
from ranksearch.results.layers import OptionTable, layers
from ranksearch.space import DENSE, Configuration
from ranksearch.store import Record, Store

BASELINE = {"params": 1000, "macs": 10_000}
DIRECTIONS: dict[str, Any] = {"accuracy": "max", "loss": "min"}
OBJECTIVES = ("accuracy", "macs")
FIDELITY = "full:epochs=1"
START = datetime(2026, 1, 1, tzinfo=UTC)
SITES = ("stem", "body.0", "body.1", "head")
HARM = (
    "<img src=x onerror=\"window.harmed='img'\">", "</script><script>window.harmed='script'</script>", "\"'`&lt;b&gt;<b>${1}%{x}$y$", 
    "<i>&amp;</i>",
    "слой·層·\u202eright to left·🧅", "a" * 400,
)  # fmt: skip


def record(configuration: Configuration, accuracy: float, macs: int, at: int, **other: Any) -> Record:
    values = {"status": "done", "metrics": {"accuracy": accuracy, "loss": 1 - accuracy}, "origin": "nsga2", "seconds": 2.0} | other
    costs = {"params": macs // 10, "macs": macs}
    created = START + timedelta(seconds=2 * at)
    return Record(configuration.id, configuration.to_json(), FIDELITY, 0, costs=costs, created=created, **values)


def records(count: int, sites: Sequence[str] = SITES, *, seed: int = 0, failures: int = 2) -> list[Record]:
    """The dense network, ``count`` factorized ones, and failures."""
    rng = np.random.default_rng(seed)
    made = [record(DENSE, 0.95, 10_000, 0, origin="dense")]
    for at in range(1, count + 1):
        ranks = rng.integers(1, 9, len(sites))
        choices: dict[str, tuple[str, tuple[int, ...]]] = {}
        for n, (site, rank) in enumerate(zip(sites, ranks.tolist(), strict=True)):
            if rank < 7:
                choices[site] = ("tucker2", (rank, 4)) if n % 2 else ("svd", (rank,))
        if not choices:
            continue
        share = 0.1 + 0.05 * rng.integers(0, 17)  # of few values, so that some are equal
        accuracy = round(0.95 - 0.3 * (1 - share) ** 2 - 0.05 * rng.random(), 2)
        origin = f"additive:energy:macs<={share:.1g}" if at % 3 == 0 else "nsga2"
        made.append(record(Configuration(choices), accuracy, int(10_000 * share), at, origin=origin))
    kept = list({r.configuration_id: r for r in made}.values())
    for at in range(failures):
        broken = Configuration({sites[0]: ("cp", (at + 1,))})
        error = "ValueError: <b>no</b> & none\nTraceback"
        kept.append(record(broken, 0.0, 500, count + at, status="failed", metrics={}, error=error, error_kind="code"))
    return kept


def facts(rows: Sequence[Record], *, study: str = "made up", sites: Sequence[str] = SITES, proxies: Proxies | str | None = None) -> Facts:
    with Store.open("sqlite://", study="s", fingerprint="f") as store:
        for row in rows:
            assert store.add(row)
        columns, attempts = store.columns(frames.FACTS), store.columns(frames.FACTS, every_attempt=True)
        chosen = read(store.configurations(), {site: site for site in sites})
    factorized = (chosen.codes >= len(chosen.sites)).sum(axis=1)[chosen.rows(columns["configuration_id"])]
    evaluated = frames.evaluations(columns | {"factorized": factorized}, BASELINE, [*DIRECTIONS.items()])
    number = len(chosen.options)
    words = ["" if name == "dense" else f"r={rank[0]}" for _, name, rank in chosen.options]
    costs = {name: np.array([4 if kind == "dense" else 1 for _, kind, _ in chosen.options]) for name in BASELINE}
    table = OptionTable(costs, dict.fromkeys(BASELINE, np.full(number, 4)), np.full(number, 0.5), words)
    directions = {name: DIRECTIONS.get(name, "min") for name in OBJECTIVES}
    networks = frames.front(evaluated, directions, baseline=BASELINE, dominated=True)
    return Facts(
        study=study, store="/tmp/made.db", stored=len(rows), fidelity=FIDELITY, directions=DIRECTIONS, objectives=OBJECTIVES,
        costs=[CostName("params", "params", "params", 1000), CostName("macs", "MACs", "MACs", 10_000)], networks=networks,
        layers=layers(evaluated, chosen, table), history=history(evaluated, directions), sites=sites,
        failures=frames.failures(attempts, lambda kind: kind == "code"), build=("ranksearch build made.py ", " --out made-", ""),
        made="Made on a day", rank_shares={(site, name, "x".join(map(str, rank))): 0.25 for site, name, rank in chosen.options},
        proxies=judged(networks) if proxies is None else proxies,
    )  # fmt: skip


def judged(networks: pd.DataFrame) -> Proxies:
    """Two proxies, of which one orders as accuracy does."""
    rows: Any = networks[~networks["is_dense"]]
    found = rows[["id", "fidelity", "macs_rel"]].assign(measured=rows["accuracy"])
    scores = pd.concat([found.assign(proxy="energy", score=1 - rows["accuracy"]), found.assign(proxy="blind", score=1.0)])
    agreements = pd.DataFrame([agreement("blind", float("nan"), len(rows)), agreement("energy", 1.0, len(rows))])
    agreements.attrs["left_out"] = {"fisher": "no <i>calibration</i>", "taylor": "no <i>calibration</i>"}
    return Proxies(agreements, scores)


def agreement(name: str, kendall: float, count: int) -> Mapping[str, Any]:
    costs = {f"{what}_{cost}": 0.5 for cost in BASELINE for what in ("kendall", "regret", "chance", "pairs")}
    return {
        "proxy": name, "fidelity": FIDELITY, "metric": "accuracy", "count": count, "kendall": kendall, "spearman": kendall, "recall": 1.0,
        "k": 5, "uncovered": "", **costs,
    }  # fmt: skip


class Shown:
    """What a dashboard shows: rows that a test changes."""

    def __init__(self, rows: Sequence[Record]) -> None:
        self.rows, self.read = list(rows), 0
        self.problem: Exception | None = None

    def version(self) -> int:
        if self.problem is not None:
            raise self.problem
        return len(self.rows)

    def data(self) -> dict[str, Any]:
        self.read += 1
        live = {
            "writers": ["pid 7 on here"], "evaluations": len(self.rows), "failed": 2, "planned": 100, "last": START.timestamp(),
            "per_minute": 30.0, "at_a_time": 2, "left": 160.0,
        }  # fmt: skip
        return page_data(facts(self.rows)) | {"live": live}


def until(page: Any, condition: str) -> None:
    """Wait for a condition; not by `wait_for_function`, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{condition} did not come to be")
