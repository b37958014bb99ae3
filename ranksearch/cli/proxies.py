"""The output of ``proxies``: how well each proxy predicted what was measured."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranksearch.cli.output import write_frame
from ranksearch.cli.tables import plural, table
from ranksearch.errors import InvalidArgument

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.study import Study


def report(
    study: Study, *, objective: str | None, fidelity: str | None, k: int, calibrate: bool, batches: int, format_: str, out: Path | None,
    plot: Path | None,
) -> None:  # fmt: skip
    """Print or write the report, and draw it if asked."""
    from ranksearch.results.plots import plot_proxies

    frame = study.proxies(metric=objective, fidelity=fidelity, k=k, calibrate=calibrate, batches=batches)
    write_frame(frame, format_, out, lambda: proxies_table(frame, {cost.name: cost.label for cost in study.costs}))
    if plot is not None:
        scores = study.report.scores(metric=objective, fidelity=fidelity, calibrate=calibrate, batches=batches)
        plot_proxies(frame, scores, title=f"{study.name}: measured networks against what proxies said of them", path=plot)
        print(f"drawn to {plot}", file=sys.stderr)


def proxies_table(frame: pd.DataFrame, costs: Mapping[str, str]) -> str:
    """The report as text: a table for each fidelity, best proxy first, what each does not cover, and what is left out.
    ``costs`` maps the names of costs to labels."""
    parts = []
    rows = frame.to_dict("records")
    for fidelity in dict.fromkeys(row["fidelity"] for row in rows):
        chosen = sorted((row for row in rows if row["fidelity"] == fidelity), key=_tau, reverse=True)
        first = max(chosen, key=lambda row: row["count"])  # a supernet may know fewer of them
        like = [f"{what} at like {label}" for what in ("tau", "regret") for label in costs.values()]
        header = ("proxy", "tau", "Spearman", f"top-{first['k']} recall", *like)
        cells = [[_named(row, first["count"]), *map(_number, _values(row, costs))] for row in chosen]
        blind = ["(blind choice)", *[""] * (3 + len(costs)), *(_number(first[f"chance_{cost}"], 4) for cost in costs)]
        named = f"{first['metric']} of {plural(first['count'], 'factorized network')} at {fidelity}:"
        parts += [named, table(header, [*cells, blind], left=("proxy",)), ""]
    parts.append("tau, Spearman: 1 orders as measured, 0 is chance; regret: what trusting the proxy loses of the metric at a budget")
    uncovered = {row["proxy"]: row["uncovered"] for row in rows if row["uncovered"]}
    if uncovered:
        parts += ["", "does not cover:", *(f"  {name}: {text}" for name, text in uncovered.items())]
    reasons: dict[str, list[str]] = {}
    for name, reason in frame.attrs.get("left_out", {}).items():
        reasons.setdefault(reason, []).append(name)
    if reasons:
        parts += ["", "left out:", *(f"  {', '.join(names)}: {reason}" for reason, names in reasons.items())]
    return "\n".join(parts)


def best_proxy(study: Study, objectives: Sequence[str] | None) -> str | None:
    """One line: which of the proxies that need no data ordered best what the study measured at its fidelity. None where
    too little is measured to say."""
    names = [metric.name for metric in study.task.metrics]
    metric = next((name for name in objectives or () if name in names), None)
    try:
        frame: Any = study.proxies(metric=metric, fidelity=study.fidelity.key, calibrate=False)
    except InvalidArgument:  # too few evaluations
        return None
    frame = frame[frame["kendall"].notna()]
    if not len(frame):
        return None
    best = frame.loc[frame["kendall"].idxmax()]
    return (
        f"proxies: {best['proxy']} ordered the {best['count']} factorized networks best by {best['metric']} "
        f"(Kendall tau {best['kendall']:.2f}; 1 is perfect, 0 is chance); see all:"
    )


def _named(row: dict[str, Any], every: int) -> str:
    return row["proxy"] if row["count"] == every else f"{row['proxy']} (of {row['count']})"


def _values(row: dict[str, Any], costs: Iterable[str]) -> list[tuple[float, int]]:
    shares = [(row[name], 2) for name in ("kendall", "spearman", "recall", *(f"kendall_{cost}" for cost in costs))]
    return [*shares, *((row[f"regret_{cost}"], 4) for cost in costs)]


def _number(value: Any, digits: int = 2) -> str:
    if isinstance(value, tuple):
        value, digits = value
    return "-" if value != value else f"{value:.{digits}f}"


def _tau(row: dict[str, Any]) -> float:
    return -2.0 if row["kendall"] != row["kendall"] else row["kendall"]
