"""``profile --latency``: which types are really faster, layer by layer, and how well the table predicts networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranksearch.cli.tables import percent, plural, table

if TYPE_CHECKING:
    from ranksearch.latency import TableLatency
    from ranksearch.study import Study


def latency_of(study: Study) -> TableLatency:
    """The latency that a study counts."""
    from ranksearch.latency import TableLatency

    return next(cost for cost in study.counts if isinstance(cost, TableLatency))


def has_latency(study: Study) -> bool:
    """Whether a study counts latency."""
    return any(cost.name == "latency" for cost in study.costs)


def rows(study: Study) -> list[dict[str, Any]]:
    """The break-even table as data, one row per different layer and type."""
    from ranksearch.latency import break_even

    found = break_even(latency_of(study), study.dense_network, study.spec.decompositions)
    return [{**asdict(row), "rank": None if row.rank is None else list(row.rank), **_numbers(row.macs, row.ratio)} for row in found]


def _numbers(macs: float, ratio: float) -> dict[str, float | None]:
    """NaN, which JSON has not, as nothing."""
    return {"macs": None if macs != macs else macs, "ratio": None if ratio != ratio else ratio}


def break_even_table(study: Study) -> str:
    """The break-even table in words."""
    cost = latency_of(study)
    known = cost.table
    lines = [f"latency of {known.words()}"]
    fit = known.correction
    if fit.deviation is not None and fit.worst is not None:
        lines.append(
            f"{plural(fit.networks, 'network')} measured as a whole: predicted within {percent(fit.deviation)} in the median, "
            f"{percent(fit.worst)} at worst"
        )
    cells: list[Sequence[Any]] = []
    for row in rows(study):
        site = row["site"] + (f" and {len(row['identical'])} more" if row["identical"] else "")
        share = percent(row["macs"]) if row["rank"] is not None else ""
        ratio = "" if row["ratio"] is None else f"{1 / row['ratio']:.2f} x"
        cells.append((site, row["decomposition"], row["words"] or "never", share, ratio, f"{row['faster']:,} of {row['options']:,}"))
    header = ("site", "type", "really faster up to", "of the MACs", "there", "options faster")
    return "\n".join([*lines, "", table(header, cells, left=header[:3]), *_rounding(study), *_narrower(study)])


def _rounding(study: Study) -> list[str]:
    from ranksearch.latency import suggested_round_to

    found = suggested_round_to(latency_of(study), study.dense_network)
    if found is None:
        return []
    if found == 1:
        return ["\nat the slowest layer every rank counts: round_to=1"]
    return [f"\nat the slowest layer ranks between multiples of {found} take as long as the next multiple: round_to={found}"]


def narrower_rows(study: Study) -> list[dict[str, Any]]:
    """Narrower dense networks as data; metrics that nobody measured as nothing."""
    found = study.questions.narrower().to_dict("records")
    return [{str(name): None if value != value else value for name, value in row.items()} for row in found]


def _narrower(study: Study) -> list[str]:
    found = narrower_rows(study)
    if not found:
        return []
    metrics = [metric.name for metric in study.task.metrics]
    cells = [
        (percent(row["width"]), percent(row["latency_rel"]), percent(row["macs_rel"]), percent(row["params_rel"]),
         *("not trained" if row[name] is None else f"{row[name]:.4f}" for name in metrics))
        for row in found
    ]  # fmt: skip
    return ["\nnarrower dense networks", table(("channels", "latency", "macs", "params", *metrics), cells)]


def write(study: Study, path: Path) -> None:
    """Write the table of a study as CSV."""
    from ranksearch.latency import write_table

    write_table(latency_of(study).table, path)
