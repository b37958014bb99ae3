"""What commands print on stdout: profiles, fronts, and the commands to try next."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranksearch.cli.output import write_frame
from ranksearch.cli.proxies import best_proxy
from ranksearch.cli.tables import amount, count, percent, plural, share, table
from ranksearch.errors import EmptySpace
from ranksearch.printable import printable

if TYPE_CHECKING:
    import pandas as pd

    from ranksearch.sites import Site
    from ranksearch.space.spectra import Spectra
    from ranksearch.study import Study
    from ranksearch.study.replay import Replay

# -- profile ---------------------------------------------------------------------------------------------------------


def profile(study: Study, format_: str, *, latency: bool = False) -> None:
    """Print sites, options, costs, and what was skipped; even of a study whose space is empty. With ``latency`` also which types are
    really faster; as CSV that alone."""
    from ranksearch.cli import latency as latencies

    if latency and format_ == "csv":
        print(_csv(latencies.rows(study)), end="")
        return
    rows = _site_rows(study)
    skipped = [{"name": s.name, "type": s.type, "params": s.params, "reason": s.reason} for s in study.sites.skipped]
    total = study.baseline
    if format_ == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*rows[0], "skipped"] if rows else ["site", "skipped"])
        writer.writerows([*(json.dumps(v) if isinstance(v, dict) else v for v in row.values()), ""] for row in rows)
        columns = list(rows[0]) if rows else ["site"]
        left_out = [{"site": s["name"], "kind": s["type"], "params": s["params"]} for s in skipped]
        writer.writerows([*(s.get(c, "") for c in columns), full["reason"]] for s, full in zip(left_out, skipped, strict=True))
        print(out.getvalue(), end="")
    elif format_ == "json":
        data = {"study": study.name, **total, "sites": rows, "skipped": skipped, "uncounted": list(study.sites.uncounted)}
        data |= {"break_even": latencies.rows(study), "narrower": latencies.narrower_rows(study)} if latency else {}
        with suppress(EmptySpace):  # raised below
            space = study.space
            data |= {"size": str(space.size), "smallest": {name: space.smallest(name) for name in space.costs}}
        print(json.dumps(data, indent=2))
    else:
        dense = ", ".join(f"{amount(total[cost.name])} {cost.unit}" for cost in study.costs)
        print(f"{study.name}: {plural(len(rows), 'site')}; dense network {dense}\n")
        _profile_table(study, rows, skipped)
        if study.sites.uncounted:
            print(f"\nnot in the MACs, since no rule counts these operators: {', '.join(study.sites.uncounted)}")
    if latency and format_ == "table":
        print(f"\n{latencies.break_even_table(study)}")
    _options(study, format_, latency=latency)


def _options(study: Study, format_: str, *, latency: bool) -> None:
    """How many configurations there are; an error where there is nothing to choose, unless latency was asked about."""
    total = study.baseline
    try:
        space = study.space  # raises where there is nothing to choose
    except EmptySpace as error:
        if not latency:
            raise
        print(f"nothing to choose: {error}", file=sys.stderr)  # which is an answer to what was asked
        return
    if format_ == "table":
        digits = str(space.size)
        size = f"{space.size:,}" if len(digits) < 10 else f"about {digits[0]}.{digits[1]}e{len(digits) - 1}"
        least = [f"{share(space.smallest(c.name), total[c.name])} of the {c.label}" for c in study.costs if total[c.name]]
        print(f"\n{size} configurations; the smallest has {', another '.join(least)}")
        print(f"objectives: {', '.join(study.objectives)}; fidelity {study.fidelity.key}; errors in the {space.metric} metric")


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: json.dumps(v) if isinstance(v, (dict, list, tuple)) else v for key, v in row.items()} for row in rows)
    return out.getvalue()


def _site_rows(study: Study) -> list[dict[str, Any]]:
    from ranksearch.costs import dense_layer_cost

    rows = []
    decompositions = {name: d for name, d in study.spectra.decompositions.items() if name != "dense"}
    for site in study.sites:
        cheaper = {name: len(d.options(site)) for name, d in decompositions.items() if d.undefined(site) is None}
        undefined = {name: reason for name, d in decompositions.items() if (reason := d.undefined(site)) is not None}
        kernel = "x".join(str(n) for n in site.shape)
        half = _half(study.spectra, site, cheaper)
        kind = site.kind if site.head is None else f"{site.kind} + head"
        rows.append({
            "site": site.name, "kind": kind, "shape": kernel, **dense_layer_cost(study.counts, study.dense_network, site),
            "options": cheaper, "at_half": half, "undefined": undefined, "aliases": " ".join(site.paths[1:]),
        })  # fmt: skip
    return rows


def _half(spectra: Spectra, site: Site, names: Iterable[str]) -> str:
    """The option of least error with at most half of the site's params, in words; empty where there is none."""
    best: tuple[float, str] = (math.inf, "")
    for name in names:
        profile = spectra.profile(site, name)
        fits = [] if profile is None else [i for i in range(len(profile.params)) if 2 * profile.params[i] <= site.cost.params]
        for i in fits:
            if profile is not None and profile.frobenius[i] < best[0]:
                rank = tuple(int(r) for r in profile.ranks[i])
                words = spectra.decomposition(name).describe(site, rank)
                best = (float(profile.frobenius[i]), f"{name} {words}: error {profile.frobenius[i]:.2f}")
    return best[1]


def _profile_table(study: Study, rows: Sequence[dict[str, Any]], skipped: Sequence[dict[str, Any]]) -> None:
    if rows:
        total = study.baseline

        def amounts(row: dict[str, Any]) -> list[str]:
            return [text for name in total for text in (amount(row[name]), share(row[name], total[name]))]

        cells = [
            (
                r["site"], r["kind"], r["shape"], *amounts(r), ", ".join(f"{name} {n:,}" for name, n in r["options"].items()),
                r["at_half"],
            )
            for r in rows
        ]  # fmt: skip
        labels = [text for cost in study.costs for text in (cost.label, "of all")]
        header = ("site", "kind", "shape", *labels, "options cheaper than dense", "best at half the params")
        print(table(header, cells, left=("site", "kind", "shape", *header[-2:])))
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row["undefined"].items():
            reasons.setdefault((name, reason), []).append(row["site"])
    if reasons:
        print("\nnot defined:")
        header = ("type", "sites", "reason")
        print(table(header, [(name, _some(sites), reason) for (name, reason), sites in reasons.items()], left=header))
    if skipped:
        print("\nskipped (--format csv or json names every one):")
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for module in skipped:
            groups.setdefault((module["reason"], module["type"]), []).append(module)
        header = ("reason", "type", "modules", "params", "such as")
        cells = [
            (reason, kind, f"{len(found):,}", f"{sum(s['params'] for s in found):,}", _some([s["name"] or "(the model)" for s in found]))
            for (reason, kind), found in groups.items()
        ]
        print(table(header, cells, left=("reason", "type", "such as")))


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


# -- fronts ----------------------------------------------------------------------------------------------------------


def front(
    study: Study, where: Sequence[str] | None, objectives: Sequence[str] | None, *, all: bool, fidelity: str | None, format_: str,
    out: Path | None,
) -> None:  # fmt: skip
    """Print or write a front."""
    frame = study.front(where, objectives, all=all, fidelity=fidelity)
    write_frame(frame, format_, out, lambda: front_table(study, frame))
    if where and len(frame) and not frame["on_front"].to_numpy().any():
        print(f"no measured network satisfies {' and '.join(where)}; loosen --where, or search on", file=sys.stderr)


def plotted(
    study: Study, where: Sequence[str] | None, objectives: Sequence[str] | None, path: Path, *, fidelity: str | None = None
) -> None:
    """Draw a front over relative MACs: the first objective that is a metric, or the task's first."""
    from ranksearch.results.plots import plot_front

    names = [metric.name for metric in study.task.metrics]
    metric = next((name for name in objectives or study.objectives if name in names), names[0])
    title = f"{study.name}: {metric} of measured networks" + (f"\n{' and '.join(where)}" if where else "")
    plot_front(study.front(where, objectives, all=True, fidelity=fidelity), metric=metric, title=title, path=path)
    print(f"drawn to {path}", file=sys.stderr)


def front_table(study: Study, frame: pd.DataFrame) -> str:
    """A front as a table: metrics, their change against the dense network, and costs relative to it."""
    if not len(frame):
        return "no evaluation that is stored satisfies this; search on, loosen --where, or ask for another fidelity"
    header, rows = front_cells(study, frame)
    return table(header, rows, left=("id", ""))


def front_cells(study: Study, frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of `front_table`."""
    metrics = [metric.name for metric in study.task.metrics]
    costs = study.costs[::-1]
    labels = [*(f"% {cost.label}" for cost in costs), *(cost.label for cost in costs)]
    header = ["id", *[name for metric in metrics for name in (metric, "change")], *labels, ""]
    rows = []
    for row in frame.to_dict("records"):
        cells: list[str] = [row["id"]]
        for metric in metrics:
            change = "" if math.isnan(row[f"{metric}_delta"]) else f"{row[f'{metric}_delta']:+.4f}"
            cells += [f"{row[metric]:.4f}", change]
        cells += [*(percent(row[f"{cost.name}_rel"]) for cost in costs), *(count(row[cost.name]) for cost in costs)]
        cells.append("dense" if row["is_dense"] else "" if row["on_front"] else "dominated")
        rows.append(cells)
    return header, rows


# -- the ends of search and build --------------------------------------------------------------------------------------


def searched(study: Study, command: Callable[[str], str], objectives: Sequence[str] | None, trials: int | None) -> None:
    """Print the front that a search came to, and what to try next.

    Args:
        trials: that were asked for; None: those of the study's stages."""
    evaluations, frame = study.evaluations(), study.front(None, objectives)
    screened = _screened(evaluations)
    stored = f"{plural(len(evaluations), 'evaluation')} stored{_noted(evaluations, screened)}"
    print(f"\n{study.name}: {stored}. None of these beats another; dense for comparison:\n")
    print(front_table(study, frame))
    errors = [" ".join(str(error).split()) for error in evaluations.loc[evaluations["status"] == "failed", "error"]]
    if errors:
        print("\nfailed: " + "; ".join(f"{number} x {text[:160]}" for text, number in Counter(errors).most_common(3)))
    if study.profiled and (line := best_proxy(study, objectives)) is not None:
        print(f"\n{line}\n  {command('proxies')}")
    factorized = [row["id"] for row in frame.to_dict("records") if row["on_front"] and not row["is_dense"]]
    pick = factorized[len(factorized) // 2] if factorized else "ID"
    metric = study.task.metrics[0]
    bound = f"{metric.name} > 0.98 * baseline" if metric.direction == "max" else f"{metric.name} < 1.02 * baseline"
    print("\nnext:")
    print(f'  {command("front")} --where "{"macs" if study.baseline.macs else "params"} < 0.5 and {bound}"')
    print(f"  {command('build')} {pick} --out {study.name}-{pick}")
    for line in _searches(command("search"), evaluations, screened, trials):
        print(f"  {line}")
    if screened:
        print(f"  {command('front')} --fidelity supernet")


def _screened(evaluations: pd.DataFrame) -> int:
    """How many were measured with a supernet."""
    from ranksearch.evaluation.fidelity import SUPERNET, Fidelity

    kinds = {key: Fidelity.parse(key).kind for key in evaluations["fidelity"].unique()}
    return sum(kinds[key] == SUPERNET for key in evaluations["fidelity"])


def _noted(evaluations: pd.DataFrame, screened: int) -> str:
    """What is to be said of the number of evaluations."""
    ended = Counter(evaluations["status"])
    stopped, failed = ended["stopped"], ended["failed"]
    noted = f", {screened:,} of them screened with a supernet" if screened else ""
    noted += f", {failed} of them failed" if failed else ""
    return noted + (f", {stopped:,} of them stopped early" if stopped else "")


def _searches(search: str, evaluations: pd.DataFrame, screened: int, trials: int | None) -> Iterator[str]:
    """Commands of searches that go on: with more trials, and with another try of what failed."""
    from ranksearch.evaluation.failure import may_be_retried

    if trials is not None:
        yield f"{search} --trials {max(2 * trials, len(evaluations) - screened + trials)}"
        search += f" --trials {trials}"
    failed = evaluations.loc[evaluations["status"] == "failed", "error_kind"]
    kinds = {kind if isinstance(kind, str) else None for kind in failed}
    if any(may_be_retried(kind) for kind in kinds - {"machine"}):
        yield f"{search} --retry-failed"
    elif "machine" in kinds:  # tried again in any case
        yield search


def built(study: Study, directory: Path) -> None:
    """Print what was written."""
    from ranksearch.networks.export import read_manifest

    manifest = read_manifest(directory)
    base = manifest["baseline"]
    print(f"{manifest['id']} written to {directory}")
    rows = [(name, f"{value:.4f}", f"{manifest['measured'].get(name, float('nan')):.4f}") for name, value in manifest["metrics"].items()]
    print(table(("metric", "in the store", "measured now"), rows, left=("metric",)))
    for cost in study.costs:
        of_dense = share(manifest[cost.name], base[cost.name])
        told = f"{of_dense} of the dense network's" if of_dense else "of which the dense network has none"
        print(f"{amount(manifest[cost.name])} {cost.label}, {told}")
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
    print("\n" + table(("file", "MB"), [(name, f"{size / 1e6:.2f}") for name, size in sizes.items()], left=("file",)))
    for text in _loads(manifest, directory):
        print(text)


def _loads(manifest: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """How what was written is loaded, and what is known of its programs."""
    loads = manifest["loads"]
    if "without_ranksearch" in loads:
        yield f"loads without ranksearch: {loads['without_ranksearch']} of {directory}"
    else:
        yield f"loads with ranksearch.load alone: {loads['not_without_ranksearch']}"
    programs = manifest.get("programs", {})
    for name, shape in programs.get("inputs", {}).items():
        yield f"programs take {name}: {' x '.join(map(str, shape))}"
    for name, difference in programs.get("difference", {}).items():
        within = "" if difference is None else f"outputs within {difference:.1e} of their size"
        yield f"{name}: {within or 'not run, since onnxruntime is not installed'}"
    if latency := manifest.get("onnx_latency"):
        yield (
            f"{latency['runtime']}, {latency['threads']} threads: {1e3 * latency['seconds']:.3g} ms, the dense network "
            f"{1e3 * latency['dense_seconds']:.3g} ms: {latency['ratio']:.2f} of it ({latency['low']:.2f} to {latency['high']:.2f})"
        )


def replayed(found: Replay, tolerance: float) -> bool:
    """Print what an evaluation came to then and now; returns whether they agree."""
    then, now = found.then, found.now
    print(f"{then.configuration_id} at {then.fidelity}, seed {then.seed}\n")
    rows = [(name, *(f"{m[name]!r}" if name in m else "" for m in (then.metrics, now.metrics))) for name in {**then.metrics, **now.metrics}]
    rows.append(("status", then.status, now.status))
    print(table(("", "in the store", "now"), rows, left=("",)))
    for record in (then, now):
        if record.error:
            print(f"\nfailed {'then' if record is then else 'now'}: {printable(record.error, limit=400)}")
    verdict = found.verdict(tolerance)
    words = {
        "identical": "it agrees, bit for bit", "close": f"it agrees within {tolerance:g}, though not bit for bit",
        "different": "it does not agree",
    }  # fmt: skip
    differs = "; ".join(f"{name} {one}, now {two}" for name, (one, two) in found.elsewhere.items())
    told = f" (another machine: {differs})" if differs else "" if then.provenance else " (where it was evaluated is not known)"
    print(f"\n{words[verdict]}{'' if verdict == 'identical' else told}")
    return verdict != "different"
