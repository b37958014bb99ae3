"""The front of a search that goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ranksearch.cli.tables import plural

if TYPE_CHECKING:
    from ranksearch.evaluation import Outcome
    from ranksearch.study import Study


@dataclass(frozen=True)
class FrontSize:
    """How many factorized networks are on a front, and its hypervolume relative to the dense network
    (`ranksearch.results.pareto.relative_hypervolume`)."""

    networks: int
    hypervolume: float

    def __str__(self) -> str:
        return f"front: {plural(self.networks, 'network')}, hypervolume {self.hypervolume:.3f}"


class Front:
    """What is known of the front of a run, of all that the store has at the run's fidelity and seed."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __call__(self, outcome: Outcome) -> FrontSize | None:
        """Its size after an outcome of the run; None while the dense network is not measured."""
        from ranksearch.results.pareto import non_dominated, relative_hypervolume

        every: Any = self.study.evaluations()
        request = outcome.request
        every = every[(every["fidelity"] == request.fidelity.key) & (every["seed"] == request.seed) & (every["status"] == "done")]
        dense = every[every["factorized"] == 0]
        if not len(dense):
            return None
        names = list(self.study.objectives)
        directions: list[Any] = [self.study.directions[name] for name in names]
        values, reference = every[names].to_numpy(dtype=float), dense[names].to_numpy(dtype=float)[0]
        count = int((non_dominated(values, directions) & (every["factorized"] > 0).to_numpy()).sum())
        volume = relative_hypervolume(values, reference, directions, [name in self.study.baseline for name in names])
        return FrontSize(count, volume)
