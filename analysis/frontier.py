"""The quality frontier: every published rule of choosing types and ranks and ours, as the factors come and reconstructed, without training,
over networks, spaces, budgets and calibration seeds. One process makes the rows of one network, space and seed, and writes each to
``--out`` when it has it; what is there is not made again, so that a run that ended goes on, and many run side by side. Every loss that is
measured on the way is noted there, too, until anything that it hangs on changes: a large network's cell takes an hour.

    python analysis/frontier.py --network resnet20 --space svd --seed 0 --shared SHARED --out FOLDER
    python analysis/frontier.py --table --out FOLDER

A calibration seed draws other training examples for everything: moments, measurements, reconstruction, batch norm, and the held-out
batches that networks are judged on, which alone decide what is handed out (`ranksearch.compress`, made here rule by rule so that the
rows of one network share their preparation). Test examples are for the reported numbers only. Every rule's network is measured as its
factors come and after a light reconstruction; ``--contenders N`` takes to the test set, and reconstructs, only those of the N published
and N other rules with the least loss. The factors of the answer that loses least are then fitted to more batches, as `compress` does.
``--prepare`` says where types are prepared and ``--device`` where networks run: small layers are factorized faster on a CPU."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from notes import Notes, hangs_on
from spread import spread
from subjects import SPACES, add_arguments, resumed, rewritten, rows_of, seeded, subject, wide
from torch import nn

from ranksearch.compression import RULES, Tried
from ranksearch.compression.compress import REFITS
from ranksearch.compression.norms import reference
from ranksearch.compression.portfolio import HELD_OUT, REFIT, Data, Portfolio
from ranksearch.costs import COSTS, check_costs
from ranksearch.home import user_path
from ranksearch.latency import RUNTIMES, Latency
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.space import Configuration
from ranksearch.statistics.metric import MetricName

BUDGETS = (0.7, 0.5, 0.3, 0.2, 0.1)
PUBLISHED = (
    "balf", "alds", "alds_heuristic", "energy", "decomposable_net", "stn_storage", "evbmf", "uniform", "frobenius", "energy_weight", "lems",
)  # fmt: skip
METRICS: dict[str, MetricName] = {rule.name: rule.metric for rule in RULES}
ALL = (*METRICS, REFIT)
FITTED = 4  # batches that networks are measured on while ranks are chosen, and factors fitted to
NORMALIZATION = 16  # batches for batch norm
FINISH = 16  # batches that factors of the best answer are fitted to in the end
DISTILL = 80  # batches of which its parameters learn the dense network's answers after that
WAYS = AS_IT_IS, FIT, FINISHED, DISTILLED = "as it is", "reconstructed", "finished", "distilled"
HANGS_ON = (  # what losses hang on
    "network", "weights", "encoder", "fashion", "shared", "space", "seed", "max_options", "test_images", "images", "prepare", "device",
    "runtime", "batch",
)  # fmt: skip
LIGHTLY = "lightly fitted"  # loss on batches that ranks are chosen with: which networks contend


class Subject:
    """A network, a space and a calibration seed: the portfolio that `compress` would make of them, asked rule by rule."""

    def __init__(self, given: argparse.Namespace, notes: Notes) -> None:
        spec = SPACES[given.space]().replace(max_options=given.max_options)
        model, task = subject(given)
        self.task = seeded(task, given.seed)
        if given.test_images:
            self.task = self.task.cut(test=given.test_images)
        self.wide = wide(self.task, given.network, given.device)
        self.model, seen = model.to(given.device), spec.calibration
        held_out = list(self.task.labelled(seen + HELD_OUT))[-HELD_OUT:]
        timed = Latency(runtime=given.runtime, batch=given.batch)
        costs = check_costs((*COSTS, timed) if timed.name in given.costs else COSTS)
        imitated, self.norms = reference(self.model, self.task, "auto", seen=seen, recalibration=NORMALIZATION, tell=lambda event: None)
        self.portfolio = Portfolio(
            imitated, self.task, spec, costs, {}, Data(seen, held_out), FITTED, NORMALIZATION,
            tell=lambda event: None, two_sided=True, contenders=1, device=torch.device(given.prepare),
            notes=notes,
        )  # fmt: skip
        self._contenders, self._notes = given.contenders, notes

    @cached_property
    def dense(self) -> dict[str, float]:
        """Accuracy and loss of the dense network, as it was given, on the test set."""
        return self.wide.measure(self.model, "test")

    def rows(self, cost: str, budget: float, names: Sequence[str]) -> list[dict[str, Any]]:
        """What every rule comes to at a budget."""
        self.portfolio.budgets = {cost: budget}
        found: list[dict[str, Any]] = []
        answers: dict[str, Tried] = {}
        for name in sorted(names, key=lambda name: (name == REFIT, METRICS.get(name, "fisher"))):  # so that each metric is prepared once
            start = time.perf_counter()
            answer = self._answer(name, [*answers.values()])
            if answer.configuration is None:
                found.append({"rule": name, "error": answer.note})
                continue
            assert answer.cost is not None
            seconds, baseline = time.perf_counter() - start, self.portfolio.space(answer.metric)[1].baseline
            shares = {key: answer.cost.share(key, baseline) for key in baseline}
            row = {"rule": name, "shares": shares, "choosing": round(seconds, 2), "configuration": answer.configuration.to_json()}
            network = self.portfolio.network(answer.metric, answer.configuration)
            answers[name] = answer
            found.append(row | {AS_IT_IS: {"held_out": self.portfolio.judge(network)}, LIGHTLY: answer.light})
        contenders = [(row, way, answers[row["rule"]]) for row, way in contending(found, self._contenders)]
        for row, way, answer in sorted(contenders, key=lambda one: one[2].metric):
            row[way] = self._measured(answer, way)
        self.finish(found)
        return found

    def finish(self, rows: Sequence[dict[str, Any]]) -> None:
        """Fit the answer that loses least of all rows of a cell once more, to more batches, and teach it the dense network's answers as a
        whole."""
        ways = [(row, way) for row in rows for way in (AS_IT_IS, FIT) if way in row]
        if not ways:  # no rule has an answer: what is in no layer is more than the budget
            return
        row, _ = min(ways, key=lambda one: one[0][one[1]]["held_out"])
        start, metric = time.perf_counter(), METRICS.get(row["rule"], "fisher")
        losses = [row[way]["held_out"] if way in row else float("nan") for way in (AS_IT_IS, FIT)]
        configuration = Configuration.from_json(row["configuration"])
        best = Tried(row["rule"], metric, configuration, None, loss=losses[0], reconstructed=losses[1])
        best = self.portfolio.finished(best, FINISH)
        network = self.portfolio.handed_out(best)
        if best.finished == best.least:
            row[FINISHED] = self._tried(network, start)
        best = self.portfolio.taught(network, best, DISTILL)
        if best.distilled == best.least:
            row[DISTILLED] = self._tried(network, start)

    def _answer(self, name: str, known: Sequence[Tried]) -> Tried:
        """What a rule chooses, lightly fitted; *measure, refit, resolve* begins with the best of the other rules' answers."""
        if name != REFIT:
            return self.portfolio.tried(next(rule for rule in RULES if rule.name == name), screened=True)
        found = self.portfolio.refitted(known, REFITS)
        light = self.portfolio.fitted(found.metric)(found.configuration) if found.configuration else float("nan")
        return replace(found, light=light)

    def _measured(self, answer: Tried, way: str) -> dict[str, float]:
        """Loss on the held-out batches, and accuracy and loss on the test set; made once per network."""
        assert answer.configuration is not None
        known, name = self._notes[f"on the test set, {way}", answer.metric], answer.configuration.id
        if name not in known:
            start = time.perf_counter()
            network = self.portfolio.network(answer.metric, answer.configuration, FITTED if way == FIT else 0)
            known[name] = self._tried(network, start)
        return known[name]

    def _tried(self, network: nn.Module, start: float) -> dict[str, float]:
        recalibrate(network, self.task.calibration(NORMALIZATION))  # as the judge does, which need not do it again
        found = {"held_out": self.portfolio.judge.as_given(network), "seconds": round(time.perf_counter() - start, 2)}
        return found | self.wide.measure(network, "test")


def contending(rows: Sequence[dict[str, Any]], count: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Which rows are taken to the test set, and in which way, of the published and of the other rules: reconstructed, those that lose least
    when lightly fitted; as they come, these and those that lose least so, since of ruined networks a constant one may."""
    answered = [row for row in rows if LIGHTLY in row]
    published, others = ([row for row in answered if (row["rule"] in PUBLISHED) is known] for known in (True, False))
    for group in (published, others):
        plain = sorted(group, key=lambda row: row[AS_IT_IS]["held_out"])[:count]
        fitted = sorted(group, key=lambda row: row[LIGHTLY])[:count]
        for row in [*plain, *(row for row in fitted if row not in plain)]:
            yield row, AS_IT_IS
        for row in fitted:
            yield row, FIT


def run(given: argparse.Namespace) -> None:
    """Make the rows of one network, space and seed that are not there yet, a budget at once, until the time is over."""
    begin = time.monotonic()
    path = given.out / f"{given.network}-{given.space}-{given.seed}.jsonl"
    done = {(row["cost"], row["budget"]) for row in resumed(path)}
    made = Subject(given, Notes(path.with_suffix(".notes"), hangs_on(given, HANGS_ON)))
    common = {"network": given.network, "space": given.space, "seed": given.seed, "dense": made.dense["accuracy"], "norms": made.norms}
    for budget, cost in product(given.budgets, given.costs):
        if (cost, budget) in done or time.monotonic() - begin > 60 * given.minutes:
            continue
        place = common | {"cost": cost, "budget": budget, "test": made.task.sizes()["test"]}
        found = [place | row for row in made.rows(cost, budget, given.rules)]
        rewritten(path, [*rows_of(path), *found])  # a cell is there as a whole or not at all
        print(f"{path.name}: {cost} {budget:g} after {time.monotonic() - begin:.0f} s", flush=True)


# -- the table -----------------------------------------------------------------------------------------------------------

Cells = dict[int, list[dict[str, Any]]]  # rows of one network, space and budget, by seed


def accuracies(cells: Cells, rule: str, way: str) -> dict[int, float]:
    """In %, by seed."""
    return {seed: 100 * row[way]["accuracy"] for seed, cell in cells.items() for row in cell if row["rule"] == rule and tested(row, way)}


def tested(row: Mapping[str, Any], way: str) -> bool:
    """Whether a row has an accuracy of the test set."""
    return "accuracy" in row.get(way, {})


def handed_out(cells: Cells) -> dict[int, float]:
    """What `ranksearch.compress` hands out, the least loss on the held-out batches, in % by seed."""
    found = {seed: [row[way] for row in cell for way in WAYS if tested(row, way)] for seed, cell in cells.items()}
    return {seed: 100 * min(ways, key=lambda one: one["held_out"])["accuracy"] for seed, ways in found.items() if ways}


def best_published(cells: Cells, way: str) -> tuple[str, dict[int, float]]:
    """Of every seed the published rule that is best on the test set, and the one that is so most often."""
    found = {rule: accuracies(cells, rule, way) for rule in PUBLISHED}
    best: dict[int, float] = {}
    names: list[str] = []
    for seed in cells:
        of_seed = {rule: values[seed] for rule, values in found.items() if seed in values}
        if of_seed:
            names.append(max(of_seed, key=lambda rule: of_seed[rule]))
            best[seed] = of_seed[names[-1]]
    often = max(names, key=names.count, default="")
    return often if len(set(names)) < 2 else f"{often}, others", best


def compared(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per network, space and budget at which any rule has an answer: the published rule that is best on the test set, as published
    and with our reconstruction, ours, by how much that is ahead seed by seed, and the standard error of one accuracy."""
    lines = ["| network | types | budget | dense | best published | with our reconstruction | refit | handed out | ahead | s.e. |"]
    lines.append("|---" * 10 + "|")
    for place in dict.fromkeys((r["network"], r["space"], r["cost"], r["budget"]) for r in rows):
        cells: Cells = {}
        for row in rows:
            if (row["network"], row["space"], row["cost"], row["budget"]) == place:
                cells.setdefault(row["seed"], []).append(row)
        if all("error" in row for cell in cells.values() for row in cell):
            continue
        ours, pairs = handed_out(cells), [best_published(cells, way) for way in WAYS]
        ahead = [value - pairs[0][1][seed] for seed, value in ours.items() if seed in pairs[0][1]]
        first = next(iter(cells.values()))[0]
        share = float(np.mean([*ours.values()])) / 100 if ours else float("nan")
        error = 100 * (share * (1 - share) / first["test"]) ** 0.5
        told = [f"{spread([*values.values()])} {rule}" for rule, values in pairs]
        refits = spread([*accuracies(cells, REFIT, FIT).values()])
        lines.append(
            f"| {place[0]} | {place[1]} | {place[2]} {place[3]:g} | {100 * first['dense']:.1f} | {told[0]} | {told[1]} | {refits} "
            f"| {spread([*ours.values()])} | {spread(ahead, sign='+')} | {error:.1f} |"
        )
    return lines


def by_rule(rows: Sequence[dict[str, Any]], way: str) -> list[str]:
    """Rules down, budgets across, for every network and space; ``x``: the rule has no answer, ``-``: it was no contender."""
    lines: list[str] = []
    for network, space in dict.fromkeys((r["network"], r["space"]) for r in rows):
        here = [r for r in rows if (r["network"], r["space"]) == (network, space)]
        heads = sorted({(r["cost"], r["budget"]) for r in here}, key=lambda head: (head[0] != "params", -head[1]))
        lines += [f"\n{network}, {space}, {way}:\n", "| rule | " + " | ".join(f"{c} {b:g}" for c, b in heads) + " |"]
        lines.append("|---" * (len(heads) + 1) + "|")
        for rule in (name for name in ALL if any(r["rule"] == name for r in here)):
            cells = []
            for head in heads:
                found = [r for r in here if r["rule"] == rule and (r["cost"], r["budget"]) == head]
                values = [100 * r[way]["accuracy"] for r in found if tested(r, way)]
                cells.append("x" if any("error" in r for r in found) and not values else spread(values))
            lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=user_path, required=True, help="folder of the rows")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    add_arguments(parser, images=5000)
    parser.add_argument("--space", choices=list(SPACES), default="svd")
    parser.add_argument("--seed", type=int, default=0, help="of calibration")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--costs", nargs="+", default=["params", "macs"], choices=("params", "macs", Latency.name))
    parser.add_argument("--runtime", choices=list(RUNTIMES), default="eager", help="of latency")
    parser.add_argument("--batch", type=int, default=8, help="of latency")
    parser.add_argument("--rules", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--max-options", type=int, help="per ladder, where all types are too many")
    parser.add_argument("--test-images", type=int, help="only the first so many of the test split")
    parser.add_argument("--prepare", default="cpu", help="device on which types are prepared")
    parser.add_argument("--device", default="cpu", help="device on which networks run")
    parser.add_argument("--contenders", type=int, default=len(ALL), help="published rules and others, that are taken to the test set")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no further budget is begun after these")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.table:
        rows = [row for path in sorted(given.out.glob("*.jsonl")) for row in rows_of(path)]
        print("\n".join([*compared(rows), *by_rule(rows, AS_IT_IS), *by_rule(rows, FIT)]))
        return
    torch.set_num_threads(given.threads)
    torch.backends.cudnn.allow_tf32 = False
    run(given)


if __name__ == "__main__":
    main()
