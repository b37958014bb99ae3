"""Measurements of configurations on batches that the choice of ranks may see: each is made once, and what they cost is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ranksearch.compression.judge import Judge, judge
from ranksearch.decompositions import Moments
from ranksearch.networks.reconstruction import Answers, dense_answers, reconstruct
from ranksearch.networks.surgery import build
from ranksearch.proxies import LEMS, CalibrationLoss, Energy
from ranksearch.sites import Sites
from ranksearch.space import Configuration, SearchSpace
from ranksearch.space.spectra import Spectra
from ranksearch.surrogate import Curves, curves
from ranksearch.tasks import Task

WAY = 0.7  # standard deviation of how far a model may go from the Fisher errors to LEMS's curves, before anything is measured


class Measured:
    """The loss of configurations.

    Args:
        measure: of one configuration.
        each: forward passes of one batch that it takes.
        known: losses by the configuration's id, to which others are added.
    """

    def __init__(self, measure: Callable[[Configuration], float], each: int, known: MutableMapping[str, float]) -> None:
        self._measure, self._each, self._known = measure, each, known
        self.passes = 0  # forward passes of one batch that were made

    def on(self, space: SearchSpace) -> Callable[[np.ndarray], float]:
        """The loss of option indices of a space."""
        return lambda indices: self(space.configuration(indices))

    def __call__(self, configuration: Configuration) -> float:
        if configuration.id not in self._known:
            self._known[configuration.id] = self._measure(configuration)
            self.passes += self._each
        return self._known[configuration.id]


def as_it_is(spectra: Spectra, loss: Judge, known: MutableMapping[str, float]) -> Measured:
    """Losses of networks as their factors come."""
    return Measured(CalibrationLoss(spectra, loss.batches, loss.loss, normalization="batch"), len(loss.batches), known)


@dataclass(frozen=True)
class Light:
    """What a light reconstruction is fitted to, and what it is measured on; the same for every metric."""

    answers: Answers
    loss: Judge


def light(model: nn.Module, sites: Sites, task: Task, fit: int, batches: int, *, seen: int) -> Light:
    """Networks are fitted to the first ``fit`` batches and measured on the ``batches`` that come after these, as far as there are so many
    among the first ``seen``, else on the same."""
    everything: Sequence[tuple[Any, Any]] = list(task.labelled(min(fit + batches, seen)))
    answers = dense_answers(model, sites, [x for x, _ in everything[:fit]])
    return Light(answers, judge(model, task, everything[fit:] or everything))


def fitted(spectra: Spectra, on: Light, known: MutableMapping[str, float], *, moments: Mapping[str, Moments] | None) -> Measured:
    """Losses of networks whose factors are fitted to the dense network's answers, unchecked. What loses least before a fit is not what
    loses least after it.

    Args:
        moments: that weigh errors, as for `reconstruct`.
    """

    def measure(configuration: Configuration) -> float:
        network = build(spectra, configuration).eval()
        if configuration.choices:
            reconstruct(network, spectra, configuration, on.answers, moments=moments, held_out=0.0, report=False)
        return on.loss(network)

    return Measured(measure, len(on.loss.batches), known)


def prior(space: SearchSpace, measure: Callable[[Configuration], float]) -> Curves:
    """What a model of the loss knows before: the Fisher errors, and the way from them to LEMS's curves, of one measurement per site."""
    lems = LEMS(measure, trials=1).table(space)
    others = [(lems, WAY)] if max(float(np.max(values)) for values in lems.values) > 0 else []  # a network may depend on no site
    return curves(space, Energy().table(space), others=others)
