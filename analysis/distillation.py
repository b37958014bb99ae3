"""What it is worth that a compressed network learns the dense one's answers as a whole, and what it takes: the ranks of one rule at some
budgets, their factors as they come and fitted to calibration batches, each taught afterwards, on batches that nothing has seen
(``fresh``, as `ranksearch.compress` does) or on those alone that factors were fitted to (``fitted to``), at the rate that is found for it
or at given ones. Prints one JSON line per network: divergence from the dense one on held-out batches, validation accuracy in %, seconds.

    python analysis/distillation.py --network resnet20 --space svd --cost macs --budgets 0.3 0.1 --shared SHARED
    python analysis/distillation.py ... --batches "fitted to" --rates 0.03 --starts 16"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from frontier import DISTILL, FINISH, NORMALIZATION, Subject
from subjects import SPACES, add_arguments
from torch import nn

from ranksearch.compression import RULES
from ranksearch.networks import distillation
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.distillation import unseen_first
from ranksearch.space import Configuration
from ranksearch.space.spectra import Spectra

BATCHES = ("fresh", "fitted to")


def told(made: Subject, network: nn.Module, start: float, **facts: Any) -> None:
    """One line about a network, whose norms are re-estimated for it."""
    facts["seconds"] = round(time.process_time() - start, 1)
    facts["divergence"] = round(made.portfolio.judge(network), 4)
    recalibrate(network, made.task.calibration(NORMALIZATION))
    print(json.dumps(facts | {"accuracy": round(100 * made.task.measure(network)["accuracy"], 2)}), flush=True)


def taught(
    made: Subject, network: nn.Module, spectra: Spectra, configuration: Configuration, given: argparse.Namespace, **facts: Any
) -> None:  # fmt: skip
    """A network in all ways of being taught."""
    portfolio = made.portfolio
    for batches, steps, rate in product(given.batches, given.steps, given.rates or [None]):

        def inputs(fresh: bool = batches == "fresh", count: int = steps) -> Iterator[Any]:
            seen, kept = portfolio.data.seen, len(portfolio.data.held_out)
            return unseen_first(made.task, count, seen=seen, kept=kept) if fresh else made.task.calibration(FINISH)

        if rate is not None:  # whether the network bears it or not
            distillation.RATES, distillation.RISE, distillation.BROKEN = (rate,), float("inf"), float("inf")
        other, start = copy.deepcopy(network), time.process_time()
        divergence = portfolio.task.divergence
        rate = distillation.distill(other, spectra, configuration, inputs, steps=steps, divergence=divergence)
        told(made, other, start, **facts, batches=batches, steps=steps, rate=rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, images=5000, required=True)
    parser.add_argument("--space", choices=list(SPACES), default="svd")
    parser.add_argument("--cost", choices=("params", "macs"), default="macs")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.3, 0.1])
    parser.add_argument("--rule", choices=[rule.name for rule in RULES], default="lems")
    parser.add_argument("--starts", type=int, nargs="+", default=[0, FINISH], help="batches that factors are fitted to before; 0: none")
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=["fresh"])
    parser.add_argument("--steps", type=int, nargs="+", default=[DISTILL])
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="instead of the one that is found")
    parser.add_argument("--seed", type=int, default=0, help="of calibration")
    parser.add_argument("--threads", type=int, default=1)
    parser.set_defaults(max_options=None, test_images=None, contenders=1, device="cpu", prepare="cpu", costs=(), runtime="eager", batch=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    made = Subject(given)
    rule = next(rule for rule in RULES if rule.name == given.rule)
    for budget in given.budgets:
        made.portfolio.budgets = {given.cost: budget}
        spectra, space = made.portfolio.space(rule.metric)
        chosen = rule.choose(spectra, space, made.portfolio.budgets, made.portfolio.seen(rule.metric))
        configuration = space.configuration(chosen.indices)
        for batches in given.starts:
            facts = {"budget": budget, "fitted": batches}
            start = time.process_time()
            network = made.portfolio.network(rule.metric, configuration, batches)
            told(made, copy.deepcopy(network), start, **facts, steps=0)
            taught(made, network, spectra, configuration, given, **facts)


if __name__ == "__main__":
    main()
