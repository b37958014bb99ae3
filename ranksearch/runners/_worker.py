"""What runs in a Tune worker, and the form in which the evaluator gets there. It imports Ray, and is therefore imported when a run
starts."""

from __future__ import annotations

import contextlib
import pickle
import sys
import time
from collections.abc import Generator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from ray import cloudpickle
from ray.tune import Trainable

from ranksearch.errors import RanksearchError
from ranksearch.evaluation.request import Evaluate, Outcome, Progress, Request, failed
from ranksearch.runners._base import parts
from ranksearch.runners._watchdog import Limits, Watchdog


def pickled(evaluate: Evaluate, by_value: Sequence[ModuleType]) -> list[np.ndarray]:
    """The evaluator as one array of pickle and one for each large buffer: what goes through the object store, once."""
    # what is not in sys.modules under its name is pickled by value anyway
    registered = [module for module in by_value if sys.modules.get(module.__name__) is module]
    for module in registered:
        cloudpickle.register_pickle_by_value(module)
    try:
        buffers: list[pickle.PickleBuffer] = []
        body: bytes = cloudpickle.dumps(evaluate, protocol=5, buffer_callback=buffers.append)  # pyright: ignore[reportPrivateImportUsage]
    except Exception as error:  # whatever an object says when it is pickled
        raise RanksearchError(
            f"the model or the task cannot be sent to workers: {type(error).__name__}: {error}; take out what cannot be pickled, or "
            "evaluate in this process with runner='local' (--runner local)"
        ) from error
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)
    return [np.frombuffer(body, np.uint8)] + [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


class Worker(Trainable):
    """The trainable: one step is one part of an evaluation, the whole where nobody looks at it on its way. The process lives as long as the
    run and loads the evaluator once."""

    def setup(self, config: dict[str, Any], pieces: list[np.ndarray], threads: int, limits: Limits, verdicts: str) -> None:  # type: ignore[override]
        import torch

        torch.set_num_threads(threads)
        self.watchdog = Watchdog(limits, verdicts) if limits else None
        self.pieces: list[Any] = pieces
        self.evaluate: Evaluate | None = None
        self.running: Generator[Progress | Outcome] | None = None  # the evaluation that is under way
        self.took = 0.0  # seconds, so far

    def step(self) -> dict[str, Any]:
        if self.evaluate is None:
            try:
                self.evaluate = pickle.loads(self.pieces[0].data, buffers=self.pieces[1:])
            except Exception as error:  # handed to the driver, which ends the run: no other request would fare better
                return {"done": True, "broken": f"{type(error).__name__}: {error}"}
        assert self.evaluate is not None
        request = pickle.loads(self.config["request"])
        if self.running is None:
            self.running, self.took = parts(self.evaluate, request), 0.0
        start = time.perf_counter()
        with contextlib.nullcontext() if self.watchdog is None else self.watchdog.watching(self.config["trial"], self.took):
            found, body = _pickled(next(self.running), request)
        self.took += time.perf_counter() - start
        if isinstance(found, Progress):
            return {"done": False, "progress": body}
        self._leave()
        return {"done": True, "outcome": body}

    def _leave(self) -> None:
        if self.running is not None:
            self.running.close()
            self.running = None

    def cleanup(self) -> None:
        self._leave()
        if self.watchdog is not None:
            self.watchdog.close()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._leave()  # of an evaluation that was stopped
        return True


def _pickled(found: Progress | Outcome, request: Request) -> tuple[Progress | Outcome, bytes]:
    """For the way to the driver. What cannot be pickled is a failure."""
    try:
        return found, cloudpickle.dumps(found)  # pyright: ignore[reportPrivateImportUsage]
    except Exception as error:  # whatever an object says when it is pickled
        outcome = failed(request, error)
        return outcome, cloudpickle.dumps(outcome)  # pyright: ignore[reportPrivateImportUsage]
