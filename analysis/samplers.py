"""What samplers are worth on a study: hypervolume over evaluations, several seeds, equal evaluations, against the exact starts alone.
Evaluations are shared: one that any sampler or seed has asked for is measured once and kept in a file, so that more seeds and samplers cost
what is new to them alone. Prints markdown.

    python analysis/samplers.py studies/digits.py --trials 40 --seeds 10 --keep digits.json [--where "macs <= 0.5"] [--option epochs=0.5]
    python analysis/samplers.py rankbench:digits --trials 60 --seeds 10 --keep digits.json
    python analysis/samplers.py rankbench:resnet20 --trials 40 --seeds 5 --keep resnet20.json --option data=FOLDER weights=FILE

Of a study of `ranksearch.rankbench` evaluations come from the table, those outside it from its evaluator, and what is measured without
training is the loss on the images that batch norm is re-estimated on.

Every search is a search of ranksearch (`SearchRun`) in which the runner answers from the file. ``NAME``: the sampler after the portfolio
of starts, as `Study.run` does it; ``NAME alone``: after the dense network, with no start; ``starts``: the portfolio alone, its front
first, then what was behind it, by what it lost."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from ranksearch import rankbench
from ranksearch.evaluation import Fidelity, Outcome, Request
from ranksearch.home import replacing
from ranksearch.proxies import TableProxy, free_proxies
from ranksearch.rankbench import OBJECTIVES, RankBench
from ranksearch.rankbench.bench import DIRECTIONS
from ranksearch.rankbench.tables import MEASURED
from ranksearch.results.conditions import Condition
from ranksearch.results.pareto import relative_hypervolume
from ranksearch.runners import Runner
from ranksearch.runners import Wait as Waiting
from ranksearch.samplers import SAMPLERS, Sampler, Surrogate
from ranksearch.search.portfolio import PUBLISHED, Portfolio, cheap_front
from ranksearch.search.run import AFFORDED, Objectives, SearchRun, upper_limits
from ranksearch.search.starts import Start
from ranksearch.sites import Amount
from ranksearch.space import DENSE, SearchSpace
from ranksearch.space.table import Table
from ranksearch.store import Store
from ranksearch.study import Study
from ranksearch.study.run import portfolio_of
from ranksearch.studyfile import load

BY_NAME: dict[str, Sampler] = {sampler.name: sampler for sampler in SAMPLERS}
BY_NAME |= {f"surrogate, {share:g} starts": Surrogate(start_share=share) for share in (0.0, 0.1, 0.25, 0.5)}


@dataclass(frozen=True)
class Case:
    """A search that samplers are tried on."""

    space: SearchSpace
    objectives: Objectives
    fidelity: Fidelity
    seed: int  # of every evaluation, whatever the search's is
    evaluate: Callable[[Request], Outcome]
    portfolio: Portfolio

    @classmethod
    def of_study(cls, study: Study, trials: int) -> Case:
        """The search that `Study.run` makes."""
        portfolio = portfolio_of(study, trials)
        assert portfolio is not None
        objectives = Objectives(study.objectives, study.directions, study.baseline)
        return cls(study.space, objectives, study.fidelity, study.seed, study.evaluator, portfolio)

    @classmethod
    def of_bench(cls, bench: RankBench) -> Case:
        """A search of a tabulated study."""

        def evaluate(request: Request) -> Outcome:
            found = bench.evaluate(request.configuration)
            return Outcome(request, "done", {name: found[name] for name in MEASURED})

        measured = [Tabulated(name, bench.proxies[name]) for name in ("calibrated", "single_site_loss")]
        cheap = Portfolio(
            PUBLISHED, lambda indices: bench.evaluate(indices)["calibration_loss"], [lambda proxy=proxy: proxy for proxy in measured]
        )
        objectives = Objectives(OBJECTIVES, DIRECTIONS, bench.space.baseline)
        return cls(bench.space, objectives, Fidelity.parse(bench.details["fidelity"]), 0, evaluate, cheap)


class Tabulated(TableProxy):
    """A proxy whose table is known."""

    def __init__(self, name: str, table: Table) -> None:
        self.name, self._table = name, table

    def table(self, space: SearchSpace) -> Table:
        return self._table


@dataclass(frozen=True)
class Once(Portfolio):
    """A portfolio that is measured once for all searches of the same trials and limits."""

    found: dict[str, list[tuple[Start, float]]] = field(default_factory=dict)

    def measured(
        self, space: SearchSpace, proxies: Sequence[TableProxy], limits: Mapping[str, Amount], *, most: int | None = None, **rest: Any
    ) -> list[tuple[Start, float]]:
        key = f"{most} {dict(limits)} {[proxy.name for proxy in proxies]}"
        if key not in self.found:
            self.found[key] = super().measured(space, proxies, limits, most=most, **rest)
        return self.found[key]


class Kept:
    """Evaluations and measurements without training in a file, by configuration."""

    def __init__(self, path: Path, case: Case) -> None:
        self.path, self.case, whole = path, case, case.portfolio
        self.portfolio = Once(whole.rules, lambda indices: self._cheap(whole, indices), whole.proxies)
        self.known: dict[str, dict[str, float] | None] = json.loads(path.read_text()) if path.exists() else {}
        self.made = 0

    def __call__(self, request: Request) -> Outcome:
        id = request.configuration.id
        if id not in self.known:
            outcome = self.case.evaluate(replace(request, seed=self.case.seed))
            self.known[id] = dict(outcome.metrics) if outcome.status == "done" else None
            self.made += 1
            if self.made % 10 == 0:
                self.save()
        metrics = self.known[id]
        return Outcome(request, "failed", error="it failed before") if metrics is None else Outcome(request, "done", metrics)

    def _cheap(self, portfolio: Portfolio, indices: np.ndarray) -> float:
        id = f"cheap {self.case.space.configuration(indices).id}"
        if id not in self.known:
            self.known[id] = {"loss": portfolio.measure(indices)}
        return (self.known[id] or {})["loss"]

    def save(self) -> None:
        """Write what is known."""
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.known))


class InTurn(Runner):
    """One evaluation after the other in this process; keeps their order and the time that proposals took."""

    workers = 1

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.seconds = 0.0

    def run(
        self, evaluate: Callable[[Request], Outcome], propose: Callable[[], Request | Waiting | None], report: Callable[[Outcome], None]
    ) -> None:
        while True:
            begin = time.process_time()
            request = propose()
            self.seconds += time.process_time() - begin
            if not isinstance(request, Request):
                return
            self.outcomes.append(evaluate(request))
            report(self.outcomes[-1])


def search(kept: Kept, name: str, *, trials: int, seed: int, where: Sequence[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """Hypervolume after each evaluation, down to worthless metrics and to half of the dense network's, and seconds per proposal."""
    outcomes, seconds = outcomes_of(kept, name, trials=trials, seed=seed, where=where)
    return curve(kept.case, outcomes), curve(kept.case, outcomes, worst=0.5), seconds


def outcomes_of(kept: Kept, name: str, *, trials: int, seed: int, where: Sequence[str]) -> tuple[list[Outcome], float]:
    """What a search evaluates, in its order, and seconds per proposal."""
    case = kept.case
    limits = upper_limits(case.space, Condition.parse_all(where))
    if name == "starts":
        return _starts(kept, limits, trials), 0.0
    alone = name.endswith(" alone")
    sampler, proxies, portfolio = BY_NAME[name.removesuffix(" alone")], () if alone else free_proxies(), None if alone else kept.portfolio
    run = SearchRun(
        case.space, case.objectives, case.fidelity, seed, trials, sampler, proxies, None, limits, lambda: kept, portfolio=portfolio
    )
    runner = InTurn()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "s.db"
        with Store.open(place, study="s", fingerprint="f", create=True, write=True) as store:
            run.run(store, runner, lambda event: None)
    return runner.outcomes, runner.seconds / len(runner.outcomes)


def _starts(kept: Kept, limits: Mapping[str, Amount], trials: int) -> list[Outcome]:
    """The dense network, the front of the portfolio, and what is behind it."""
    case = kept.case
    measured = kept.portfolio.measured(case.space, free_proxies(), limits, most=AFFORDED * trials)
    front = cheap_front(measured, [name for name in case.space.costs if name in case.objectives.names], trials)
    ids = {start.candidate.configuration.id for start in front}
    behind = sorted((m for m in measured if m[0].candidate.configuration.id not in ids), key=lambda m: m[1])
    order = [DENSE, *(start.candidate.configuration for start in [*front, *(start for start, _ in behind)])]
    return [kept(Request(c, case.fidelity, case.seed, "starts")) for c in order[:trials]]


def curve(case: Case, outcomes: Sequence[Outcome], worst: float = 1.0) -> np.ndarray:
    """Relative hypervolume of what was evaluated, after each evaluation; up to the loss of a share ``worst`` of the dense network's
    metric: 1 is the report's, which goes down to a metric of 0."""
    names = case.objectives.names
    directions = [case.objectives.directions[name] for name in names]
    rows = []
    for outcome in outcomes:
        cost = case.space.cost(case.space.indices(outcome.request.configuration))
        rows.append([cost[n] if n in cost else outcome.metrics.get(n, np.nan) for n in names])
    values = np.array(rows, dtype=np.float64)
    costs = [name in case.space.costs for name in names]
    dense = values[0]
    values = dense + (values - dense) * np.where(costs, 1.0, 1 / worst)
    return np.array([relative_hypervolume(values[: n + 1], dense, directions, costs) for n in range(len(values))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a study file, or rankbench:NAME")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--keep", type=Path, required=True, help="file of evaluations, made if it is not there")
    parser.add_argument("--samplers", nargs="+", default=["surrogate", "nsga2", "tpe", "gp", "random", "starts"])
    parser.add_argument("--where", nargs="*", default=[])
    parser.add_argument("--figure", type=Path, help="file of a figure of the curves")
    parser.add_argument("--option", nargs="*", default=[], metavar="NAME=VALUE", help="of the study's function; numbers are numbers")
    a = parser.parse_args()
    options = {name: _value(text) for name, _, text in (option.partition("=") for option in a.option)}
    torch.set_num_threads(1)
    if a.study.startswith("rankbench:"):
        case = Case.of_bench(rankbench.load(a.study.removeprefix("rankbench:"), **options))
    else:
        case = Case.of_study(load(Path(a.study)).create(options), a.trials)
    kept = Kept(a.keep, case)
    marks = sorted({max(1, a.trials // 8), a.trials // 4, a.trials // 3, a.trials // 2, 3 * a.trials // 4, a.trials})
    heads = ["sampler", *map(str, marks), "to half, at the end", "seconds a proposal"]
    print(f"| {' | '.join(heads)} |\n|" + " --- |" * len(heads), flush=True)
    curves: dict[str, np.ndarray] = {}
    for name in a.samplers:
        found = [search(kept, name, trials=a.trials, seed=seed, where=a.where) for seed in range(a.seeds)]
        kept.save()
        curves[name] = np.array([whole for whole, _, _ in found])
        cells = [spread(curves[name][:, m - 1]) for m in marks] + [spread(np.array([half[-1] for _, half, _ in found]))]
        print(f"| {name} | {' | '.join(cells)} | {np.mean([seconds for _, _, seconds in found]):.3f} |", flush=True)
    print("\n".join(["", *reached(curves)]))
    if a.figure:
        drawn(curves, a.figure, f"{Path(a.study).stem}, {len(kept.case.space.shape)} sites")
    print(f"{len(kept.known)} configurations evaluated in all", file=sys.stderr)


def reached(curves: Mapping[str, np.ndarray]) -> list[str]:
    """After how many evaluations others reach what NSGA-II and the starts alone end at, on average over seeds; and how often `surrogate`
    ends above them, seed by seed."""
    lines = []
    for rival in ("nsga2", "starts", "nsga2 alone"):
        for name in ("surrogate", "surrogate alone"):
            if rival not in curves or name not in curves or name.endswith(" alone") != rival.endswith(" alone"):
                continue
            final, mine = curves[rival][:, -1].mean(), curves[name]
            found = np.flatnonzero(mine.mean(axis=0) >= final)
            when = f"after {found[0] + 1} evaluations" if len(found) else "not at all"
            ends = f"it ends at {mine[:, -1].mean():.4f}, above that in {(mine[:, -1] > final).sum()} of {len(mine)} seeds"
            lines.append(f"`{name}` reaches the final mean of `{rival}`, {final:.4f}, {when} of {mine.shape[1]}; {ends}")
    return lines


def drawn(curves: Mapping[str, np.ndarray], path: Path, title: str) -> None:
    """A figure of hypervolumes over evaluations, means and standard deviations over seeds; of shape (seeds, trials) each."""
    figure, axes = plt.subplots(figsize=(7.4, 4.2), layout="constrained")
    for name, of_seeds in curves.items():
        mean, deviation = of_seeds.mean(axis=0), of_seeds.std(axis=0, ddof=min(1, len(of_seeds) - 1))
        evaluations = np.arange(1, len(mean) + 1)
        (line,) = axes.plot(evaluations, mean, "--" if name == "starts" else "-", label=f"{name} ({len(of_seeds)})")
        axes.fill_between(evaluations, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, linewidth=0)
    last = max(float(of_seeds[:, -1].mean()) for of_seeds in curves.values())
    first = min(float(of_seeds[:, min(4, of_seeds.shape[1] - 1)].mean()) for of_seeds in curves.values())
    axes.set(
        xlabel="evaluations", ylabel="relative hypervolume", title=title, ylim=(first - 0.1 * (last - first), last + 0.1 * (last - first))
    )
    figure.legend(title="sampler (seeds)", loc="outside right upper")
    figure.savefig(path, dpi=120)


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():.4f} ± {values.std(ddof=min(1, len(values) - 1)):.4f}"


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
