"""What `ranksearch.compress` finds beside every rule that it tries, over calibration seeds and budgets: divergence from the dense network
on training images that nothing else has seen, as the factors come and reconstructed, and the accuracy on validation images of the network
that it hands out and of the best published rule's. Prints markdown; cells that ``--keep`` has are not made again.

    python analysis/portfolio.py --data SHARED/data/cifar10 --weights SHARED/models/resnet20_cifar10.safetensors --types svd \
        --budgets params=0.5 params=0.3 params=0.2 --seeds 0 1 2 --keep CELLS.json

A calibration seed is another draw of the images that metrics, measurements and reconstruction see, and of those that networks are
judged on. ``--reconstruction 0`` judges networks as they are alone, which is quick."""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ranksearch import compress
from ranksearch.compression import RULES
from ranksearch.compression.portfolio import HELD_OUT
from ranksearch.home import replacing, user_path
from ranksearch.search.events import Announced
from ranksearch.space import mixture, svd_only
from ranksearch.tasks import Classification
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

SPACES = {"svd": svd_only(), "mixture": mixture()}
PUBLISHED = ("balf", "alds", "alds_heuristic", "energy", "decomposable_net", "stn_storage", "evbmf", "uniform")


def budget(text: str) -> tuple[str, float]:
    """``macs=0.5`` as a name and a number."""
    name, _, value = text.partition("=")
    return name, float(value)


class Redrawn(Classification):
    """A task whose calibration images come later in the same order of the training images."""

    skipped: int  # batches

    def labelled(self, batches: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Task.labelled`."""
        return islice(super().labelled(batches + self.skipped), self.skipped, None)


def redrawn(task: Classification, seed: int, batches: int) -> Classification:
    """The task with calibration images that no other seed has, for up to so many batches; of seed 0 its own."""
    other = copy.copy(task)
    other.__class__, other.skipped = Redrawn, seed * batches  # pyright: ignore[reportAttributeAccessIssue]
    return other


def cell(a: argparse.Namespace, name: str, share: float, seed: int) -> dict[str, Any]:
    """Losses of every rule, before and after reconstruction, and accuracies."""
    model = load_weights(cifar_resnet(a.depth), Path(a.weights)).eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    task, space = cifar10(Path(a.data), validation=a.images), SPACES[a.types]
    seen, split = redrawn(task, seed, space.calibration + HELD_OUT), "test" if a.test else "validation"
    given: dict[str, Any] = {"space": space, "reconstruction": a.reconstruction, "on_event": shown, name: share}
    begin = time.process_time()
    found = compress(model, seen, rules=a.rules, refits=a.refits, contenders=len(RULES), polished=a.polish, **given)
    made: dict[str, Any] = {"chosen": found.chosen.rule, "seconds": time.process_time() - begin}
    rows = found.report().to_dict("records")
    made["rules"] = {r["rule"]: [r["loss"], r["reconstructed"], r["passes"]] for r in rows}
    if a.accuracy:
        made["accuracy"] = task.measure(found.model, split)["accuracy"]
        best = next((r["rule"] for r in rows if r["rule"] in PUBLISHED), None)  # the best comes first
        if best is not None:
            rival = compress(model, seen, rules=[best], **given)
            made |= {"rival": best, "rival_accuracy": task.measure(rival.model, split)["accuracy"]}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=user_path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--weights", type=user_path, required=True, help="safetensors of the ResNet")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--types", choices=list(SPACES), default="svd")
    parser.add_argument("--budgets", type=budget, nargs="+", default=[("params", 0.5), ("params", 0.3)], metavar="COST=SHARE")
    parser.add_argument("--rules", nargs="+", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of calibration")
    parser.add_argument("--refits", type=int, default=3, help="rounds of measuring and refitting")
    parser.add_argument("--reconstruction", type=int, default=4, help="batches; 0: networks as they are")
    parser.add_argument("--polish", type=int, default=0, help="measured exchanges")
    parser.add_argument("--images", type=int, default=5000, help="of validation")
    parser.add_argument("--accuracy", action="store_true", help="of the network handed out, and of the best published rule's")
    parser.add_argument("--test", action="store_true", help="measure accuracies on the test split: for final numbers only")
    parser.add_argument("--keep", type=user_path, help="file of cells, made if it is not there")
    a = parser.parse_args()
    cells = json.loads(a.keep.read_text()) if a.keep and a.keep.exists() else {}
    for name, share in a.budgets:
        of_budget = []
        for seed in a.seeds:
            rest = f"reconstruction={a.reconstruction} refits={a.refits} rules={a.rules}"
            key = f"{Path(a.weights).stem} {a.types} {name}={share:g} seed={seed} {rest}"
            if key not in cells:
                cells[key] = cell(a, name, share, seed)
                if a.keep:
                    with replacing(a.keep) as temporary:
                        temporary.write_text(json.dumps(cells))
            of_budget.append(cells[key])
        show(f"{name} <= {share:g}, {a.types}", of_budget)


def show(title: str, cells: Sequence[Mapping[str, Any]]) -> None:
    """A table of rules, means and standard deviations over the seeds; and ours less the best published one, seed by seed."""
    rules = cells[0]["rules"]
    print(f"{title}: handed out {', '.join(cell['chosen'] for cell in cells)}; {np.mean([cell['seconds'] for cell in cells]):.0f} s\n")
    print("| rule | as it is | reconstructed | passes |\n| --- | --- | --- | --- |")
    for rule in sorted(rules, key=lambda rule: _least(cells, rule).mean()):
        columns = [[cell["rules"][rule][k] for cell in cells] for k in range(3)]
        print(f"| {rule} | {_spread(columns[0])} | {_spread(columns[1])} | {np.mean(columns[2]):.0f} |")
    best = min((rule for rule in rules if rule in PUBLISHED), key=lambda rule: _least(cells, rule).mean(), default=None)
    ours = np.array([min(_least([cell], rule)[0] for rule in rules) for cell in cells])
    if best is not None:
        ratio = ours / _least(cells, best)
        print(f"\nhanded out over {best}, the best published: {_spread(ratio.tolist())}")
    if all("rival" in cell for cell in cells):
        pairs = [[100 * cell[k] for cell in cells] for k in ("accuracy", "rival_accuracy")]
        print(f"accuracy {_spread(pairs[0], 2)} %, of {', '.join(sorted({c['rival'] for c in cells}))} {_spread(pairs[1], 2)} %")
    print(flush=True)


def _least(cells: Sequence[Mapping[str, Any]], rule: str) -> np.ndarray:
    """The better of both losses of a rule in every cell; infinite where it has no answer."""
    losses = np.array([cell["rules"][rule][:2] for cell in cells], dtype=np.float64)
    return np.nanmin(np.where(np.isnan(losses).all(axis=1, keepdims=True), np.inf, losses), axis=1)


def _spread(values: Sequence[float], digits: int = 3) -> str:
    found = np.array(values, dtype=np.float64)
    if np.isnan(found).all():
        return "-"
    deviation = f" ± {found.std(ddof=1):.{digits}f}" if len(found) > 1 else ""
    return f"{found.mean():.{digits}f}{deviation}"


def shown(event: Announced) -> None:
    """Tell what is being done."""
    print(event.text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
