"""What `ranksearch.compress` costs, stage by stage, as one line of JSON: processor seconds, the same in passes of a batch through the dense
network, and the share of every stage, which counts what is done in it alone. ``losses`` has every rule's answer, so that two versions
can be compared: with ``PYTHONPATH`` at the one and then at the other.

    OMP_NUM_THREADS=1 python analysis/benchmarks/compress.py [--weights resnet20_cifar10.safetensors --data FOLDER] [--space svd]

Without weights the digits network is compressed, which is trained once. Moments and types are collected and prepared anew; with
``--warm`` they are read from ``$RANKSEARCH_HOME/cache``, as they are when the same network is compressed again."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from ranksearch import compress
from ranksearch.home import home, user_path
from ranksearch.space import mixture, svd_only
from ranksearch.tasks import Classification
from ranksearch.tasks.images import cifar10, digits
from ranksearch.tasks.networks import cifar_resnet, digits_net, load_weights
from ranksearch.tasks.training import trained

SPACES = {"svd": svd_only, "mixture": mixture, "no-cp": lambda: mixture(cp=False)}
# stage: what is done in it, as module and attribute
STAGES: dict[str, tuple[str, ...]] = {
    "statistics": ("statistics.metric.statistics",),
    "types": ("space.spectra.Spectra.state", "space.spectra.Spectra.profile", "space.spectra.Spectra.factors"),
    "ladders": ("space.specs.SpaceSpec.build",),
    "allocation": ("compression.rules.Rule.choose", "search.refit.refit"),
    "loss model": ("search.refit.fit",),
    "networks measured as they come": ("proxies.calibration_loss.CalibrationLoss.__call__",),
    "light reconstruction": ("compression.measured.reconstruct",),
    "reconstruction": ("compression.portfolio.reconstruct",),
    "passes of reconstruction": ("networks.lockstep.Pass.advance", "networks.reconstruction.sequential.distances"),
    "moments of reconstruction": ("networks.reconstruction.layer.Layer.moments",),
    "fits of reconstruction": ("networks.reconstruction.layer.Layer.fit",),
    "norms of reconstruction": ("networks.reconstruction.sequential.fit_norm",),
    "teaching": ("compression.portfolio.distill",),
    "judging": ("compression.judge.Judge.__call__",),
    "building": ("compression.portfolio.build", "compression.measured.build"),
    "batch norm": ("compression.compress.recalibrate",),
}


class Clock:
    """Processor seconds of stages, each without those that begin in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._open: list[str] = ["the rest"]
        self._since = time.process_time()

    def turn(self) -> None:
        """What has passed is that of the stage at hand."""
        now = time.process_time()
        self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + now - self._since
        self._since = now

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """``work``, with its time counted."""

        @wraps(work)
        def counted(*args: Any, **options: Any) -> Any:
            self.turn()
            self._open.append(stage)
            self.calls[stage] = self.calls.get(stage, 0) + 1
            try:
                return work(*args, **options)
            finally:
                self.turn()
                self._open.pop()

        return counted


def watched(clock: Clock) -> ExitStack:
    """A context in which all stages are timed."""
    stack = ExitStack()
    for stage, places in STAGES.items():
        for place in places:
            owner, name = found(place)
            stack.enter_context(patch.object(owner, name, clock.timed(stage, getattr(owner, name))))
    return stack


def found(place: str) -> tuple[Any, str]:
    """The module or class of the package that has an attribute, and its name."""
    *parts, name = place.split(".")
    for count in range(len(parts), 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(["ranksearch", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            owner = getattr(owner, part)
        return owner, name
    raise LookupError(place)


def subject(given: argparse.Namespace) -> tuple[nn.Module, Classification]:
    """The network and its task."""
    if given.weights is None:
        schooling = digits(learning_rate=0.1, schedule="one_cycle")
        return trained(digits_net, schooling, epochs=12.0, seed=0, cache=home() / "cache"), digits()
    model = load_weights(cifar_resnet(given.depth), given.weights).eval()
    return model, cifar10(given.data)


def pass_seconds(model: nn.Module, task: Classification, repeats: int = 5) -> float:
    """Median processor seconds of one batch through the dense network."""
    (batch,) = task.calibration(1)
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            start = time.process_time()
            model(batch)
            times.append(time.process_time() - start)
    return float(np.median(times[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=user_path, help="safetensors of a ResNet for CIFAR-10")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--data", type=user_path, help="folder of CIFAR-10")
    parser.add_argument("--space", choices=list(SPACES), default="svd")
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--rules", nargs="+", default=None)
    parser.add_argument("--refits", type=int, default=None)
    parser.add_argument("--memory", choices=["channels_last", "contiguous"], default="channels_last", help="memory format of the network")
    parser.add_argument("--warm", action="store_true", help="moments and types may be there already")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, task = subject(given)
    if given.memory == "channels_last":
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    unit, clock = pass_seconds(model.eval(), task), Clock()
    with tempfile.TemporaryDirectory() as folder, watched(clock):
        if not given.warm:
            os.environ["RANKSEARCH_HOME"] = str(Path(folder))
        answer = compress(model, task, space=SPACES[given.space](), rules=given.rules, refits=given.refits, macs=given.macs)
        clock.turn()
    total = sum(clock.seconds.values())
    losses = {one.rule: [one.configuration and one.configuration.id, one.loss, one.reconstructed, one.passes] for one in answer.tried}
    row = {
        "benchmark": "compress", "network": "digits" if given.weights is None else f"resnet{given.depth}", "space": given.space,
        "macs": given.macs, "memory": given.memory, "warm": given.warm, "seconds": round(total, 1), "pass": round(unit, 4),
        "passes": round(total / unit), "shares": {name: round(used / total, 3) for name, used in sorted(clock.seconds.items())},
        "calls": clock.calls, "chosen": [answer.chosen.rule, answer.configuration.id], "losses": losses,
    }  # fmt: skip
    print(json.dumps(row))


if __name__ == "__main__":
    main()
