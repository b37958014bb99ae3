"""What a judge of networks is worth whose batch norms normalize by their batch, and one that re-estimates their statistics, as those of a
network that is handed out. Several rules choose types and ranks at one budget; each network is judged as its factors come, and fitted to
some batches and to more. Prints a markdown table, and how well each judge orders all of them: Kendall's tau with test accuracy, over all
pairs and over pairs that were made in one way.

    python analysis/judges.py --network resnet20 --space all --cost params --budget 0.3 --shared SHARED"""

from __future__ import annotations

import argparse

import torch
from frontier import FINISH, FITTED, NORMALIZATION, Subject
from subjects import add_arguments, add_budget

from ranksearch.agreement.measures import agreement
from ranksearch.compression import RULES, judge
from ranksearch.networks.batch_norm import recalibrate

Row = tuple[str, int, float, float, float]  # rule, batches fitted to, losses by batch and re-estimated, accuracy
CHOSEN = ("fisher", "fisher_relative", "activation", "lems", "energy_weight", "stn_storage")


def rows(given: argparse.Namespace) -> list[Row]:
    """Every rule's network in every way."""
    made = Subject(given)
    portfolio = made.portfolio
    portfolio.budgets = {given.cost: given.budget}
    by_batch = judge(portfolio.model, portfolio.task, portfolio.data.held_out)
    found: list[Row] = []
    for name in given.rules:
        rule = next(rule for rule in RULES if rule.name == name)
        spectra, space = portfolio.space(rule.metric)
        chosen = rule.choose(spectra, space, portfolio.budgets, portfolio.seen(rule.metric))
        for batches in (0, FITTED, FINISH):
            network = portfolio.network(rule.metric, space.configuration(chosen.indices), batches)
            losses = by_batch(network), portfolio.judge(network)
            recalibrate(network, made.task.calibration(NORMALIZATION))
            found.append((name, batches, *losses, made.wide.measure(network, "test")["accuracy"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, images=5000, required=True)
    add_budget(parser, cost="params", budget=0.3)
    parser.add_argument("--rules", nargs="+", choices=[rule.name for rule in RULES], default=CHOSEN)
    parser.add_argument("--seed", type=int, default=0, help="of calibration")
    parser.add_argument("--test-images", type=int, help="only the first so many of the test split")
    parser.add_argument("--threads", type=int, default=1)
    parser.set_defaults(max_options=None, contenders=len(RULES), device="cpu", prepare="cpu", costs=(), runtime="eager", batch=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table = rows(given)
    print("| rule | fitted to | norms by batch | re-estimated | accuracy |\n" + "|---" * 5 + "|")
    for name, batches, by_batch, estimated, accuracy in table:
        print(f"| {name} | {batches} batches | {by_batch:.4f} | {estimated:.4f} | {100 * accuracy:.1f} |")
    ways, errors = [1 + row[1] for row in table], [-row[4] for row in table]
    for label, column in (("norms by batch", 2), ("re-estimated", 3)):
        found = agreement([float(row[column]) for row in table], errors, ways, tolerance=0)
        print(f"\n{label}: tau with test accuracy {found.kendall:.2f}, among networks made in one way {found.kendall_matched:.2f}")


if __name__ == "__main__":
    main()
