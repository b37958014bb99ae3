"""NSGA-II (Deb et al., 2002, IEEE TEC 6(2)), from Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ranksearch import checks
from ranksearch.samplers._optuna import OptunaSampler

if TYPE_CHECKING:
    import optuna


class NSGA2(OptunaSampler):
    """Non-dominated sorting genetic algorithm.

    Args:
        population: small by default, since an evaluation is a fine-tuning run and budgets are a few hundred of them.

    Raises:
        InvalidArgument: ``population`` below 2.
    """

    name = "nsga2"

    def __init__(self, *, population: int = 20) -> None:
        self.population = checks.whole("population", population, least=2, hint="a child has two parents")

    @property
    def remembered(self) -> int:
        """Ten generations: what is not among their best has no children."""
        return 10 * self.population

    def _engine(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.NSGAIISampler(population_size=self.population, seed=seed)

    def _add(self, params: dict[str, int], values: list[float]) -> None:
        # a trial that did not come out of the sampler belongs to no generation and would never become a parent: asking for
        # its generation puts it into the current one, like any other
        self._study.enqueue_trial(params)
        trial = self._study.ask(self._distributions)
        sampler = cast("optuna.samplers.NSGAIISampler", self._study.sampler)
        sampler.get_trial_generation(self._study, self._study.get_trials(deepcopy=False)[trial.number])
        self._study.tell(trial, values)
