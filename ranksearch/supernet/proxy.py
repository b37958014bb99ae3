"""What a supernet says of a configuration: the metrics that its weights have there, without any training for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ranksearch import checks
from ranksearch.errors import InvalidArgument
from ranksearch.proxies import ScoreProxy
from ranksearch.sites import device_of, map_tensors
from ranksearch.space import Configuration, SearchSpace
from ranksearch.supernet.network import RankSupernet
from ranksearch.supernet.projections import PROJECTIONS
from ranksearch.tasks import Task, measured
from ranksearch.tasks.task import Split


class SupernetProxy(ScoreProxy):
    """Scores a configuration by a metric of the task: the configuration is activated, and its batch-norm statistics are
    re-estimated, so that the metrics are those of the extracted network. The supernet is left as it was.

    Args:
        supernet: trained, or not: then these are the metrics of truncation alone.
        metric: which one `score` gives, negated where more is better.
        batches: batches of training data that statistics are re-estimated on for every configuration, the same ones each
            time; 0 keeps those of the low-rank passes in training.
        split: of the task, that is measured on.

    Raises:
        InvalidArgument: ``batches`` below 0, or no such metric.
    """

    def __init__(
        self, supernet: RankSupernet, task: Task, *, metric: str = "loss", batches: int = 4, split: Split = "validation"
    ) -> None:
        directions = {m.name: m.direction for m in task.metrics}
        if metric not in directions:
            raise InvalidArgument(f"metric={metric!r} is not a metric of the task; its metrics are: {', '.join(directions)}")
        checks.whole("batches", batches, least=0)
        self.supernet, self.task, self.metric, self.batches = supernet, task, metric, batches
        self.split: Split = split
        self.name = f"supernet_{metric}"
        self._sign = 1.0 if directions[metric] == "min" else -1.0
        self._inputs: list[Any] | None = None
        self._weights: tuple[Any, ...] = ()

    def score(self, space: SearchSpace, indices: np.ndarray) -> np.ndarray:
        return np.array([self._sign * self.measure(space.configuration(row))[self.metric] for row in np.atleast_2d(indices)])

    def measure(self, configuration: Configuration) -> dict[str, float]:
        """Every metric of the task. One pass over ``batches`` and one over the split.

        Raises:
            InvalidArgument: the supernet does not have the configuration (see `covers`)."""
        net = self.supernet
        weights = tuple((p._version, p.data_ptr()) for p in net.parameters())
        if weights != self._weights:
            net.refresh()  # bases of the weights as they are
            self._weights = weights
        with self._restored():
            net.activate(configuration)
            if self.batches:
                net.recalibrate(self._calibration())
            return measured(self.task, net, self.split)

    def covers(self, configuration: Configuration) -> bool:
        """Whether every factorized site has a type that is a projection of the dense weight."""
        return all(decomposition in PROJECTIONS for _, decomposition, _ in configuration.choices)

    def uncovered(self, space: SearchSpace) -> Mapping[str, str]:
        """Types whose low-rank weight is no projection of the dense one."""
        return {
            f"{ladder.site.name}:{name}": "no projection of the dense weight: the supernet does not have it"
            for ladder in space.ladders
            for name in sorted(ladder.present - {*PROJECTIONS, "dense"})
        }

    def _calibration(self) -> list[Any]:
        if self._inputs is None:
            device = device_of(self.supernet)
            self._inputs = [map_tensors(lambda tensor: tensor.to(device), batch) for batch in self.task.normalization(self.batches)]
        return self._inputs

    @contextmanager
    def _restored(self) -> Iterator[None]:
        net = self.supernet
        active, buffers = net.active, {name: buffer.clone() for name, buffer in net.named_buffers()}
        try:
            yield
        finally:
            net.activate(active)
            with torch.no_grad():
                for name, buffer in net.named_buffers():
                    buffer.copy_(buffers[name])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_inputs": None, "_weights": ()}
