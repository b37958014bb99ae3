"""What samplers are worth on a study: hypervolume over evaluations, several seeds, equal evaluations, against the exact starts alone.
Evaluations are shared: one that any sampler or seed has asked for is measured once and kept in a file, so that more seeds and samplers cost
what is new to them alone. Prints markdown.

    python analysis/samplers.py studies/digits.py --trials 40 --seeds 10 --keep digits.json [--where "macs <= 0.5"] [--epochs 0.5]

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
from dataclasses import replace
from pathlib import Path

import numpy as np

from ranksearch.evaluation import Outcome, Request
from ranksearch.home import replacing
from ranksearch.proxies import free_proxies
from ranksearch.results.conditions import Condition
from ranksearch.results.pareto import relative_hypervolume
from ranksearch.runners import Runner
from ranksearch.runners import Wait as Waiting
from ranksearch.samplers import SAMPLERS, Sampler, Surrogate
from ranksearch.search.portfolio import Portfolio, cheap_front
from ranksearch.search.run import AFFORDED, Objectives, SearchRun, upper_limits
from ranksearch.sites import Amount
from ranksearch.space import DENSE
from ranksearch.store import Store
from ranksearch.study import Study
from ranksearch.study.run import portfolio_of
from ranksearch.studyfile import load

BY_NAME: dict[str, Sampler] = {sampler.name: sampler for sampler in SAMPLERS}
BY_NAME |= {f"surrogate, {share:g} starts": Surrogate(start_share=share) for share in (0.0, 0.1, 0.25, 0.5)}


class Kept:
    """Evaluations and measurements without training in a file, by configuration."""

    def __init__(self, path: Path, study: Study, trials: int) -> None:
        self.path, self.evaluator, self.seed, self.space = path, study.evaluator, study.seed, study.space
        whole = portfolio_of(study, trials)
        assert whole is not None
        self.portfolio = replace(whole, measure=lambda indices: self._cheap(whole, indices))
        self.known: dict[str, dict[str, float] | None] = json.loads(path.read_text()) if path.exists() else {}
        self.made = 0

    def __call__(self, request: Request) -> Outcome:
        id = request.configuration.id
        if id not in self.known:
            outcome = self.evaluator(replace(request, seed=self.seed))  # of the evaluation, whatever the search's is
            self.known[id] = dict(outcome.metrics) if outcome.status == "done" else None
            self.made += 1
            if self.made % 10 == 0:
                self.save()
        metrics = self.known[id]
        return Outcome(request, "failed", error="it failed before") if metrics is None else Outcome(request, "done", metrics)

    def _cheap(self, portfolio: Portfolio, indices: np.ndarray) -> float:
        id = f"cheap {self.space.configuration(indices).id}"
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


def search(study: Study, kept: Kept, name: str, *, trials: int, seed: int, where: Sequence[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """Hypervolume after each evaluation, down to worthless metrics and to half of the dense network's, and seconds per proposal."""
    objectives = Objectives(study.objectives, study.directions, study.baseline)
    limits = upper_limits(study.space, Condition.parse_all(where))
    if name == "starts":
        return *_curves(study, _starts(study, kept, limits, trials)), 0.0
    alone = name.endswith(" alone")
    run = SearchRun(
        study.space, objectives, study.fidelity, seed, trials, BY_NAME[name.removesuffix(" alone")], () if alone else free_proxies(), None,
        limits, lambda: kept, portfolio=None if alone else kept.portfolio,
    )  # fmt: skip
    runner = InTurn()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "s.db"
        with Store.open(place, study="s", fingerprint="f", create=True, write=True) as store:
            run.run(store, runner, lambda event: None)
    return *_curves(study, runner.outcomes), runner.seconds / len(runner.outcomes)


def _curves(study: Study, outcomes: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    return curve(study, outcomes), curve(study, outcomes, worst=0.5)


def _starts(study: Study, kept: Kept, limits: Mapping[str, Amount], trials: int) -> list[Outcome]:
    """The dense network, the front of the portfolio, and what is behind it."""
    measured = kept.portfolio.measured(study.space, free_proxies(), limits, most=AFFORDED * trials)
    front = cheap_front(measured, [name for name in study.space.costs if name in study.objectives], trials)
    ids = {start.candidate.configuration.id for start in front}
    behind = sorted((m for m in measured if m[0].candidate.configuration.id not in ids), key=lambda m: m[1])
    order = [DENSE, *(start.candidate.configuration for start in [*front, *(start for start, _ in behind)])]
    return [kept(Request(c, study.fidelity, study.seed, "starts")) for c in order[:trials]]


def curve(study: Study, outcomes: Sequence[Outcome], worst: float = 1.0) -> np.ndarray:
    """Relative hypervolume of what was evaluated, after each evaluation; up to the loss of a share ``worst`` of the dense network's
    metric: 1 is the report's, which goes down to a metric of 0."""
    names = study.objectives
    directions = [study.directions[name] for name in names]
    rows = []
    for outcome in outcomes:
        cost = study.space.cost(study.space.indices(outcome.request.configuration))
        rows.append([cost[n] if n in cost else outcome.metrics.get(n, np.nan) for n in names])
    values = np.array(rows, dtype=np.float64)
    costs = [name in study.baseline for name in names]
    of_metrics = np.where(costs, 1.0, 1 / worst)
    values = values[0] + (values - values[0]) * of_metrics
    return np.array([relative_hypervolume(values[: n + 1], values[0], directions, costs) for n in range(len(values))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--keep", type=Path, required=True, help="file of evaluations, made if it is not there")
    parser.add_argument("--samplers", nargs="+", default=["surrogate", "nsga2", "tpe", "gp", "random", "starts"])
    parser.add_argument("--where", nargs="*", default=[])
    parser.add_argument("--option", nargs="*", default=[], metavar="NAME=VALUE", help="of the study's function; numbers are numbers")
    a = parser.parse_args()
    options = {name: _value(text) for name, _, text in (option.partition("=") for option in a.option)}
    study = load(a.study).create(options)
    kept = Kept(a.keep, study, a.trials)
    marks = sorted({max(1, a.trials // 8), a.trials // 4, a.trials // 3, a.trials // 2, 3 * a.trials // 4, a.trials})
    heads = ["sampler", *map(str, marks), "to half, at the end", "seconds a proposal"]
    print(f"| {' | '.join(heads)} |\n|" + " --- |" * len(heads), flush=True)
    curves: dict[str, np.ndarray] = {}
    for name in a.samplers:
        found = [search(study, kept, name, trials=a.trials, seed=seed, where=a.where) for seed in range(a.seeds)]
        kept.save()
        curves[name] = np.array([whole for whole, _, _ in found])
        cells = [_spread(curves[name][:, m - 1]) for m in marks] + [_spread(np.array([half[-1] for _, half, _ in found]))]
        print(f"| {name} | {' | '.join(cells)} | {np.mean([seconds for _, _, seconds in found]):.3f} |", flush=True)
    if {"surrogate", "nsga2"} <= curves.keys():
        final = curves["nsga2"][:, -1].mean()
        reached = np.flatnonzero(curves["surrogate"].mean(axis=0) >= final)
        print(f"\nsurrogate reaches NSGA-II's final mean of {final:.4f} after {reached[0] + 1 if len(reached) else 'none'} evaluations")
    print(f"{len(kept.known)} configurations evaluated in all", file=sys.stderr)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4f} ± {values.std(ddof=min(1, len(values) - 1)):.4f}"


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
