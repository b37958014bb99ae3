"""One full evaluation: configuration -> network -> reconstructed -> fine-tuned -> batch norm re-estimated -> measured."""

from __future__ import annotations

import torch
from torch import nn

from ranksearch.errors import InvalidArgument
from ranksearch.evaluation.fidelity import RECOVERY, SEQUENTIAL
from ranksearch.evaluation.request import Outcome, Request, outcome_of
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.networks.reconstruction import reconstruct
from ranksearch.networks.recovery import recover
from ranksearch.networks.surgery import build
from ranksearch.sites import device_of
from ranksearch.space.spectra import Spectra
from ranksearch.tasks import Task, measured


class Evaluator:
    """Evaluates requests for one model and task. Picklable: workers get it once, weights and data included."""

    def __init__(self, spectra: Spectra, task: Task) -> None:
        self.spectra = spectra
        self.task = task

    def network(self, request: Request) -> nn.Module:
        """The network of a request, reconstructed, fine-tuned and with batch norm re-estimated. The same request gives the
        same network on the same machine and thread count."""
        torch.manual_seed(request.seed)
        model = build(self.spectra, request.configuration)
        fidelity = request.fidelity
        if fidelity.reconstruction and fidelity.fit != SEQUENTIAL:
            raise InvalidArgument(f"fidelity={fidelity.key!r}: networks with {fidelity.fit} fitted were made by earlier versions alone")
        if fidelity.reconstruction:
            reconstruct(model, self.spectra, request.configuration, self.task.calibration(fidelity.reconstruction))
        if fidelity.training == RECOVERY:
            dense = self.spectra.model
            recover(model, dense, self.task, epochs=fidelity.epochs, seed=request.seed, recalibration=fidelity.recalibration)
        elif fidelity.epochs:
            self.task.fine_tune(model, epochs=fidelity.epochs, seed=request.seed)
        if fidelity.recalibration:
            recalibrate(model, self.task.normalization(fidelity.recalibration))
        return model.eval()

    def __call__(self, request: Request) -> Outcome:
        """Evaluate; a configuration's own fault (an exception, a metric that is missing or not finite) is an outcome."""
        declared = [metric.name for metric in self.task.metrics]
        return outcome_of(request, lambda: measured(self.task, self.network(request)), declared, device=device_of(self.spectra.model))
