"""Learned topologies against a published rule: `adaptive` beside `ranksearch.decompositions.slice_rule` as it was published, with one
threshold whose network comes nearest to the wanted storage from below, and cores by 300 sweeps of alternating least squares.
`adaptive` fits a few structures of that rule as well, beside those that it grows, with fewer sweeps; `--grown` shows growth alone.

    python analysis/topology.py --weights SHARED/models/resnet20_cifar10.safetensors --budgets 0.5 0.25
    python analysis/topology.py --structured --seeds 10"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ranksearch.decompositions.adaptive import Adaptive, graph, learned_path, modes, stored_bonds
from ranksearch.decompositions.exact_structure import with_hub
from ranksearch.decompositions.network import Bonds, contract, core_shapes, fit, reduce, start, stored, widen
from ranksearch.decompositions.network_growth import grow
from ranksearch.decompositions.slice_rule import slice_structures
from ranksearch.home import user_path
from ranksearch.sites import Site

SWEEPS = 300  # of least squares, as in the published code

# name -> sizes of the modes, widths of the bonds of the tensor that is made; node 4 is a hub
STRUCTURES: dict[str, tuple[tuple[int, ...], dict[tuple[int, int], int]]] = {
    "train": ((12, 10, 8, 12), {(0, 1): 2, (1, 2): 3, (2, 3): 2}),
    "star": ((12, 10, 8, 12), {(0, 1): 2, (0, 2): 2, (0, 3): 3}),
    "Tucker": ((12, 10, 8, 12), {(0, 4): 2, (1, 4): 3, (2, 4): 2, (3, 4): 2}),
    "ring": ((12, 10, 8, 12), {(0, 1): 2, (1, 2): 2, (2, 3): 2, (0, 3): 2}),
}


@dataclass(frozen=True)
class Outcome:
    """A network: what it stores, and its relative error."""

    params: int
    error: float
    graph: str


def slice_rule(tensor: Tensor, budget: int) -> Bonds | None:
    """The widest bonds of the rule that store at most ``budget`` numbers; None where rank one stores more."""
    return max(
        (b for b in slice_structures(tensor) if stored(tensor.shape, b) <= budget), key=lambda b: stored(tensor.shape, b), default=None
    )


def fitted(tensor: Tensor, bonds: Bonds) -> float:
    """Relative error of a network of these bonds after `SWEEPS` of alternating least squares from one start."""
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(shape, generator=generator, dtype=torch.float64).to(tensor) for shape in core_shapes(tensor.shape, bonds)]
    begins = [random, widen(start(tensor), bonds, generator)]
    error = min(fit(tensor, cores, sweeps=SWEEPS, tolerance=1e-6)[1] for cores in begins)
    return (error / float(tensor.square().sum())) ** 0.5


def learned(tensor: Tensor, *, grown: bool) -> list[Outcome]:
    """The options of `adaptive`, cheapest first; of growth alone if ``grown``."""
    sizes = tuple(tensor.shape)
    reduced = reduce(tensor)
    outcomes = []
    if grown:
        path = [(with_hub(step.bonds, len(sizes)), step.cores) for step in grow(reduced.core, sizes)]
    else:
        path = learned_path(reduced, sizes)
    for rank, cores in path:
        error = float((contract(reduced.lift(cores), len(sizes)) - tensor).norm() / tensor.norm())
        outcomes.append(Outcome(stored(sizes, stored_bonds(rank, len(sizes))), error, graph(rank, _names(len(sizes)))))
    return outcomes


def _names(count: int) -> list[str]:
    return [f"m{k + 1}" for k in range(count)]


@dataclass(frozen=True)
class Comparison:
    """The rule at one budget, and the best options of `adaptive` within what the rule stores and within the budget; None: nothing fits."""

    name: str
    shape: tuple[int, ...]
    budget: int
    rule: Outcome | None
    within_as_much: Outcome | None
    within_budget: Outcome | None

    def row(self) -> str:
        """A line of the table."""
        cells = [self.name, " x ".join(map(str, self.shape)), str(self.budget)]
        cells += [str(self.rule.params), f"{self.rule.error:.3g}", self.rule.graph] if self.rule else ["none", "", ""]
        cells += [f"{self.within_as_much.error:.3g}" if self.within_as_much else ""]
        best = self.within_budget
        cells += [str(best.params), f"{best.error:.3g}", best.graph] if best else ["none", "", ""]
        return "| " + " | ".join(cells) + " |"


HEADER = (
    "| tensor | modes | budget | rule: stored | error | bonds | `adaptive` in as much: error | in the budget: stored | error | bonds |\n"
    + "|---" * 10
    + "|"
)


def compare(name: str, tensor: Tensor, budgets: list[int], *, grown: bool = False) -> Iterator[Comparison]:
    """The rule and `adaptive` on one tensor, at every budget."""
    options = learned(tensor, grown=grown)

    def within(limit: int) -> Outcome | None:
        return max((o for o in options if o.params <= limit), key=lambda o: o.params, default=None)

    for budget in budgets:
        bonds = slice_rule(tensor, budget)
        rule = None
        if bonds is not None:
            edges = graph(with_hub(bonds, tensor.ndim), _names(tensor.ndim))
            rule = Outcome(stored(tensor.shape, bonds), fitted(tensor, bonds), edges)
        yield Comparison(name, tuple(tensor.shape), budget, rule, within(rule.params) if rule else None, within(budget))


def summary(rows: list[Comparison]) -> str:
    """How often `adaptive` errs less, and the mean ratio of the errors above rounding, at the same budget."""
    compared = [(r.within_budget.error, r.rule.error) for r in rows if r.rule and r.within_budget]
    wins = sum(ours < theirs for ours, theirs in compared)
    ratios = [math.log(ours / theirs) for ours, theirs in compared if min(ours, theirs) > 1e-8]
    mean = f"; geometric mean of the errors' ratio, adaptive to rule: {math.exp(sum(ratios) / len(ratios)):.3f}" if ratios else ""
    return f"adaptive errs less in {wins} of {len(compared)} comparisons{mean}"


def structured(name: str, seed: int) -> tuple[Tensor, int]:
    """A noiseless tensor of a structure, and what the structure stores."""
    sizes, widths = STRUCTURES[name]
    nodes = 5 if any(4 in pair for pair in widths) else 4
    bonds = tuple(widths.get(pair, 1) for pair in itertools.combinations(range(nodes), 2))
    generator = torch.Generator().manual_seed(seed)
    cores = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in core_shapes(sizes, bonds)]
    return contract(cores, 4), stored(sizes, bonds)


def trained(path: Path, largest: int) -> Iterator[tuple[str, Tensor]]:
    """The weights of a file that `adaptive` is defined for, over their modes; those of more entries than ``largest`` are left out."""
    for name, weight in sorted(load_file(path).items()):
        if weight.ndim not in (2, 4) or weight.numel() > largest:
            continue
        kernel = (int(weight.shape[2]), int(weight.shape[3])) if weight.ndim == 4 else (1, 1)
        c_out, c_in = weight.shape[:2]
        site = Site(name, "conv2d" if weight.ndim == 4 else "linear", c_out, c_in, kernel, bias=False)
        if Adaptive().undefined(site) is None:
            yield name.removesuffix(".weight"), weight.double().reshape(tuple(modes(site).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=user_path, default=None, help="safetensors file of a trained network")
    parser.add_argument("--structured", action="store_true", help="also noiseless tensors of known structure, at their storage")
    parser.add_argument("--random", type=int, nargs="*", default=None, metavar="N", help="also a Gaussian tensor of these modes")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.25], help="shares of the dense parameters")
    parser.add_argument("--largest", type=int, default=40_000, help="entries of the largest weight that is taken")
    parser.add_argument("--grown", action="store_true", help="growth alone instead of all that `adaptive` tries")
    parser.add_argument("--seeds", type=int, default=3, help="of the tensors that are drawn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=user_path, default=None, help="markdown file")
    given = parser.parse_args()
    if given.weights is None and not given.structured and not given.random:
        parser.error("nothing to compare on: give --weights, --structured or --random")
    torch.set_num_threads(given.threads)
    began = time.process_time()
    rows: list[Comparison] = []
    lines = [HEADER]
    print(HEADER, flush=True)
    for name, tensor, budgets in cases(given):
        for row in compare(name, tensor, budgets, grown=given.grown):
            rows.append(row)
            lines.append(row.row())
            print(lines[-1], flush=True)
    lines += ["", f"{summary(rows)}; {time.process_time() - began:.0f} s of processor time"]
    print("\n".join(lines[-2:]))
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n")


def cases(given: argparse.Namespace) -> Iterator[tuple[str, Tensor, list[int]]]:
    """What is asked for: name, tensor, budgets in numbers stored."""

    def shares(tensor: Tensor) -> list[int]:
        return [int(share * tensor.numel()) for share in given.budgets]

    if given.weights is not None:
        for name, tensor in trained(given.weights, given.largest):
            yield name, tensor, shares(tensor)
    for seed in range(given.seeds):
        for name in STRUCTURES if given.structured else ():
            tensor, storage = structured(name, seed)
            yield f"{name}, seed {seed}", tensor, [storage]
        if given.random:
            tensor = torch.randn(given.random, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            yield f"random, seed {seed}", tensor, shares(tensor)


if __name__ == "__main__":
    main()
