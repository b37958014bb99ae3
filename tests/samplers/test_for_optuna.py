"""The sampler for Optuna: Optuna's own tests of samplers, and that it finds what it is meant to find."""

from __future__ import annotations

from collections.abc import Callable

import moocore
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase, RelativeSamplerTestCase
from surrogate_cases import space, truth

from ranksearch.errors import InvalidArgument
from ranksearch.samplers import Problem
from ranksearch.samplers.for_optuna import SurrogateSampler, _Parameter, distributions

optuna.logging.set_verbosity(optuna.logging.WARNING)


class TestOfOptuna(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    """What Optuna asks of every sampler, with models from the second trial on."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: SurrogateSampler(seed=0, startup=1)


def objective(trial: optuna.Trial) -> tuple[float, float]:
    """Eight parameters of all kinds; two sums over them that are at odds."""
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
    share = trial.suggest_float("share", 0, 1, step=0.125)
    numbers = [trial.suggest_int(f"n{k}", 0, 9) for k in range(5)]
    error = {"a": 1.0, "b": 0.1, "c": 0.5}[kind] + abs(np.log10(rate) + 2) / 2 + share**2 + sum((9 - n) ** 2 for n in numbers) / 200
    return float(error), sum(numbers) / 45


def volume(study: optuna.Study, reference: list[float]) -> float:
    return float(moocore.hypervolume(np.array([t.values for t in study.trials if t.state.name == "COMPLETE"]), ref=reference))


def test_it_beats_random_on_any_search_space() -> None:
    gains = []
    for seed in range(3):
        found = []
        for sampler in (SurrogateSampler(seed=seed), RandomSampler(seed=seed)):
            study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
            study.optimize(objective, n_trials=40)
            found.append(volume(study, [4.0, 1.0]))
        gains.append(found[0] - found[1])
    assert np.mean(gains) > 0


def test_directions_and_constraints_are_respected() -> None:
    def constrained(trial: optuna.Trial) -> float:
        x = [trial.suggest_int(f"x{k}", 0, 9) for k in range(4)]
        trial.set_constraint("sum", sum(x) - 18)
        return float(sum(x))

    def sums(direction: str) -> list[float]:
        study = optuna.create_study(direction=direction, sampler=SurrogateSampler(seed=0))
        study.optimize(constrained, n_trials=60)
        return [t.values[0] for t in study.trials if t.values]

    most, least = sums("maximize"), sums("minimize")
    assert np.mean(most[40:]) > np.mean(least[40:]) + 3 and max(s for s in most if s <= 18) >= 16
    assert np.mean([s <= 18 for s in most[40:]]) > 0.3


def test_a_search_of_networks_is_solved_exactly() -> None:
    """With a problem the same proposals as the sampler of studies: ahead of one that does not know the space."""
    gains = []
    for seed in range(3):
        of = space(10, 8, seed=seed)
        made = truth(of, seed=seed)
        scale = float(np.median(made.rises(of.sample(200, 0))))
        problem = Problem(of, ("loss", "macs"))
        names = distributions(problem)
        assert {name: getattr(d, "high", 0) + 1 for name, d in names.items()} == {l.site.name: len(l) for l in of.ladders}
        found = []
        for sampler in (SurrogateSampler(problem, seed=0), SurrogateSampler(seed=0)):
            study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
            for number in range(14):
                trial = study.ask(names)
                indices = np.array([trial.params[name] for name in names])
                if number == 5:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    continue
                rise = float(made.rises(indices[None])[0]) / scale
                study.tell(trial, [1 + rise / (1 + rise), float(of.cost(indices)["macs"] / of.baseline["macs"])])
            found.append(volume(study, [2.0, 1.0]))
        gains.append(found[0] / found[1])
    assert np.mean(gains) > 1.03


def test_many_values_are_cells_and_few_are_themselves() -> None:
    random = np.random.default_rng(0)
    for distribution in (
        FloatDistribution(-3, 5), FloatDistribution(1e-6, 1, log=True), IntDistribution(1, 10_000, log=True),
        IntDistribution(0, 1000, step=5), IntDistribution(0, 9), FloatDistribution(0, 1, step=0.25),
        CategoricalDistribution(["x", 2, None]), IntDistribution(0, 31), FloatDistribution(2, 2),
    ):  # fmt: skip
        parameter = _Parameter.of("p", distribution)
        for option in range(len(parameter.values)):
            value = parameter.value(option, random)
            assert distribution._contains(distribution.to_internal_repr(value))
            away = abs(parameter.index(value) - option)
            assert away == 0 or (parameter.cells and isinstance(distribution, IntDistribution)), (distribution, option, value)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="startup=0"):
        SurrogateSampler(startup=0)
