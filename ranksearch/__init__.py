"""ranksearch: search the ranks and decomposition types of every layer of a trained network.

Names below load on first use, so that ``import ranksearch`` is instant and brings no torch with it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ranksearch.compression import compress
    from ranksearch.costs import COSTS, CostModel
    from ranksearch.decompositions import DECOMPOSITIONS
    from ranksearch.errors import RanksearchError
    from ranksearch.evaluation import Fidelity
    from ranksearch.networks.export import load
    from ranksearch.sites import find_sites
    from ranksearch.space import Configuration, SearchSpace
    from ranksearch.study import Study
    from ranksearch.tasks import Agreement, Classification, FromLoss, LanguageModel, Task

__version__ = "0.1.0"

_HOMES = {
    "COSTS": "costs",
    "Agreement": "tasks",
    "Classification": "tasks",
    "Configuration": "space",
    "CostModel": "costs",
    "DECOMPOSITIONS": "decompositions",
    "Fidelity": "evaluation",
    "FromLoss": "tasks",
    "LanguageModel": "tasks",
    "RanksearchError": "errors",
    "SearchSpace": "space",
    "Study": "study",
    "Task": "tasks",
    "find_sites": "sites",
    "compress": "compression",
    "load": "networks.export",
}

__all__ = [
    "COSTS",
    "DECOMPOSITIONS",
    "Agreement",
    "Classification",
    "Configuration",
    "CostModel",
    "Fidelity",
    "FromLoss",
    "LanguageModel",
    "RanksearchError",
    "SearchSpace",
    "Study",
    "Task",
    "__version__",
    "compress",
    "find_sites",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ranksearch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ranksearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
