"""What a search has at every budget beside the published rules, on the tables of `ranksearch.rankbench`: the best rule of each budget,
known with hindsight, against what of the portfolio measured best without training and against the best that a search has evaluated within
it. Prints markdown.

    python analysis/budgets.py digits [--trials 40] [--seeds 10]
    python analysis/budgets.py resnet20 --data FOLDER --weights FILE --seeds 5 [--met FILE]

Accuracies are of the images that searches see: the best rule and the best of a search are chosen on them; what the portfolio picks is not,
but on its calibration images. The noise is the standard error of a difference of two accuracies of as many images, drawn independently;
networks share their images here, so that it is less."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from leaderboard import Kept
from samplers import Case, outcomes_of
from samplers import Kept as Shared
from spread import spread

from ranksearch import rankbench
from ranksearch.allocators import ALLOCATORS, Allocator, Problem
from ranksearch.errors import InfeasibleBudget, InvalidArgument
from ranksearch.home import user_path
from ranksearch.proxies import Frobenius, free_proxies
from ranksearch.rankbench import RankBench
from ranksearch.search.run import AFFORDED

RULES: tuple[Allocator, ...] = tuple(rule for rule in ALLOCATORS if rule.name not in ("additive", "minimax"))
SHARES = (0.7, 0.5, 0.4, 0.3, 0.2, 0.1)
IMAGES = {"digits": 397, "resnet20": 256}  # that accuracies are of


def best_rule(bench: RankBench, cost: str, share: float) -> tuple[str, float]:
    """The published rule whose answer to a budget has the highest accuracy, and that."""
    space, found = bench.space, {}
    budget = space.budget(cost, space.limit(cost, share))
    for rule in RULES:
        try:
            answer = rule.allocate(Problem(space, Frobenius().table(space), {cost: budget}))
        except (InfeasibleBudget, InvalidArgument):  # it reaches no such budget, or takes none of this cost
            continue
        found[rule.name] = bench.evaluate(answer.indices)["accuracy"]
    name = max(found, key=lambda rule: found[rule])
    return name, found[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=rankbench.NAMES)
    parser.add_argument("--data", type=user_path, help="folder of CIFAR-10")
    parser.add_argument("--weights", type=user_path, help="safetensors of the ResNet-20")
    parser.add_argument("--met", type=user_path, help="file of what was measured outside the table, made if it is not there")
    parser.add_argument("--sampler", default="surrogate")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    a = parser.parse_args()
    torch.set_num_threads(1)
    bench = rankbench.load(a.name, data=a.data, weights=a.weights)
    kept, space = Kept(a.met, bench), bench.space
    with tempfile.TemporaryDirectory() as folder:
        shared = Shared(Path(folder) / "kept.json", Case.of_bench(bench))
        measured = shared.portfolio.measured(space, free_proxies(), {}, most=AFFORDED * a.trials)
        kept.save()
        searches = []
        for seed in range(a.seeds):
            searches.append(outcomes_of(shared, a.sampler, trials=a.trials, seed=seed, where=())[0])
            kept.save()
    print("| budget | best published rule | portfolio's pick | search | search less rule | noise |\n| --- | --- | --- | --- | --- | --- |")
    for cost in space.costs:
        for share in SHARES:
            most = space.limit(cost, share)
            name, rule = best_rule(bench, cost, share)
            picked = min((m for m in measured if m[0].candidate.cost[cost] <= most), key=lambda m: m[1])[0]
            pick = bench.evaluate(picked.candidate.configuration)["accuracy"]
            ours = [
                100 * max(o.metrics["accuracy"] for o in outcomes if space.cost(space.indices(o.request.configuration))[cost] <= most)
                for outcomes in searches
            ]
            noise = 100 * np.sqrt(2 * rule * (1 - rule) / IMAGES[a.name])
            less = spread([value - 100 * rule for value in ours], sign="+")
            print(f"| {cost} {share:g} | {100 * rule:.1f} {name} | {100 * pick:.1f} | {spread(ours)} | {less} | {noise:.1f} |", flush=True)
    kept.save()


if __name__ == "__main__":
    main()
