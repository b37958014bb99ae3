"""What a page shows of a study, as JSON data in columns: made of tidy frames (`ranksearch.results.frames`) alone.

Nothing is decided here that a reader may choose: the page itself finds the front of what a filter leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.report.shares import Option
from ranksearch.results.history import finder
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
    """A study as its frames have it (``docs/analysis.md``), at one fidelity, and what things are called."""

    study: str
    store: str  # without a password
    stored: int  # evaluations of all fidelities
    fidelity: str
    directions: Mapping[str, Direction]  # of the metrics, in the task's order
    objectives: Sequence[str]
    costs: Sequence[CostName]
    networks: pd.DataFrame  # `front` with its dominated rows
    layers: pd.DataFrame
    history: pd.DataFrame
    failures: pd.DataFrame  # of all fidelities
    sites: Sequence[str]  # in the order of the network
    build: Sequence[str]  # the command that rebuilds a network: parts between which its id stands
    made: str  # who made the page, when
    rank_shares: Mapping[Option, float] = field(default_factory=dict)  # see `ranksearch.report.shares`
    proxies: Proxies | str = "they were not asked for"  # or why there are none
    narrower: pd.DataFrame | None = None  # dense networks with fewer channels, see `ranksearch.study.questions.Questions.narrower`


def page_data(facts: Facts) -> dict[str, Any]:
    """JSON data of a page: numbers, text, lists and objects; what is unknown (NaN) is null.

    Networks are the rows of ``networks``, in their order; everything else refers to them by their position. ``choices`` has for
    every site the option of every network, 0 where the layer is dense, else one more than the row in the site's ``options``.
    Whoever proposed something stands in ``families``, the most frequent first, and is referred to by the position there."""
    networks: Any = facts.networks
    position = {id: at for at, id in enumerate(networks["id"])}
    families = _by_frequency(facts.history["finder"])
    failed: Any = facts.history["status"] == "failed"
    values = [cost.name for cost in facts.costs] + list(facts.directions)
    return {
        "study": facts.study, "store": facts.store, "fidelity": facts.fidelity, "build": list(facts.build), "made": facts.made,
        "objectives": [{"name": name, "direction": facts.directions.get(name, "min")} for name in facts.objectives],
        "metrics": [{"name": name, "direction": direction} for name, direction in facts.directions.items()],
        "costs": [{"name": c.name, "label": c.label, "unit": c.unit, "dense": c.dense} for c in facts.costs],
        "counts": {
            "evaluations": len(facts.history), "failed": int(failed.sum()), "all": facts.stored,
        },
        "networks": {
            "id": networks["id"].tolist(), "seeds": networks["seeds"].tolist(), "factorized": networks["factorized"].tolist(),
            "seconds": _numbers(networks["seconds"], 4), "origin": networks["origin"].tolist(),
            "family": [families.setdefault(finder(origin), len(families)) for origin in networks["origin"]],
            "dense": [at for at, dense in enumerate(networks["is_dense"]) if dense],
            "values": {name: _numbers(networks[name]) for name in values},
        },
        **_layers(facts, position),
        "history": _history(facts.history, families, position),
        "families": list(families),
        "proxies": _proxies(facts.proxies, position),
        "narrower": _narrower(facts),
        "failures": _failures(facts.failures),
    }  # fmt: skip


def _by_frequency(column: Any) -> dict[str, int]:
    """The values of a column, the most frequent first, with their positions."""
    counts = column.value_counts()
    return {str(name): at for at, name in enumerate(counts.index[counts > 0])}


def _numbers(column: Any, digits: int | None = None) -> list[float | int | None]:
    """A column as JSON numbers; NaN and infinity become null. Floats in full, so that comparisons come out as they do in the frame,
    unless so many significant digits are enough."""
    if pd.api.types.is_integer_dtype(column.dtype):
        return [None if value is pd.NA else value for value in column.tolist()]
    values = column.to_numpy(dtype=np.float64, na_value=np.nan).tolist()
    if digits is not None:
        values = [float(f"{value:.{digits}g}") if math.isfinite(value) else value for value in values]
    return [value if math.isfinite(value) else None for value in values]


def _layers(facts: Facts, position: Mapping[str, int]) -> dict[str, Any]:
    """The options that networks have at each site, which each of them has, and what is known of options."""
    known = bool(facts.layers["relative_error"].notna().to_numpy().any())
    names = {"rank_share": "rank, share of full rank"}
    names |= {f"{c.name}_rel": f"{c.label}, share of the dense layer's" for c in facts.costs if f"{c.name}_rel" in facts.layers}
    names |= {"relative_error": "relative error"} if known else {}
    rows: Any = facts.layers
    networks = rows["id"].cat.categories.map(lambda id: position.get(id, -1)).to_numpy(dtype=np.int64)[rows["id"].cat.codes]
    kept = (networks >= 0) & (rows["decomposition"] != "dense").to_numpy()
    rows, networks = rows[kept], networks[kept]
    sites = list(dict.fromkeys([*facts.sites, *rows["site"].cat.categories]))
    place = {site: at for at, site in enumerate(sites)}
    at_site = rows["site"].cat.categories.map(place).to_numpy(dtype=np.int64)[rows["site"].cat.codes]
    parts = [at_site, rows["decomposition"].cat.codes.to_numpy(np.int64), rows["rank"].cat.codes.to_numpy(np.int64)]
    keys = np.ravel_multi_index(parts, [int(part.max(initial=0)) + 1 for part in parts])
    distinct, first, code = np.unique(keys, return_index=True, return_inverse=True)
    table: list[dict[str, list[Any]]] = [{name: [] for name in ("type", "words", *names)} for _ in sites]
    numbers = np.zeros(len(distinct), dtype=np.int64)
    for at, row in enumerate(rows.iloc[first].to_dict("records")):
        values = row | {"rank_share": facts.rank_shares.get((row["site"], row["decomposition"], row["rank"]), math.nan)}
        option = {"type": row["decomposition"], "words": row["description"] or row["rank"]}
        option |= {name: _number(float(values[name]), 3) for name in names}
        of_site = table[place[row["site"]]]
        for name, value in option.items():
            of_site[name].append(value)
        numbers[at] = len(of_site["type"])
    choices = np.zeros((len(sites), len(position)), dtype=np.int64)
    choices[at_site, networks] = numbers[code]
    return {"sites": sites, "options": table, "choices": choices.tolist(), "cells": names}


def _history(frame: Any, families: Mapping[str, int], position: Mapping[str, int]) -> dict[str, Any]:
    """The hypervolume over evaluations, of the seed that has the most of them."""
    seed = int(frame["seed"].mode()[0]) if len(frame) else 0
    rows = frame[frame["seed"] == seed]
    return {
        "seed": seed, "seeds": int(frame["seed"].nunique()), "network": [position.get(id) for id in rows["id"]],
        "number": rows["number"].tolist(), "elapsed": _numbers(rows["elapsed"], 6),
        "hypervolume": _numbers(rows["hypervolume"], 6), "gain": _numbers(rows["gain"], 6),
        "family": [families[name] for name in rows["finder"]], "failed": (rows["status"] == "failed").astype(int).tolist(),
    }  # fmt: skip


def _narrower(facts: Facts) -> list[dict[str, Any]]:
    """Narrower dense networks, the widest first, with all values that are known of them by name."""
    rows: Any = [] if facts.narrower is None else facts.narrower.to_dict("records")
    names = [cost.name for cost in facts.costs] + list(facts.directions)
    return [
        {
            "width": _number(row["width"]), "low": _number(row["low"]), "high": _number(row["high"]),
            "values": {name: _number(float(row[name]), 12) for name in names if name in row},
        }
        for row in rows
    ]  # fmt: skip


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
    """What failed, one row per kind, fidelity and first line of the error, the most frequent first."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in failed.to_dict("records"):
        text = "no reason is stored" if pd.isna(row["error"]) else str(row["error"]).strip()
        kind = "unknown" if pd.isna(row["error_kind"]) else str(row["error_kind"])
        groups.setdefault((kind, text.split("\n", 1)[0][:300], row["fidelity"]), []).append({**row, "error": text})
    found = [
        {
            "kind": kind, "error": rows[0]["error"][:LONGEST], "fidelity": fidelity, "count": len(rows), "such_as": rows[0]["id"],
            "resolved": sum(row["resolved"] for row in rows), "retry": sum(row["retry"] for row in rows),
            "finders": list(dict.fromkeys(finder(str(row["origin"])) for row in rows))[:6],
        }
        for (kind, _, fidelity), rows in groups.items()
    ]  # fmt: skip
    return sorted(found, key=lambda row: -row["count"])
