"""What the proxies of a study are made from, each part computed when the first proxy asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from ranksearch.allocators import Additive, Problem
from ranksearch.networks.batch_norm import recalibrate
from ranksearch.proxies.calibration_loss import CalibrationLoss
from ranksearch.proxies.proxy import Need
from ranksearch.space import Configuration, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.space.table import Table
from ranksearch.statistics import Statistics
from ranksearch.statistics import metric as space_metric
from ranksearch.tasks import Task

SAMPLE = 32  # configurations near the fronts that proxies are fitted to and checked on
SAMPLE_SPREAD = 0.8  # of the logarithm of the random weights whose optima they are


@dataclass(frozen=True)
class ProxyContext:
    """A study as its proxies see it."""

    space: SearchSpace
    spectra: Spectra
    task: Task
    calibration: int  # batches for statistics; 0: proxies that need data are left out
    batches: int  # labelled batches for proxies that run networks; 0: these are left out
    seed: int = 0  # of the configurations in `near_fronts`

    def missing(self, need: Need) -> str | None:
        """Why a proxy with this need cannot be made here; None where it can."""
        if need == "statistics" and not self.calibration:
            return "needs a calibration pass, which was not asked for"
        if need == "networks" and not (self.calibration and self.batches):
            return "runs networks, which was not asked for"
        return None

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the calibration batches, with gradients and the diagonal of the Fisher; they are cached on disk."""
        spectra = self.spectra
        return space_metric.statistics(
            spectra.model, spectra.sites, self.task, calibration=self.calibration, gradients=True, diagonal=True
        )  # fmt: skip

    @cached_property
    def labelled(self) -> list[tuple[Any, Any]]:
        """Batches (inputs, targets) that networks are run on."""
        return list(self.task.labelled(self.batches))

    @property
    def inputs(self) -> list[Any]:
        """The inputs of `labelled`."""
        return [inputs for inputs, _ in self.labelled]

    @cached_property
    def loss(self) -> CalibrationLoss:
        """The loss of a configuration on `labelled`, batch norm by batch statistics."""
        return CalibrationLoss(self.spectra, self.labelled, self.task.loss, normalization="batch")

    def network(self, configuration: Configuration) -> nn.Module:
        """The network of a configuration, batch norm re-estimated on `inputs`."""
        model = self.loss.build(configuration)
        recalibrate(model, self.inputs)
        return model

    def near_fronts(self, base: Table, count: int = SAMPLE) -> np.ndarray:
        """Configurations to measure: exact optima of a randomly weighted additive table at random budgets, near the front, yet
        different; int64, shape: (count, n_sites)."""
        space, random, found = self.space, np.random.default_rng(self.seed), []
        costs = [cost for cost in space.costs if space.baseline[cost]]
        for number in range(count):
            cost = costs[number % len(costs)]
            weights = np.exp(random.normal(0.0, SAMPLE_SPREAD, len(base.values)))
            table = Table(tuple(w * v for w, v in zip(weights, base.values, strict=True)), "sum")
            least = space.smallest(cost) / space.baseline[cost]
            share = float(random.uniform(max(0.1, least), 0.9)) if least < 0.9 else 1.0
            found.append(Additive().allocate(Problem(space, table, {cost: share})).indices)
        return np.array(found)
