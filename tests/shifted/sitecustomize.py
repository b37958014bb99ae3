"""What ``--shift-seeds`` does, here and in the processes that tests start: Python imports this file when it starts with this folder on
``PYTHONPATH``. Torch and numpy are changed once somebody imports them, so that processes that need neither stay as quick as they are."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

SHIFT = "RANKSEARCH_TESTS_SHIFT_SEEDS"


def shift_torch(torch: Any, shift: int) -> None:
    manual_seed, generator = torch.manual_seed, torch.Generator

    class Shifted(generator):
        def manual_seed(self, seed: int) -> Any:
            return super().manual_seed(seed + shift)

    torch.manual_seed = lambda seed: manual_seed(int(seed) + shift)
    torch.Generator = Shifted


def shift_numpy(numpy: Any, shift: int) -> None:
    default_rng = numpy.random.default_rng
    whole = (int, numpy.integer)
    numpy.random.default_rng = lambda seed=None: default_rng(seed + shift if isinstance(seed, whole) else seed)


CHANGES = {"torch": shift_torch, "numpy": shift_numpy}


class Finder:
    """Changes the modules of ``CHANGES`` right after they are imported."""

    def __init__(self, shift: int) -> None:
        self.shift = shift

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in CHANGES else None
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def changed(module: Any) -> None:
            load(module)
            CHANGES[name](module, self.shift)

        spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


def install(shift: int) -> None:
    for name, change in CHANGES.items():
        if name in sys.modules:
            change(sys.modules[name], shift)
    sys.meta_path.insert(0, Finder(shift))  # type: ignore[arg-type]


if __name__ == "sitecustomize" and os.environ.get(SHIFT):
    install(int(os.environ[SHIFT]))
