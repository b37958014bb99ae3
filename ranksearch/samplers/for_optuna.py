"""The surrogate as a sampler of Optuna's, for studies of one's own: of networks, whose space it then knows, or of anything else.

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SurrogateSampler(seed=0))

Importing this module imports Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.samplers.problem import Problem
from ranksearch.samplers.surrogate import RANDOM, REMEMBERED, Surrogate
from ranksearch.surrogate import least_of_draws

CELLS = 32  # options of a parameter that has more values


class SurrogateSampler(BaseSampler):
    """Thompson sampling on models that are sums over parameters, any number of objectives.

    Of a search of networks (``problem``, and parameters as `distributions` names them) the model is the one of `Surrogate`, solved
    exactly over all budgets. Of any other search space every objective is an additive Gaussian process over values of its parameters,
    whose randomly weighted draws are minimised. Parameters that not all trials have had are drawn independently. Trials that break a
    constraint (`optuna.trial.Trial.set_constraint`) count as worse than all others, by how much they break it.

    Args:
        problem: the search of networks whose options are suggested.
        seed: of all random choices; None: another one each time.
        startup: random trials before anything is modelled.

    Raises:
        InvalidArgument: ``startup`` below 1.
    """

    def __init__(self, problem: Problem | None = None, *, seed: int | None = None, startup: int = RANDOM) -> None:
        self.startup = checks.whole("startup", startup, least=1)
        self._problem, self._seed = problem, seed
        self._random = np.random.default_rng(seed)
        self._independent = RandomSampler(seed)
        self._space = IntersectionSearchSpace()
        self._named = {} if problem is None else distributions(problem)
        self._engine: Surrogate | None = None
        self._told: set[int] = set()  # numbers of the trials that the engine knows

    def reseed_rng(self) -> None:
        self._random = np.random.default_rng()
        self._independent.reseed_rng()
        self._engine, self._told, self._seed = None, set(), None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._problem is not None:
            return dict(self._named)
        return {name: d for name, d in self._space.calculate(study).items() if not d.single()}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        if not search_space:
            return {}
        if self._problem is not None and search_space.keys() == self._named.keys():
            return self._of_networks(study, self._problem)
        parameters = [_Parameter.of(name, distribution) for name, distribution in search_space.items()]
        trials = [t for t in _finished(study) if search_space.keys() <= t.params.keys()][-REMEMBERED:]
        shape = [len(p.values) for p in parameters]
        if len(trials) < self.startup:
            picked = self._random.integers(0, np.array(shape))
        else:
            indices = np.array([[p.index(t.params[p.name]) for p in parameters] for t in trials], dtype=np.int64)
            ordered = [not isinstance(p.distribution, CategoricalDistribution) for p in parameters]
            picked = least_of_draws(shape, indices, _worth(study, trials), self._random, ordered=ordered)
        return {p.name: p.value(int(i), self._random) for p, i in zip(parameters, picked, strict=True)}

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _of_networks(self, study: Study, problem: Problem) -> dict[str, int]:
        """Options of all sites, by the sampler that knows the space; it is told of every trial once."""
        space = problem.space
        if self._engine is None:
            seed = int(self._random.integers(2**32)) if self._seed is None else self._seed
            tables = [(space.cost_tables[name], limit) for name, limit in problem.limits.items()]
            self._engine = Surrogate().start(
                space.shape, len(study.directions), seed=seed, problem=problem,
                admissible=lambda indices: all(float(table.score(indices)) <= limit for table, limit in tables),
            )  # fmt: skip
        names = list(self._named)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
            if trial.number not in self._told and self._named.keys() <= trial.params.keys():
                values = None if trial.state == TrialState.FAIL or _violation(trial) > 0 else _signed(study, trial).tolist()
                self._engine.observe([trial.params[name] for name in names], values)
                self._told.add(trial.number)
        return dict(zip(names, self._engine.propose().tolist(), strict=True))


def distributions(problem: Problem) -> dict[str, BaseDistribution]:
    """The parameters of a search of networks: for every site, by its name, the number of its option."""
    return {ladder.site.name: IntDistribution(0, len(ladder) - 1) for ladder in problem.space.ladders}


@dataclass(frozen=True)
class _Parameter:
    """A parameter as options: its values, or cells of them where they are many or continuous."""

    name: str
    distribution: BaseDistribution
    values: Sequence[Any]  # of cells the middle
    cells: bool = False

    @classmethod
    def of(cls, name: str, distribution: BaseDistribution) -> _Parameter:
        if isinstance(distribution, CategoricalDistribution):
            return cls(name, distribution, distribution.choices)
        if not isinstance(distribution, (IntDistribution, FloatDistribution)):
            raise InvalidArgument(f"parameter {name!r} is a {type(distribution).__name__}; give integers, floats and categories")
        low, high, step = distribution.low, distribution.high, distribution.step
        if step is not None and not distribution.log and (high - low) / step < 2 * CELLS:
            count = round((high - low) / step) + 1
            return cls(name, distribution, [low + step * k for k in range(count)])
        if low == high:
            return cls(name, distribution, [low])
        edges = _edges(distribution)
        return cls(name, distribution, [_back(distribution, (a + b) / 2) for a, b in pairwise(edges)], cells=True)

    def index(self, value: Any) -> int:
        """The option that a value belongs to."""
        if isinstance(self.distribution, CategoricalDistribution):
            return int(self.distribution.to_internal_repr(value))
        places = np.array([_forth(self.distribution, v) for v in self.values])
        return int(np.abs(places - _forth(self.distribution, value)).argmin())

    def value(self, option: int, random: np.random.Generator) -> Any:
        """A value of an option: of a cell a random one."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[option]
        assert isinstance(distribution, (IntDistribution, FloatDistribution))
        value = self.values[option]
        if self.cells:
            edges = _edges(distribution)
            value = _back(distribution, random.uniform(edges[option], edges[option + 1]))
        if distribution.step is not None:
            value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
        value = min(max(value, distribution.low), distribution.high)
        return round(value) if isinstance(distribution, IntDistribution) else float(value)


def _edges(distribution: IntDistribution | FloatDistribution) -> np.ndarray:
    """Borders of the cells, in the logarithm where the distribution is."""
    half = 0.5 if isinstance(distribution, IntDistribution) else 0.0
    return np.linspace(_forth(distribution, distribution.low - half), _forth(distribution, distribution.high + half), CELLS + 1)


def _forth(distribution: Any, value: float) -> float:
    return float(np.log(value)) if distribution.log else float(value)


def _back(distribution: Any, place: float) -> float:
    return float(np.exp(place)) if distribution.log else float(place)


def _finished(study: Study) -> list[FrozenTrial]:
    """Trials whose values are finite, in order."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [t for t in trials if t.values is not None and np.isfinite(t.values).all()]


def _signed(study: Study, trial: FrozenTrial) -> np.ndarray:
    """Values of a trial, all to be minimised."""
    signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in study.directions]
    return np.array(trial.values) * np.array(signs)


def _violation(trial: FrozenTrial) -> float:
    return sum(max(value, 0.0) for value in trial.constraints.values())


def _worth(study: Study, trials: Sequence[FrozenTrial]) -> np.ndarray:
    """Values to be minimised, shape: (n, n_objectives); those of trials that break constraints are above all others."""
    values = np.array([_signed(study, trial) for trial in trials])
    broken = np.array([_violation(trial) for trial in trials])
    if not (broken > 0).any():
        return values
    kept = values[broken <= 0] if (broken <= 0).any() else values
    worst, span = kept.max(axis=0), np.maximum(np.ptp(kept, axis=0), 1e-9)
    over = broken / broken.max()
    return np.where((broken > 0)[:, None], worst + span * (0.5 + over[:, None]), values)

