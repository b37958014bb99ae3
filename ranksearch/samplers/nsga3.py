"""NSGA-III (Deb and Jain, 2014, IEEE TEC 18(4)), from Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ranksearch.samplers.nsga2 import NSGA2

if TYPE_CHECKING:
    import optuna


class NSGA3(NSGA2):
    """As `NSGA2`, with reference directions in the place of the crowding distance: for three objectives and more."""

    name = "nsga3"

    def _engine(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.NSGAIIISampler(population_size=self.population, seed=seed)
