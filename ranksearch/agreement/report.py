"""How well the proxies predicted what a study measured: tidy DataFrames with stable columns.

`agreements`: one row per proxy and fidelity. Lower is better in every score and, inside, in every measurement.

| column | type | meaning |
| --- | --- | --- |
| proxy | string | see `docs/proxies.md` |
| fidelity | string | of the measurements: the store's key, such as with or without fine-tuning |
| metric | string | the measured metric |
| count | int | configurations compared: measured, on the study's ladders, not the dense network |
| kendall | float | Kendall's tau-b of score and measurement over all pairs; 1 is perfect, 0 is chance |
| spearman | float | Spearman's rank correlation |
| recall | float | share of the k measured best among the k best scored |
| k | int | at most half of count |
| kendall_COST | float | for each cost: tau over the pairs that differ in it by at most the tolerance |
| pairs_COST | int | how many pairs that are |
| regret_COST | float | mean over budgets of the metric lost by trusting the proxy among configurations of about that cost |
| chance_COST | float | the same for a blind choice |
| uncovered | string | what the proxy does not see in this study, "site: reason; ..." |

NaN where there is too little to compare. ``attrs["left_out"]`` maps proxies that are missing to the reason.

`scores`: one row per proxy, fidelity and configuration.

| column | type | meaning |
| --- | --- | --- |
| proxy, fidelity, id | string | as above, and the configuration |
| score | float | of the proxy |
| measured | float | the metric as the task reports it, mean over seeds |
| COST_rel | float | each cost as a share of the dense network's; NaN where that has none |
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ranksearch.agreement.measures import proxy_agreement
from ranksearch.errors import InvalidArgument
from ranksearch.proxies import ProxyContext, ScoreProxy, TableProxy, make_proxies, score, tables
from ranksearch.space import DENSE, Configuration, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table
from ranksearch.store import Record

LEAST = 3  # measured configurations below which nothing is said about a fidelity
COLUMNS = ("proxy", "fidelity", "metric", "count", "kendall", "spearman", "recall", "k", "uncovered")  # and, before the last, of costs:
COST_COLUMNS = {"kendall": "kendall_matched", "pairs": "pairs_matched", "regret": "regret", "chance": "regret_chance"}  # of every cost
SCORE_COLUMNS = ("proxy", "fidelity", "id", "score", "measured")  # and COST_rel of every cost
_TEXT, _WHOLE = {"proxy", "fidelity", "metric", "uncovered", "id"}, {"count", "k"}


@dataclass(frozen=True)
class Measured:
    """What a study measured, without the dense network, which every proxy scores 0: it would only flatter them."""

    space: SearchSpace  # the study's, cut down to the options that were measured
    ids: tuple[str, ...]
    indices: np.ndarray  # int64, shape: (n, n_sites), in ``space``
    metric: str
    sign: int  # -1 where larger is better
    values: Mapping[str, np.ndarray]  # fidelity -> metric as reported, mean over seeds, shape: (n,); NaN: not measured


def measured(
    records: Iterable[Record], space: SearchSpace, metric: str, *, larger_is_better: bool, fidelity: str | None = None
) -> Measured:
    """The finished evaluations of a store, by fidelity; of one only, if named. Configurations that are not on the
    ladders (of an earlier, other space) and fidelities with fewer than ``LEAST`` of them are left out.

    Raises:
        InvalidArgument: no fidelity has ``LEAST``, or the store does not have the one that is named.
    """
    records = list(records)
    known = sorted({record.fidelity for record in records})
    if fidelity is not None and known and fidelity not in known:
        raise InvalidArgument(f"fidelity={fidelity!r}: nothing was measured at it; the store has {', '.join(known)}")
    found, rows = _collected([r for r in records if fidelity in (None, r.fidelity)], space, metric)
    enough = {name: values for name, values in sorted(found.items()) if len(values) >= LEAST}
    if not enough:
        most = max((len(values) for values in found.values()), default=0)
        at = f" at fidelity {fidelity}" if fidelity else ""
        raise InvalidArgument(
            f"{most} factorized networks of this space are measured{at}; at least {LEAST} are needed to judge proxies: search on with "
            "more trials"
        )
    ids = tuple(id for id in rows if any(id in values for values in enough.values()))
    small, indices = _reduced(space, np.array([rows[id] for id in ids]))
    values = {name: np.array([np.mean(v[id]) if id in v else np.nan for id in ids]) for name, v in enough.items()}
    return Measured(small, ids, indices, metric, -1 if larger_is_better else 1, values)


def _collected(
    records: Iterable[Record], space: SearchSpace, metric: str
) -> tuple[dict[str, dict[str, list[float]]], dict[str, np.ndarray]]:
    """What finished evaluations of factorized networks measured, by fidelity and configuration id, a value per seed; and the option
    indices of these configurations, by id. Configurations that are not on the ladders are left out."""
    found: dict[str, dict[str, list[float]]] = {}
    rows: dict[str, np.ndarray] = {}
    for record in records:
        if record.status != "done" or record.configuration_id == DENSE.id or metric not in record.metrics:
            continue
        if record.configuration_id not in rows:
            try:
                rows[record.configuration_id] = space.indices(Configuration.from_json(record.configuration))
            except InvalidArgument:  # not on the ladders
                continue
        found.setdefault(record.fidelity, {}).setdefault(record.configuration_id, []).append(record.metrics[metric])
    return found, rows


def _reduced(space: SearchSpace, indices: np.ndarray) -> tuple[SearchSpace, np.ndarray]:
    """The space with only the options in use and dense, so that a table costs one value per measured option."""
    used = [np.unique(np.append(indices[:, s], len(ladder) - 1)) for s, ladder in enumerate(space.ladders)]
    ladders = tuple(ladder.take(kept) for ladder, kept in zip(space.ladders, used, strict=True))
    columns = [np.searchsorted(kept, indices[:, s]) for s, kept in enumerate(used)]
    return SearchSpace(ladders, space.baseline, metric=space.metric), np.stack(columns, axis=1)


def agreement_columns(costs: Iterable[str]) -> tuple[str, ...]:
    """The columns of `agreements` for a space with these costs."""
    return (*COLUMNS[:-1], *(f"{name}_{cost}" for cost in costs for name in COST_COLUMNS), COLUMNS[-1])


def without_moments(spectra: Spectra) -> dict[str, str]:
    """Sites of which the metric of the space knows nothing: their errors, in the weight metric, are beside the others'."""
    if not spectra.moments:
        return {}
    names = [site.name for site in spectra.sites if site.name not in spectra.moments]
    return {name: "no statistics: its error is in the weight metric, in another unit than the others'" for name in names}


class SolvedProxy(TableProxy):
    """A table proxy whose table for one space was computed."""

    def __init__(self, name: str, table: Table, uncovered: Mapping[str, str]) -> None:
        self.name, self._table, self._uncovered = name, table, dict(uncovered)

    def table(self, space: SearchSpace) -> Table:
        return self._table

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        return self._uncovered


def solve(proxies: Sequence[TableProxy], space: SearchSpace, unseen: Mapping[str, str] | None = None) -> list[TableProxy]:
    """The same proxies with their tables for one space computed. ``unseen``: sites of which the metric of the space knows
    nothing, added to what proxies whose values are errors in it do not cover."""
    found = zip(proxies, tables(proxies, space), strict=True)
    return [
        SolvedProxy(proxy.name, table, dict((unseen or {}) if proxy.in_metric else {}) | dict(proxy.uncovered(space)))
        for proxy, table in found
    ]  # fmt: skip


def agreements(data: Measured, proxies: Sequence[TableProxy | ScoreProxy], *, k: int = 5, tolerance: float = 0.05) -> pd.DataFrame:
    """One row per proxy and fidelity; columns: see the top of this module.

    Args:
        k: how many count as the best.
        tolerance: how far costs may differ to be matched, as a share of the larger.
    """
    oriented = {name: data.sign * values for name, values in data.values.items()}
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for row in proxy_agreement(data.space, proxies, data.indices, oriented, k=k, tolerance=tolerance):
        base = {name: row[name] for name in ("proxy", "fidelity", "count", "kendall", "spearman", "recall", "k")}
        uncovered = "; ".join(f"{site}: {reason}" for site, reason in row["uncovered"].items())
        into = merged.setdefault((row["proxy"], row["fidelity"]), base | {"metric": data.metric, "uncovered": uncovered})
        into |= {f"{name}_{row['cost']}": row[source] for name, source in COST_COLUMNS.items()}
    return _typed(list(merged.values()), agreement_columns(data.space.costs), {f"pairs_{cost}" for cost in data.space.costs})


def scores(data: Measured, proxies: Sequence[TableProxy | ScoreProxy]) -> pd.DataFrame:
    """One row per proxy, fidelity and configuration; columns: see the top of this module."""
    rows = []
    dense = data.space.baseline
    costs = {f"{name}_rel": table.score(data.indices) / (dense[name] or np.nan) for name, table in data.space.cost_tables.items()}
    for proxy in proxies:
        found = score(proxy, data.space, data.indices)
        for fidelity, values in data.values.items():
            for i in np.flatnonzero(np.isfinite(values)):
                shares = {name: share[i] for name, share in costs.items()}
                rows.append(
                    {"proxy": proxy.name, "fidelity": fidelity, "id": data.ids[i], "score": found[i], "measured": values[i]} | shares
                )
    return _typed(rows, (*SCORE_COLUMNS, *costs))


class MeasuredScores(ScoreProxy):
    """Scores that were measured before, such as a supernet's: the metric at another fidelity, lower is better."""

    def __init__(self, name: str, indices: np.ndarray, values: np.ndarray, uncovered: Mapping[str, str] | None = None) -> None:
        self.name, self._uncovered = name, dict(uncovered or {})
        self._scores = {row.tobytes(): float(value) for row, value in zip(indices, values, strict=True)}

    def score(self, space: SearchSpace, indices: np.ndarray) -> np.ndarray:
        return np.array([self._scores[row.tobytes()] for row in np.atleast_2d(indices)])

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        return self._uncovered


def _scored(proxy: ScoreProxy, data: Measured) -> MeasuredScores:
    """A score proxy whose scores of what was measured are computed once."""
    return MeasuredScores(proxy.name, data.indices, proxy.score(data.space, data.indices), proxy.uncovered(data.space))


def measured_scores(data: Measured, records: Iterable[Record], cheap: Mapping[str, str]) -> list[tuple[Measured, MeasuredScores]]:
    """What cheap fidelities said as proxies of the others, each with the configurations that have both: those pairs that
    have at least ``LEAST``.

    Args:
        records: of the store, of all fidelities.
        cheap: fidelity -> name of the proxy.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record.fidelity in cheap and record.status == "done" and data.metric in record.metrics:
            found.setdefault(record.fidelity, {}).setdefault(record.configuration_id, []).append(record.metrics[data.metric])
    pairs = []
    for fidelity, values in found.items():
        rows = np.array([i for i, id in enumerate(data.ids) if id in values], dtype=np.int64)
        others = {name: column[rows] for name, column in data.values.items() if name not in cheap}
        others = {name: column for name, column in others.items() if np.isfinite(column).sum() >= LEAST}
        if others:
            ids, indices = tuple(data.ids[i] for i in rows), data.indices[rows]
            proxy = MeasuredScores(cheap[fidelity], indices, data.sign * np.array([np.mean(values[id]) for id in ids]))
            pairs.append((replace(data, ids=ids, indices=indices, values=others), proxy))
    return pairs


def joined(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Rows of one after those of the other, both of the same columns."""
    return pd.concat([first, second], ignore_index=True).astype(first.dtypes.to_dict())


@dataclass(frozen=True)
class ProxyReport:
    """What was measured, and the proxies of it."""

    data: Measured
    proxies: Sequence[TableProxy | ScoreProxy]
    cheaper: Sequence[tuple[Measured, MeasuredScores]]  # see `measured_scores`
    left_out: Mapping[str, str]

    def agreements(self, *, k: int = 5, tolerance: float = 0.05) -> pd.DataFrame:
        frame = agreements(self.data, self.proxies, k=k, tolerance=tolerance)
        for both, proxy in self.cheaper:
            frame = joined(frame, agreements(both, [proxy], k=k, tolerance=tolerance))
        frame.attrs["left_out"] = dict(self.left_out)
        return frame

    def scores(self) -> pd.DataFrame:
        frame = scores(self.data, self.proxies)
        for both, proxy in self.cheaper:
            frame = joined(frame, scores(both, [proxy]))
        return frame


def judge(data: Measured, context: ProxyContext, extra: Sequence[TableProxy | ScoreProxy] = ()) -> ProxyReport:
    """Every proxy of the table that the context allows, and ``extra`` ones, on what was measured.

    Args:
        data: in the options of the context's space that were measured.
        context: of the study.
        extra: other proxies to be judged, after those of the table.
    """
    proxies, missing = make_proxies(context)
    proxies += extra
    tabled = [proxy for proxy in proxies if isinstance(proxy, TableProxy)]
    solved = dict(zip(tabled, solve(tabled, data.space, without_moments(context.spectra)), strict=True))
    return ProxyReport(data, [solved[p] if isinstance(p, TableProxy) else _scored(p, data) for p in proxies], (), missing)


def _typed(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], whole: Collection[str] = ()) -> pd.DataFrame:
    kinds = {c: "string" if c in _TEXT else "int64" if c in _WHOLE or c in whole else "float64" for c in columns}
    return pd.DataFrame(list(rows), columns=list(columns)).astype(kinds)
