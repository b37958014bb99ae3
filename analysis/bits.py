"""Ranks, bits and both within budgets of bytes: the exact optima of the Fisher error over ranks and types alone, over bits alone (every
layer dense, of 32, 8 or 4 bits), and over all of them together, refitted, on the test set. Writes a JSON line per network to ``--out``
as it goes, so that a long run can be stopped and widened (what is there is not made again), and prints a markdown table: means over
calibration seeds and their spread. With ``--interaction`` also what rounding adds to the error of low-rank layers.

    python analysis/bits.py --network resnet20 --shared SHARED --out FILE.jsonl

Networks and data are those of `analysis/frontier.py`, and any causal language model (``--network language --model FOLDER
--calibration TEXT --text TEXT ...``), whose perplexity is measured. Budgets are shares of the bytes of the whole network, of which a
language model's ``--layers`` are made smaller.
Calibration seeds take other training examples for everything: moments, reconstruction and batch norm."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from spread import spread
from subjects import LANGUAGE, SPACES, add_arguments, add_language, language, resumed, seeded, subject, wide
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.costs import COSTS, Bytes
from ranksearch.decompositions import BITS, Quantized
from ranksearch.errors import EmptySpace, InfeasibleBudget
from ranksearch.home import user_path
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import Energy
from ranksearch.space import SearchSpace, build_space
from ranksearch.space.spectra import Spectra
from ranksearch.study import Study
from ranksearch.tasks import Classification, LanguageModel

TYPES = ("svd", "no-cp", "all")
WAYS = ("rank", "bits", "both")


class Subject:
    """A network and its spaces for one calibration seed."""

    def __init__(self, given: argparse.Namespace, types: str, seed: int) -> None:
        self.given, self.types = given, types
        self.include = given.layers if given.network == LANGUAGE else "*"
        model, self.task, self.wide = self._language(seed) if given.network == LANGUAGE else self._classifier(seed)
        self.model = model.to(given.device)

    def _language(self, seed: int) -> tuple[nn.Module, LanguageModel, LanguageModel]:
        model, task = language(self.given, seed)
        return model, task, task

    def _classifier(self, seed: int) -> tuple[nn.Module, Classification, Classification]:
        given = self.given
        model, task = subject(given)
        task = seeded(task, seed).cut(**{self.split: given.examples} if given.examples else {})
        return model, task, wide(task, given.network, given.device)

    @property
    def split(self) -> str:
        return "test" if self.given.test else "validation"

    @cached_property
    def spectra(self) -> Spectra:
        spec = SPACES[self.types](bits=",".join(map(str, BITS))).replace(metric="fisher", include=self.include)
        objectives = self.task.metrics[0].name, "bytes"
        return Study("bits", model=self.model, task=self.task, space=spec, costs=(*COSTS, Bytes()), objectives=objectives).spectra

    def space(self, way: str) -> SearchSpace:
        """The ladders of one way to be smaller; all are of one preparation."""
        every = self.spectra.decompositions.values()
        rounded = {d.name: isinstance(d, Quantized) for d in every}
        bare = {d.name: d.name.split("@")[0] == "dense" for d in every}
        chosen = [name for name in rounded if way == "both" or (not rounded[name] if way == "rank" else bare[name])]
        return build_space(self.spectra, types=chosen, costs=(*COSTS, Bytes()))

    def row(self, way: str, budget: float) -> dict[str, Any] | None:
        """What is measured of one network; None where the budget is below every network of the space."""
        start = time.process_time()
        try:
            space = self.space(way)
            found = Additive().allocate(Problem(space, Energy().table(space), {"bytes": budget}))
        except (InfeasibleBudget, EmptySpace):
            return None
        chosen, seconds = space.candidate(found.indices), time.process_time() - start
        network = build(self.spectra, chosen.configuration).eval()
        reconstruct(network, self.spectra, chosen.configuration, self.task.calibration(self.given.batches))
        kinds = Counter(kind for _, kind, _ in chosen.configuration.choices)
        costs = {name: chosen.cost.share(name, space.baseline) for name in space.costs}
        known = {"id": chosen.configuration.id, "seconds": round(seconds, 1), **costs, "kinds": dict(kinds), "loss_predicted": found.value}
        recalibrate(network, self.task.normalization(16))
        return known | self.wide.measure(network, self.split)  # type: ignore[arg-type]

    def interaction(self) -> Iterable[tuple[str, int, float]]:
        """Per layer, type and bits: the median, over ranks, of what rounding adds to the squared error of a low-rank layer, over what it
        adds to that of the dense one."""
        for site in self.spectra.sites:
            for name, decomposition in self.spectra.decompositions.items():
                if not isinstance(decomposition, Quantized) or decomposition.inner.name == "dense":
                    continue
                rounded, plain = self.spectra.profile(site, name), self.spectra.profile(site, decomposition.inner.name)
                dense = self.spectra.profile(site, f"dense@int{decomposition.bits}")
                if rounded is None or plain is None or dense is None:
                    continue
                exact = dict(zip(map(tuple, plain.ranks.tolist()), plain.frobenius, strict=True))
                added = [e**2 - exact[tuple(r)] ** 2 for r, e in zip(rounded.ranks.tolist(), rounded.frobenius, strict=True)]
                if added:
                    yield decomposition.inner.name, decomposition.bits, float(np.median(added) / dense.frobenius[0] ** 2)


def _asked(given: argparse.Namespace) -> dict[str, Any]:
    """What all rows of one table have in common."""
    return {"network": given.network, "split": "test" if given.test else "validation", "examples": given.examples}


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, those of the file first."""
    rows = resumed(given.out)
    for seed, types in product(given.seeds, given.types):
        subject = Subject(given, types, seed)
        for budget, way in product(given.budgets, given.ways):
            key = _asked(given) | {"types": types, "budget": budget, "way": way, "seed": seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            found = subject.row(way, budget)
            if found is not None:
                rows.append(key | found)
                with given.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], file=sys.stderr, flush=True)
        if given.interaction:
            added: dict[tuple[str, int], list[float]] = {}
            for name, bits, ratio in subject.interaction():
                added.setdefault((name, bits), []).append(ratio)
            for (name, bits), ratios in sorted(added.items()):
                print(f"{name} int{bits}: {np.median(ratios):.2f} of what rounding adds to the dense layer", flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]], ways: Sequence[str]) -> str:
    """One line per types and budget: accuracy in %, or perplexity, mean and spread over seeds."""
    lines = ["| types | bytes | " + " | ".join(ways) + " |", "|---" * (len(ways) + 2) + "|"]
    for types, budget in dict.fromkeys((row["types"], row["budget"]) for row in rows):
        cells = []
        for way in ways:
            mine = [r for r in rows if (r["types"], r["budget"], r["way"]) == (types, budget, way)]
            values = [r["perplexity"] if "perplexity" in r else 100 * r["accuracy"] for r in mine]
            cells.append(spread(values))
        lines.append(f"| {types} | {budget:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, images=5000, required=True, more=[LANGUAGE])
    add_language(parser)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25, 0.15, 0.1, 0.075, 0.05], help="shares of the bytes")
    parser.add_argument("--types", nargs="+", default=["all"], choices=TYPES)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of calibration")
    parser.add_argument("--batches", type=int, default=4, help="that factors are fitted to")
    parser.add_argument("--device", default="cpu", help="where networks run and layers are factorized")
    parser.add_argument("--examples", type=int, help="that networks are measured on, the first so many of their split (default: all)")
    parser.add_argument("--test", action=argparse.BooleanOptionalAction, default=True, help="measure on the test set")
    parser.add_argument("--interaction", action="store_true", help="also how rounding adds to low-rank errors")
    parser.add_argument("--out", type=user_path, required=True, help="JSON lines")
    given = parser.parse_args()
    needed = ("model", "calibration", "text") if given.network == LANGUAGE else ("shared",)
    if missing := [f"--{name}" for name in needed if getattr(given, name) is None]:
        parser.error(f"--network {given.network} needs {', '.join(missing)}")
    torch.set_num_threads(1)
    rows = [row for row in run(given) if _asked(given).items() <= row.items()]
    print(table([row for row in rows if row["types"] in given.types], given.ways))


if __name__ == "__main__":
    main()
