"""What a page shows of a study, as JSON data in columns: made of tidy frames (`ranksearch.results.frames`) alone.

Nothing is decided here that a reader may choose: the page itself finds the front of what a filter leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.report.shares import SHARES, Option
from ranksearch.results.names import Direction

LONGEST = 2000  # characters of an error that a page shows


@dataclass(frozen=True)
class CostName:
    """What a cost is called, and how much of it the dense network has."""

    name: str
    label: str
    unit: str
    dense: float


@dataclass(frozen=True)
class Proxies:
    """How well proxies predicted, see `ranksearch.agreement.report`; both frames of one fidelity."""

    agreements: pd.DataFrame
    scores: pd.DataFrame

    @property
    def left_out(self) -> Mapping[str, str]:
        """Proxies that are missing, and why."""
        return self.agreements.attrs.get("left_out", {})


@dataclass(frozen=True)
class Facts:
    """A study as its frames have it, at one fidelity, and what things are called."""

    study: str
    store: str  # without a password
    fidelity: str
    directions: Mapping[str, Direction]  # of the metrics, in the task's order
    objectives: Sequence[str]
    costs: Sequence[CostName]
    evaluations: pd.DataFrame  # of all fidelities
    networks: pd.DataFrame  # the front of the fidelity with its dominated rows
    layers: pd.DataFrame  # one row per evaluation and site
    sites: Sequence[str]  # in the order of the network
    build: Sequence[str]  # the command that rebuilds a network: parts between which its id stands
    made: str  # who made the page, when
    shares: Mapping[Option, Mapping[str, float]] = field(default_factory=dict)  # see `option_shares`
    proxies: Proxies | str = "proxies were not asked for"  # or why there are none



def page_data(facts: Facts) -> dict[str, Any]:
    """JSON data of a page: numbers, text, lists and objects; what is unknown (NaN) is null.

    Networks are the rows of ``networks``, in their order; everything else refers to them by their position. ``choices`` has for
    every site the option of every network, 0 where the layer is dense, else one more than the position in the site's ``options``."""
    networks: Any = facts.networks
    position = {id: at for at, id in enumerate(networks["id"])}
    families, family = _coded([family_of(origin) for origin in networks["origin"]])
    of_fidelity: Any = facts.evaluations[facts.evaluations["fidelity"] == facts.fidelity]
    failed = facts.evaluations[facts.evaluations["status"] != "done"]
    values = [cost.name for cost in facts.costs] + list(facts.directions)
    return {
        "study": facts.study, "store": facts.store, "fidelity": facts.fidelity, "build": list(facts.build),
        "made": facts.made,
        "objectives": [{"name": name, "direction": facts.directions.get(name, "min")} for name in facts.objectives],
        "metrics": [{"name": name, "direction": direction} for name, direction in facts.directions.items()],
        "costs": [{"name": c.name, "label": c.label, "unit": c.unit, "dense": c.dense} for c in facts.costs],
        "counts": {"evaluations": len(of_fidelity), "failed": int((of_fidelity["status"] != "done").sum()), "all": len(facts.evaluations)},
        "networks": {
            "id": networks["id"].tolist(), "seeds": networks["seeds"].tolist(), "factorized": networks["factorized"].tolist(),
            "seconds": _numbers(networks["seconds"], 4), "origin": networks["origin"].tolist(), "family": family,
            "dense": [at for at, dense in enumerate(networks["is_dense"]) if dense],
            "values": {name: _numbers(networks[name]) for name in values},
        },
        "families": families,
        "share_names": SHARES,
        **_layers(facts, position),
        "proxies": _proxies(facts.proxies, position),
        "failures": _failures(failed),
    }  # fmt: skip


def family_of(origin: str) -> str:
    """Who proposed an evaluation, without the budget: ``additive:energy`` of ``additive:energy:macs<=0.5``."""
    return origin.rpartition(":")[0] if "<=" in origin.rpartition(":")[2] else origin


def _coded(names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Distinct names, the most frequent first, and the position of each name among them."""
    codes, found = pd.factorize(pd.Series(names, dtype="object"))
    order = np.argsort(-np.bincount(codes, minlength=len(found)), kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return [str(found[i]) for i in order], place[codes].tolist()


def _numbers(column: Any, digits: int | None = None) -> list[float | int | None]:
    """A column as JSON numbers; NaN and infinity become null. Floats in full, so that comparisons come out as they do in the frame,
    unless so many significant digits are enough."""
    if column.dtype.kind in "iu":
        return column.tolist()
    values = column.to_numpy(dtype=np.float64, na_value=np.nan).tolist()
    if digits is not None:
        values = [float(f"{value:.{digits}g}") if math.isfinite(value) else value for value in values]
    return [value if math.isfinite(value) else None for value in values]


def _layers(facts: Facts, position: Mapping[str, int]) -> dict[str, Any]:
    """The options that networks have at each site, and which each of them has."""
    rows: Any = facts.layers
    rows = rows[rows["id"].isin(list(position)) & (rows["decomposition"] != "dense")]
    sites = list(dict.fromkeys([*facts.sites, *rows["site"].unique()]))
    place = {site: at for at, site in enumerate(sites)}
    columns = ["site", "decomposition", "rank"]
    options: Any = rows.drop_duplicates(columns)[[*columns, "description"]].astype("object").reset_index(drop=True)
    options["number"] = options.groupby("site", sort=False).cumcount() + 1
    merged = rows[["id", *columns]].astype("object").merge(options[[*columns, "number"]], on=columns, how="left", sort=False)
    choices = np.zeros((len(sites), len(position)), dtype=np.int64)
    at_site, of_network = (merged[name].map(at).to_numpy(np.int64) for name, at in (("site", place), ("id", position)))
    choices[at_site, of_network] = merged["number"].to_numpy(np.int64)
    table: list[list[dict[str, Any]]] = [[] for _ in sites]
    for site, decomposition, rank, words, _ in options.itertuples(index=False):
        shares = {name: _number(value) for name, value in facts.shares.get((site, decomposition, rank), {}).items()}
        table[place[site]].append({"type": decomposition, "rank": rank, "words": words or rank, **shares})
    return {"sites": sites, "options": table, "choices": choices.tolist()}


def _number(value: float, digits: int = 5) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def _proxies(proxies: Proxies | str, position: Mapping[str, int]) -> dict[str, Any]:
    if isinstance(proxies, str):
        return {"reason": proxies, "metric": None, "rows": [], "scores": {}, "left_out": []}
    agreements: Any = proxies.agreements.sort_values("kendall", ascending=False, na_position="last", kind="stable")
    found = agreements.to_dict("records")
    rows = [{name: value if isinstance(value, str) else _number(value) for name, value in row.items()} for row in found]
    scores = {}
    for name, scored in proxies.scores.groupby("proxy", sort=False):
        known: Any = scored[scored["id"].isin(list(position))]
        scores[name] = {"network": [position[id] for id in known["id"]], "score": _numbers(known["score"], 6)}
    reasons: dict[str, list[str]] = {}
    for name, reason in proxies.left_out.items():
        reasons.setdefault(reason, []).append(name)
    left_out = [{"proxies": names, "reason": reason} for reason, names in reasons.items()]
    metric = rows[0]["metric"] if rows else None
    return {"reason": None, "metric": metric, "rows": rows, "scores": scores, "left_out": left_out}


def _failures(failed: Any) -> list[dict[str, Any]]:
    """What failed, one row per kind and first line of the error, the most frequent first."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in failed.to_dict("records"):
        text = "no reason is stored" if pd.isna(row["error"]) else str(row["error"]).strip()
        kind = "unknown" if pd.isna(row["error_kind"]) else str(row["error_kind"])
        groups.setdefault((kind, text.split("\n", 1)[0][:300], row["fidelity"]), []).append({**row, "error": text})
    found = [
        {
            "kind": kind, "error": rows[0]["error"][:LONGEST], "fidelity": fidelity, "count": len(rows), "such_as": rows[0]["id"],
            "origins": list(dict.fromkeys(family_of(str(row["origin"])) for row in rows))[:6],
        }
        for (kind, _, fidelity), rows in groups.items()
    ]  # fmt: skip
    return sorted(found, key=lambda row: -row["count"])
