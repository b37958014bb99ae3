"""What reconstruction is worth: the exact optima of the Fisher error at several budgets, as they are and refitted, each pair on the same
network. Writes a JSON line per network and way to ``--out`` as it goes, so that a long run can be stopped and widened (what is there is
not made again), and prints a markdown table: means over calibration seeds, their spread, and the difference from the networks as they are.

    python analysis/reconstruction.py --data SHARED/data/cifar10 --weights SHARED/models/resnet20_cifar10.safetensors --out FILE.jsonl

``--ways "as it is" refitted fine-tuned "refitted and fine-tuned"`` compares with training; rows have the processor seconds that each took.

Calibration seeds take other training images for everything: moments, reconstruction and batch norm. ``--before FILE.py`` compares with the
``reconstruct(network, dense, batches)`` of an earlier version, which fitted last factors alone."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from spread import spread
from subjects import resumed
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.decompositions import DECOMPOSITIONS
from ranksearch.errors import InfeasibleBudget
from ranksearch.home import user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy
from ranksearch.space import Configuration, SearchSpace, SpaceSpec, mixture, svd_only
from ranksearch.space.spectra import Spectra
from ranksearch.study import Study
from ranksearch.tasks.images import cifar10
from ranksearch.tasks.networks import cifar_resnet, load_weights

Fit = Callable[[nn.Module, Spectra, Configuration, Iterable[Any]], Any]
SPACES: dict[str, Callable[[], SpaceSpec]] = {"svd": svd_only, "all": mixture}
AS_IT_IS, BEFORE = "as it is", "last factors"


def by_numbers(*given: Any, **options: Any) -> Any:
    """`reconstruct` with a number for the curvature of every factor, as of types that say nothing of their axes."""
    with ExitStack() as changed:
        for kind in {type(decomposition) for decomposition in DECOMPOSITIONS}:
            changed.enter_context(patch.object(kind, "axes", lambda self, site: None))
        return reconstruct(*given, **options)


WAYS: dict[str, Fit] = {
    AS_IT_IS: lambda *given: None,
    "refitted": reconstruct,
    "two rounds": lambda *given: reconstruct(*given, rounds=2),
    "unchecked": lambda *given: reconstruct(*given, held_out=0),
    "thorough": lambda *given: reconstruct(*given, thorough=True),
    "by numbers": by_numbers,
    "thorough by numbers": lambda *given: by_numbers(*given, thorough=True),
}
TRAINED = {"fine-tuned": AS_IT_IS, "refitted and fine-tuned": "refitted"}  # way -> what comes before training


class Subject:
    """A network and its spaces, by types, for one calibration seed."""

    def __init__(self, given: argparse.Namespace, seed: int) -> None:
        self.given = given
        self.model = load_weights(cifar_resnet(given.depth), given.weights).eval().to(memory_format=torch.channels_last)
        task = cifar10(given.data, validation=given.images, learning_rate=given.learning_rate)
        # calibration batches are drawn from all training images: of fewer, others are drawn
        self.task = task.cut(train=task.sizes()["train"] - seed, **{self.split: given.images})
        self._spaces: dict[str, tuple[Spectra, SearchSpace]] = {}

    @property
    def split(self) -> str:
        return "test" if self.given.test else "validation"

    def space(self, types: str) -> tuple[Spectra, SearchSpace]:
        """Spectra and ladders in the Fisher metric, made once."""
        if types not in self._spaces:
            study = Study(f"reconstruction-{types}", model=self.model, task=self.task, space=SPACES[types]().replace(metric="fisher"))
            self._spaces[types] = study.spectra, study.space
        return self._spaces[types]

    def rows(self, types: str, cost: str, budget: float, ways: Iterable[str]) -> Iterable[dict[str, Any]]:
        """What is measured of one network; nothing where the budget is below every network of the space."""
        spectra, space = self.space(types)
        try:
            found = Additive().allocate(Problem(space, Energy().table(space), {cost: budget}))
        except InfeasibleBudget:
            return
        configuration = space.configuration(found.indices)
        for way in ways:
            network, start = build(spectra, configuration).eval(), time.process_time()
            WAYS[TRAINED.get(way, way)](network, spectra, configuration, self.task.calibration(self.given.batches))
            if way in TRAINED:
                self.task.fine_tune(network, epochs=self.given.epochs, seed=0)
            seconds = time.process_time() - start
            recalibrate(network, self.task.normalization(16))
            measured = self.task.measure(network, self.split)  # type: ignore[arg-type]
            yield {"way": way, "id": configuration.id, "seconds": round(seconds, 1), **measured}


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, those of the file first."""
    rows = resumed(given.out)
    for seed in range(given.seeds):
        subject = Subject(given, seed)
        for types, cost, budget in product(given.types, given.costs, given.budgets):
            key = {"depth": given.depth, "split": subject.split, "types": types, "cost": cost, "budget": budget, "seed": seed}
            known = {row["way"] for row in rows if key.items() <= row.items()}
            for row in subject.rows(types, cost, budget, [way for way in given.ways if way not in known]):
                rows.append(key | row)
                with given.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]], ways: Sequence[str]) -> str:
    """One line per types, cost and budget: accuracy in %, mean and spread over seeds, and behind it the gain over the same networks as
    they are."""
    lines = ["| types | budget | " + " | ".join(ways) + " |", "|---" * (len(ways) + 2) + "|"]
    for types, cost, budget in dict.fromkeys((row["types"], row["cost"], row["budget"]) for row in rows):
        found = {(r["way"], r["seed"]): 100 * r["accuracy"] for r in rows if (r["types"], r["cost"], r["budget"]) == (types, cost, budget)}
        cells = []
        for way in ways:
            values = {seed: value for (name, seed), value in found.items() if name == way}
            gains = [value - found[AS_IT_IS, seed] for seed, value in values.items() if (AS_IT_IS, seed) in found]
            cell = spread(list(values.values()))
            cells.append(cell if way == AS_IT_IS or not gains else f"{cell}; {spread(gains, '+')}")
        lines.append(f"| {types} | {cost} {budget:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def earlier(path: Path) -> Fit:
    """The reconstruction of an earlier version, from its file."""
    spec = importlib.util.spec_from_file_location("earlier_reconstruction", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda network, spectra, _configuration, batches: module.reconstruct(network, spectra.model, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=user_path, required=True)
    parser.add_argument("--weights", type=user_path, required=True)
    parser.add_argument("--out", type=user_path, required=True, help="file of JSON lines")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--types", nargs="+", choices=list(SPACES), default=list(SPACES))
    parser.add_argument("--costs", nargs="+", default=["params", "macs"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.2, 0.1, 0.05])
    parser.add_argument("--ways", nargs="*", choices=[*WAYS, *TRAINED], default=[AS_IT_IS, "refitted"])
    parser.add_argument("--before", type=user_path, help="reconstruction.py of an earlier version")
    parser.add_argument("--epochs", type=float, default=0.2, help="of fine-tuning, where it is a way")
    parser.add_argument("--learning-rate", type=float, default=0.002)
    parser.add_argument("--seeds", type=int, default=3, help="of calibration")
    parser.add_argument("--batches", type=int, default=4, help="that networks are fitted to")
    parser.add_argument("--images", type=int, default=1500, help="to measure on")
    parser.add_argument("--test", action="store_true", help="measure on the test set: for final numbers only")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.before is not None:
        WAYS[BEFORE] = earlier(given.before)
        given.ways = [*given.ways, BEFORE]
    print(table(run(given), given.ways))


if __name__ == "__main__":
    main()
