"""One full evaluation: configuration -> network -> reconstructed -> taught -> fine-tuned -> batch norm re-estimated -> measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation.fidelity import RECOVERY, SEQUENTIAL, Fidelity
from ranksearch.evaluation.request import Outcome, Request, outcome_of
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.distillation import distill, no_room, unseen_first
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.recovery import Recovery
from ranksearch.networks.surgery import build
from ranksearch.sites import device_of
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import FineTuning, Task, measured


class Evaluator:
    """Evaluates requests for one model and task. Picklable: workers get it once, weights and data included."""

    def __init__(self, spectra: Spectra, task: Task) -> None:
        self.spectra = spectra
        self.task = task

    def network(self, request: Request) -> nn.Module:
        """The network of a request, reconstructed, taught, fine-tuned and with batch norm re-estimated. The same request gives the
        same network on the same machine and thread count."""
        model, fidelity = self.untrained(request), request.fidelity
        if fidelity.training == RECOVERY:
            recovery = self.tuning(model, request)
            recovery.advance(fidelity.epochs)
            recovery.settle(model)
        elif fidelity.epochs:  # by the task's own method, which need not train step by step
            self.task.fine_tune(model, epochs=fidelity.epochs, seed=request.seed)
        return self.finished(model, fidelity)

    def tuning(self, model: nn.Module, request: Request) -> FineTuning:
        """The fine-tuning of a network that `untrained` gave, to be taken in parts."""
        fidelity, seed = request.fidelity, request.seed
        if fidelity.training == RECOVERY:
            given = model, self.spectra, request.configuration, self.task
            options = {"temperature": fidelity.temperature, "recalibration": fidelity.recalibration}
            return Recovery(*given, epochs=fidelity.epochs, seed=seed, **options)
        return FineTuning(self.task, model, epochs=fidelity.epochs, seed=seed)

    def built(self, request: Request) -> nn.Module:
        """The network of a request, its factors as they come. Torch's random numbers begin with the seed."""
        torch.manual_seed(request.seed)
        return build(self.spectra, request.configuration)

    def untrained(self, request: Request) -> nn.Module:
        """The network of a request as its fine-tuning begins: built, reconstructed, and taught the dense network's answers."""
        model, fidelity = self.built(request), request.fidelity
        if fidelity.reconstruction and fidelity.fit != SEQUENTIAL:
            raise InvalidArgument(f"fidelity={fidelity.key!r}: networks with {fidelity.fit} fitted were made by earlier versions alone")
        if fidelity.reconstruction:
            reconstruct(model, self.spectra, request.configuration, self.task.calibration(fidelity.reconstruction))
        if fidelity.distill and request.configuration.choices:  # the dense network has nothing to learn of itself
            self._teach(model, request)
        return model

    def _teach(self, model: nn.Module, request: Request) -> None:
        steps, seen = request.fidelity.distill, request.fidelity.reconstruction
        if (text := no_room(model)) is not None:
            raise InvalidArgument(f"fidelity={request.fidelity.key!r}: {text}; use distill=0")
        lessons = partial(unseen_first, self.task, steps, seen=seen)
        distill(model, self.spectra, request.configuration, lessons, steps=steps, divergence=self.task.divergence)

    def finished(self, model: nn.Module, fidelity: Fidelity) -> nn.Module:
        """A network that was fine-tuned, with batch norm re-estimated in place, ready to be measured: on batches as training shows them,
        but where its norms were fitted to plain ones last, by reconstruction or teaching without training. Recovery has done it."""
        if fidelity.recalibration and fidelity.training != RECOVERY:
            fitted = (fidelity.reconstruction or fidelity.distill) and not fidelity.epochs
            recalibrate(model, (self.task.calibration if fitted else self.task.normalization)(fidelity.recalibration))
        return model.eval()

    def __call__(self, request: Request) -> Outcome:
        """Evaluate; a configuration's own fault (an exception, a metric that is missing or not finite) is an outcome."""
        return self.outcome(request, lambda: measured(self.task, self.network(request)))

    def outcome(self, request: Request, measure: Callable[[], Mapping[str, float]]) -> Outcome:
        """What comes of measuring a request, with where that was; see `outcome_of`."""
        declared = [metric.name for metric in self.task.metrics]
        return outcome_of(request, measure, declared, device=device_of(self.spectra.model))
