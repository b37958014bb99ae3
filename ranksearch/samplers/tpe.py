"""Tree-structured Parzen estimator, multi-objective (Ozaki et al., 2022, JAIR 73), from Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ranksearch import checks
from ranksearch.samplers._optuna import OptunaSampler

if TYPE_CHECKING:
    import optuna


class TPE(OptunaSampler):
    """Parzen estimators of good and of other configurations. Pending proposals count as bad ones (the constant liar), so
    that parallel workers do not all get the same.

    Args:
        startup: random proposals before the first estimate.

    Raises:
        InvalidArgument: ``startup`` below 1.
    """

    name = "tpe"

    def __init__(self, *, startup: int = 16) -> None:
        self.startup = checks.whole("startup", startup, least=1)

    def _engine(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup, multivariate=True, constant_liar=True)

    def _add(self, params: dict[str, int], values: list[float]) -> None:
        import optuna

        self._study.add_trial(optuna.trial.create_trial(params=dict(params), distributions=self._distributions, values=values))
