"""A space of three layers, samplers that say what they are told, and several evaluations in flight without a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from ranksearch.decompositions import SVD
from ranksearch.evaluation import Outcome, Request
from ranksearch.runners import Runner, Wait
from ranksearch.samplers import Sampler
from ranksearch.sites import find_sites
from ranksearch.space import SearchSpace, build_space
from ranksearch.space.spectra import Spectra


def small_space(max_options: int = 5) -> SearchSpace:
    """``max_options`` ranks and dense at each of three layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12))
    return build_space(Spectra(model, find_sites(model, torch.randn(1, 24)), [SVD()]), max_options=max_options)


class Scripted(Sampler):
    """Proposes a list of vectors and then, for ever, the last of them; ``told`` is what it heard, in order."""

    name = "scripted"

    def __init__(self, script: Sequence[Sequence[int]]) -> None:
        self.script = [np.array(row) for row in script]

    def _begin(self, seed: int) -> None:
        self.left = list(self.script)
        self.told: list[tuple[tuple[int, ...], list[float] | None]] = []

    def _candidate(self) -> np.ndarray:
        return (self.left.pop(0) if len(self.left) > 1 else self.left[0]).copy()

    def _learn(self, indices: np.ndarray, values: list[float] | None) -> None:
        self.told.append((tuple(indices.tolist()), values))


def anything(indices: np.ndarray) -> bool:
    return True


def worth(request: Request) -> Outcome:
    """A metric that depends on the configuration alone; every third configuration fails."""
    number = int(request.configuration.id, 16)
    if number % 3 == 0:
        return Outcome(request, "failed", error="RuntimeError: no luck")
    return Outcome(request, "done", {"accuracy": (number % 1000) / 1000})


class InFlight(Runner):
    """``workers`` requests at a time, the last one that was sent finishing first; says what it was given."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.sent: list[Request] = []
        self.most = 0  # in flight at once

    def run(
        self, evaluate: Callable[[Request], Outcome], propose: Callable[[], Request | Wait | None], report: Callable[[Outcome], None]
    ) -> None:
        flying: list[Request] = []
        ended = False
        while flying or not ended:
            request = None if ended or len(flying) == self.workers else propose()
            if isinstance(request, Request):
                assert request.configuration.id not in {r.configuration.id for r in flying}, "evaluated twice at the same time"
                flying.append(request)
                self.sent.append(request)
                self.most = max(self.most, len(flying))
                continue
            if isinstance(request, Wait):
                assert flying, "told to wait for nothing"
            else:
                ended = ended or len(flying) < self.workers
            if flying:
                report(evaluate(flying.pop()))
