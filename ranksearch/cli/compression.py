"""What ``compress`` reads and shows: budgets from conditions, every rule's answer, and what the network measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ranksearch.cli.tables import amount, percent, table
from ranksearch.errors import InvalidArgument

if TYPE_CHECKING:
    from ranksearch.compression import Compressed
    from ranksearch.study import Study


def budgets(study: Study, conditions: Sequence[str]) -> dict[str, Any]:
    """Upper bounds by cost, as `ranksearch.compress` takes them.

    Raises:
        InvalidArgument: a condition that is not an upper bound on a cost."""
    from ranksearch.results.conditions import BOUNDS, Condition

    found: dict[str, float] = {}
    parsed = Condition.parse_all(conditions, example=BOUNDS)
    for condition in parsed:
        condition.check_bounds([cost.name for cost in study.costs])
    for condition in parsed:
        for name, bound in condition.upper_bounds(study.baseline).items():
            if bound < 0:
                text = f"condition {condition.text!r}: no {name} is below 0"
                raise InvalidArgument(f"{text}; give a share of the dense network's, or an amount")
            found[name] = min(bound, found.get(name, math.inf))
    tiny = 1e-12  # a bound of 0 is positive as a share, and as impossible
    return {name: bound if bound > 1 else max(bound / (study.baseline[name] or 1), tiny) for name, bound in found.items()}


def written(study: Study, found: Compressed, out: Path, *, onnx: bool, torch_export: bool, force: bool) -> None:
    """Measure the network, write it, and print how it was found."""
    from ranksearch.compression.compress import LOSSES
    from ranksearch.networks.export import read_manifest

    dense, measured = study.task.measure(study.model), study.task.measure(found.model)
    facts = {"study": study.name, "options": study.options, "space": study.space_choice, "measured": measured, "dense": dense}
    folder = found.save(out, example=study.task.example(), manifest=facts, onnx=onnx, torch_export=torch_export, force=force)
    frame = found.report()
    costs = [cost for cost in study.costs if f"{cost.name}_rel" in frame]
    answers = frame.to_dict("records")
    rows = [
        (
            r["rule"] + (" *" if r["chosen"] else ""), *(_loss(r[column]) for column in LOSSES),
            *(_share(r[f"{cost.name}_rel"]) for cost in costs),
        )
        for r in answers
    ]  # fmt: skip
    what = "divergence from the dense network" if study.task.predictive == "categorical" else "loss"
    print(f"{what} on held-out training batches (lightly fitted: on seen ones), of every rule's answer; * is written:\n")
    ways = "as it is", "lightly fitted", "reconstructed", "on more batches", "taught as a whole"
    print(table(("rule", *ways, *(f"% {c.label}" for c in costs)), rows, left=("rule",)))
    left_out = [(r["rule"], r["note"]) for r in answers if r["note"]]
    if left_out:
        print("\n" + "\n".join(f"no answer of {rule}: {note}" for rule, note in left_out))
    if found.norms == "re-estimated":
        print("\nthe dense network that answers are compared with has re-estimated statistics of batch norms; below it has its own")
    print()
    print(table(("metric", "dense", "now"), [(m, f"{dense[m]:.4f}", f"{measured[m]:.4f}") for m in measured], left=("metric",)))
    for cost in costs:
        print(
            f"{amount(found.cost[cost.name])} {cost.label}, {percent(found.cost.share(cost.name, found.baseline))} of the dense network's"
        )
    print(f"{found.configuration.id} written to {folder}: " + ", ".join(sorted([*read_manifest(folder)["files"], "manifest.json"])))


def _loss(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else percent(value)
