"""The supernets of a study: one training for every size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ranksearch import checks
from ranksearch.home import home
from ranksearch.search.events import Announced, Profiled
from ranksearch.store.database import Place
from ranksearch.supernet import RankSupernet, TrainingStep
from ranksearch.supernet.methods import Method
from ranksearch.supernet.study import SupernetStore, TrainedSupernet, checked

if TYPE_CHECKING:
    from ranksearch.study.study import Study


@dataclass(frozen=True)
class Supernets:
    """Training supernets, and finding trained ones."""

    study: Study

    @property
    def store(self) -> SupernetStore:
        """Where they are: in ``supernets`` beside the study's store where that is a file, else under `home`."""
        study = self.study
        path = Place(study.store_url).path
        folder = (home() if path is None else path.parent) / "supernets"
        return SupernetStore(folder, study.model, study.task, study.spectra, study.space, study.fingerprint, study.former_fingerprint)

    def untrained(self) -> RankSupernet:
        """A supernet of the study before any training, to make a method with: ``Joint(study.supernets.untrained(),
        study.task.loss)``."""
        return self.store.untrained()

    def train(
        self,
        method: str | Method = "sandwich",
        *,
        epochs: float = 6.0,
        sampling: str | None = None,
        seed: int | None = None,
        recalibration: int = 16,
        on_event: Callable[[Announced | Profiled | TrainingStep], None] | None = None,
        **options: Any,
    ) -> TrainedSupernet:
        """One training for every size of the network, see `ranksearch.supernet`. Types of the space that are no projection
        of the dense weight are left out. The same call again goes on from the last checkpoint, or loads what is trained.

        Args:
            method: a name in `ranksearch.supernet.methods.METHODS`, or an instance, made with `untrained` and the task's loss.
            epochs: passes over the training data, with the task's optimiser and schedule.
            sampling: where configurations are drawn from, one of `ranksearch.supernet.sampling.SAMPLINGS`, over all types
                that project; default: the method's own.
            seed: other than the study's.
            recalibration: batches that batch norm is re-estimated on before a configuration is measured; no part of the
                training.
            on_event: called with stages and after every step.
            options: hyper-parameters of the method.

        Raises:
            InvalidArgument: an unknown method, sampling or option; sampling or options beside an instance; no type of the space
                projects.
            Diverged: the loss is no longer finite.
            KeyboardInterrupt: interrupted; the last step is in the checkpoint.
        """
        seed = self.study.seed if seed is None else checks.seed(seed)
        checks.number("epochs", epochs, above=0)  # before statistics are collected
        checked(method, sampling, options)
        self.study.check_unchanged()
        self.study.profile(on_event or (lambda event: None))
        return self.store.train(
            method, epochs=epochs, sampling=sampling, seed=seed, recalibration=recalibration, on_event=on_event, options=options
        )

    def load(self, which: str | bool = True) -> TrainedSupernet:
        """A trained supernet by method or key; True: the only one.

        Raises:
            InvalidArgument: there is none, or several."""
        store = self.store
        return store.load(store.find(which))
