"""The surrogate sampler where it knows the space: against the true front, constraints, workers, and other samplers."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import moocore
import numpy as np
import pytest
from surrogate_cases import space, truth

from ranksearch.allocators import Additive
from ranksearch.allocators import Problem as Allocating
from ranksearch.errors import InvalidArgument
from ranksearch.samplers import NSGA2, Problem, Random, Sampler, Surrogate
from ranksearch.space import SearchSpace


def worth(of: SearchSpace, *, seed: int) -> Callable[[np.ndarray], list[float]]:
    """Minus an accuracy of at most 0.9, the share of MACs, and that of params."""
    made = truth(of, seed=seed)
    scale = float(np.median(made.rises(of.sample(200, 0))))

    def value(indices: np.ndarray) -> list[float]:
        rise = float(made.rises(indices[None])[0]) / scale
        return [-0.9 / (1 + 0.5 * rise), *(of.cost(indices)[name] / of.baseline[name] for name in ("macs", "params"))]

    return value


def search(
    kind: Sampler, of: SearchSpace, value: Callable[[np.ndarray], list[float]], count: int, *, workers: int = 1, seed: int = 0,
    limits: dict[str, int] | None = None, evidence: int = 0,
) -> np.ndarray:  # fmt: skip
    """Values of the dense network and ``count`` proposals, results coming back with the delay of so many workers."""
    limits = limits or {}
    problem = Problem(of, ("accuracy", "macs", "params"), limits)
    if evidence:
        rows = of.sample(evidence, 3)
        problem = Problem(of, problem.objectives, limits, rows, np.array([value(row)[0] + 0.9 for row in rows]))
    sampler = kind.start(
        of.shape, 3, seed=seed, problem=problem, admissible=lambda x: all(of.cost(x)[name] <= most for name, most in limits.items())
    )
    found, flying = [value(of.dense)], []
    sampler.observe(of.dense, found[0])
    seen = {of.dense.tobytes()}
    for _ in range(count):
        flying.append(sampler.propose())
        assert all(of.cost(flying[-1])[name] <= most for name, most in limits.items())
        if isinstance(kind, Surrogate):
            assert flying[-1].tobytes() not in seen, "proposed twice"
        seen.add(flying[-1].tobytes())
        if len(flying) == workers:
            done = flying.pop(0)
            found.append(value(done))
            sampler.observe(done, found[-1])
    return np.array(found)


def volume(values: np.ndarray) -> float:
    """In the units of a study's report."""
    scaled = np.column_stack([(values[:, 0] + 0.9) / 0.9, values[:, 1:]])
    return float(moocore.hypervolume(scaled, ref=1.0))


@pytest.mark.parametrize("workers", [1, 4])
def test_it_is_far_ahead_of_random_and_of_nsga2(workers: int) -> None:
    """With 24 evaluations of each; what the optima of the true losses reach bounds all."""
    gains = []
    for seed in range(3):
        of = space(8, 7, seed=seed)
        value = worth(of, seed=seed)
        ours, *others = (volume(search(kind, of, value, 24, workers=workers, seed=seed)) for kind in (Surrogate(), NSGA2(), Random()))
        gains.append(ours - max(others))
    assert min(gains) > 0 and np.mean(gains) > 0.05


def test_what_was_measured_without_training_teaches_it() -> None:
    """Told of losses that hang on one site alone, its first proposals keep more of this site than told that they hang on all others."""
    for seed in range(3):
        of = space(8, 7, seed=seed)
        rows = of.sample(60, 3)
        energies = [ladder.column("energy") / ladder.column("energy").max() for ladder in of.ladders]

        def losses(rows: np.ndarray, weights: np.ndarray, energies: list[np.ndarray] = energies) -> np.ndarray:
            return sum((w * e[rows[:, site]] for site, (w, e) in enumerate(zip(weights, energies, strict=True))), np.zeros(len(rows)))

        kept = []
        for weights in (np.eye(8)[0], 1 - np.eye(8)[0]):
            problem = Problem(of, ("accuracy", "macs", "params"), {}, rows, losses(rows, weights))
            sampler = Surrogate().start(of.shape, 3, seed=seed, admissible=lambda x: True, problem=problem)
            sampler.observe(of.dense, [-0.9, 1.0, 1.0])
            kept.append(np.mean([of.ladders[0].costs["macs"][sampler.propose()[0]] for _ in range(4)]))
        assert kept[0] > kept[1], seed


def test_answers_of_the_portfolio_are_evaluated_where_they_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something as good was evaluated at slightly higher cost, so that the hypervolume hardly grows with them; within their own cost
    nothing was."""
    monkeypatch.setattr(importlib.import_module("ranksearch.samplers.surrogate"), "EVERY", 1)
    for seed in range(3):
        of = space(8, 7, seed=seed)
        value, table, least = worth(of, seed=seed), truth(of, seed=seed).model.table(), of.smallest("macs")
        budgets = [int(least + share * (of.baseline["macs"] - least)) for share in (0.05, 0.1, 0.15)]
        answers = [Additive().allocate(Allocating(of, table, {"macs": budget})).indices for budget in budgets]
        rises = np.array([value(row)[0] + 0.9 for row in answers])
        problem = Problem(of, ("accuracy", "macs", "params"), {}, np.array(answers), rises)
        sampler = Surrogate().start(of.shape, 3, seed=seed, admissible=lambda x: True, problem=problem)
        beside = [row + np.eye(len(row), dtype=np.int64)[np.flatnonzero(row < of.dense)[0]] for row in answers]
        for row in (of.dense, *beside):
            sampler.observe(row, value(row))
        assert sampler.propose().tobytes() in {row.tobytes() for row in answers}


@pytest.mark.parametrize("swapped", [False, True])
def test_which_of_them_wins_is_also_said_by_its_own_measurement(monkeypatch: pytest.MonkeyPatch, swapped: bool) -> None:
    monkeypatch.setattr(importlib.import_module("ranksearch.samplers.surrogate"), "EVERY", 1)
    for seed in range(4):
        of = space(8, 7, seed=seed)
        value, rows = worth(of, seed=seed), of.sample(60, 3)
        rises = np.array([value(row)[0] + 0.9 for row in rows])
        better, worse = np.argsort(rises)[:2][:: -1 if swapped else 1]
        rises[better] *= 0.05
        rises[worse] *= 20
        problem = Problem(of, ("accuracy", "macs", "params"), {}, rows, rises)
        sampler = Surrogate().start(of.shape, 3, seed=seed, admissible=lambda x: True, problem=problem)
        sampler.observe(of.dense, value(of.dense))
        assert np.array_equal(sampler.propose(), rows[better])


def test_networks_far_below_those_seen_are_tried() -> None:
    """How far down the front is of use does not hang on what was seen of it: told of networks near the dense one alone, it goes to small
    ones first, which still know something and add most to the hypervolume."""
    first = []
    for seed in range(3):
        of = space(8, 7, seed=seed)
        value, rows = worth(of, seed=seed), of.sample(60, 3)
        problem = Problem(of, ("accuracy", "macs", "params"), {}, rows, np.array([value(row)[0] + 0.9 for row in rows]))
        sampler = Surrogate().start(of.shape, 3, seed=seed, admissible=lambda x: True, problem=problem)
        near = [of.dense - np.eye(len(of.shape), dtype=np.int64)[site] for site in range(4)]
        for row in (of.dense, *near):
            sampler.observe(row, value(row))
        assert min(value(row)[1] for row in near) > 0.9
        first.append(value(sampler.propose()))
    assert np.mean(first, axis=0)[1] < 0.5 and np.mean(first, axis=0)[0] < -0.4


def test_starts_are_a_tenth_of_the_trials_and_at_least_a_few() -> None:
    assert [Surrogate().starts(trials) for trials in (1, 2, 6, 8, 20, 40, 100)] == [0, 1, 3, 4, 4, 4, 10]
    assert Surrogate(start_share=0.0).starts(40) == 0 and Surrogate(start_share=0.5).starts(40) == 20


@pytest.mark.parametrize("share", [0.35, 0.6])
def test_constraints_are_kept_and_used_up(share: float) -> None:
    of = space(6, 6)
    limits = {"macs": int(share * of.baseline["macs"])}
    found = search(Surrogate(fronts=2), of, worth(of, seed=0), 12, limits=limits)
    assert found[1:, 1].max() <= share and found[1:, 1].max() > 0.85 * share


def test_a_small_space_is_proposed_whole_and_without_end() -> None:
    of = space(2, 2)
    sampler = Surrogate().start(of.shape, 3, seed=0, admissible=lambda x: True, problem=Problem(of, ("accuracy", "macs", "params")))
    value, seen = worth(of, seed=0), set()
    for _ in range(60):
        proposal = sampler.propose()
        seen.add(proposal.tobytes())
        sampler.observe(proposal, value(proposal))
    assert len(seen) == of.size


def test_nothing_is_fitted_again_before_there_is_something_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that has evaluated all that its constraints leave asks on, and answers duplicates from what it knows."""
    module = importlib.import_module("ranksearch.samplers.surrogate")
    fits: list[int] = []

    def counted(*given: Any, **options: Any) -> Any:
        fits.append(1)
        return fit(*given, **options)

    fit = module.fit
    monkeypatch.setattr(module, "fit", counted)
    of = space(4, 3)
    value, cheapest = worth(of, seed=0), np.zeros(4, dtype=np.int64)
    problem = Problem(of, ("accuracy", "macs", "params"), {})
    sampler = Surrogate().start(of.shape, 3, seed=0, problem=problem, admissible=lambda x: x.tobytes() == cheapest.tobytes())
    sampler.observe(of.dense, value(of.dense))
    for _ in range(30):
        indices = sampler.propose()
        assert np.array_equal(indices, cheapest)
        sampler.observe(indices, value(indices))
    assert 1 <= len(fits) <= 4


def test_failures_and_objectives_that_are_costs_alone_are_taken() -> None:
    of = space(4, 5)
    sampler = Surrogate().start(of.shape, 3, seed=0, admissible=lambda x: True, problem=Problem(of, ("accuracy", "macs", "params")))
    value = worth(of, seed=0)
    failed = set()
    for number in range(20):
        proposal = sampler.propose()
        assert proposal.tobytes() not in failed
        if number % 3 == 0:
            failed.add(proposal.tobytes())
        sampler.observe(proposal, None if number % 3 == 0 else value(proposal))
    costs = Surrogate().start(of.shape, 2, seed=0, admissible=lambda x: True, problem=Problem(of, ("macs", "params")))
    for _ in range(12):
        proposal = costs.propose()
        costs.observe(proposal, value(proposal)[1:])


def test_hyper_parameters_are_checked() -> None:
    for wrong in ({"draws": 0}, {"fronts": 0}):
        with pytest.raises(InvalidArgument, match=f"{next(iter(wrong))}=0"):
            Surrogate(**wrong)
